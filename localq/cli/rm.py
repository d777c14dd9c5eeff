"""`localq rm`: delete artifacts."""

from __future__ import annotations

from localq.cli.arguments import Json, ModelsDir, Reference
from localq.cli.output import emit, emit_json, format_bytes


def rm(ref: Reference, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Delete one form of a model, or all its forms where REF names none. Checkpoints are never touched."""
    from localq.reference import parse_reference
    from localq.store.store import Store

    store = Store(models_dir)
    artifacts = store.require(parse_reference(ref))
    for artifact in artifacts:
        store.remove(artifact)
    if json:
        emit_json(
            [{"model": a.manifest.model, "recipe": a.manifest.recipe, "bytes": a.manifest.bytes} for a in artifacts]
        )
        return
    for artifact in artifacts:
        emit(f"removed {artifact.name}, {format_bytes(artifact.manifest.bytes)}")
