"""`localq ls`: list artifacts."""

from __future__ import annotations

from localq.cli.arguments import Json, ModelsDir
from localq.cli.output import emit, emit_json, say


def ls(models_dir: ModelsDir = None, json: Json = False) -> None:
    """List converted models."""
    from localq.api import ArtifactList
    from localq.store.store import Store, problem_of

    store = Store.existing(models_dir)
    artifacts = ArtifactList(store.artifacts())
    for folder in store.damaged():
        say(f"warning: {problem_of(folder)}; `localq rm` deletes it, `localq convert --force` makes it again")
    if json:
        emit_json(
            [
                {
                    "model": artifact.manifest.model,
                    "recipe": artifact.manifest.recipe,
                    "path": str(artifact.path),
                    "bytes": artifact.manifest.bytes,
                    "bits_per_weight": artifact.manifest.bits_per_weight,
                    "revision": artifact.manifest.revision,
                    "created": artifact.manifest.created,
                    "last_used": artifact.last_used.isoformat(timespec="seconds"),
                }
                for artifact in artifacts
            ]
        )
        return
    if not artifacts:
        say(f"no models in {store.folder}; for example: localq convert toy-llama")
        return
    emit(repr(artifacts))
