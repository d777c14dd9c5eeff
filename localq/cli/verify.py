"""`localq verify`: whether artifacts are unchanged on disk."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from localq.cli.arguments import Json, ModelsDir
from localq.cli.completion import complete_reference
from localq.cli.output import emit, emit_json, say
from localq.errors import StoreError
from localq.tables import format_bytes


def verify(
    ref: Annotated[
        str | None,
        typer.Argument(
            metavar="REF", help="A model or one of its artifacts (default: all).", autocompletion=complete_reference
        ),
    ] = None,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Compare artifacts with the hashes in their manifests."""
    from localq.cli.progress import ByteBar
    from localq.reference import parse_reference
    from localq.store.store import Store
    from localq.store.upkeep import changed_files

    store = Store.existing(models_dir)
    damaged = [] if ref else store.damaged()
    results: list[dict[str, Any]] = []
    with ByteBar() as bar:
        for artifact in store.require(parse_reference(ref)) if ref else store.artifacts():
            changed = changed_files(artifact, lambda done, total, name=artifact.name: bar.update(name, done, total))  # type: ignore[misc]
            manifest = artifact.manifest
            results.append(
                {"model": manifest.model, "recipe": manifest.recipe, "bytes": manifest.bytes, "changed": changed}
            )
    if json:
        emit_json(results)
    else:
        for result in results:
            outcome = f"changed: {', '.join(result['changed'])}" if result["changed"] else "unchanged"
            emit(f"{result['model']}:{result['recipe']}, {format_bytes(result['bytes'])}: {outcome}")
    for folder in damaged:
        say(f"{folder} is damaged: files are missing or have another length")
    if damaged or any(result["changed"] for result in results):
        raise StoreError(
            "some artifacts are damaged", "`localq convert SOURCE --to FORMAT --force` makes an artifact again"
        )
