"""`localq rm`: delete artifacts."""

from __future__ import annotations

from typing import Any

from localq.cli.arguments import Json, ModelsDir, Reference
from localq.cli.output import emit, emit_json
from localq.tables import format_bytes


def rm(ref: Reference, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Delete converted models.

    Only one format where REF names it, else all. Checkpoints are not touched.
    """
    from localq.reference import parse_reference
    from localq.store.store import Store, shown_name

    store = Store.existing(models_dir)
    removed: list[dict[str, Any]] = []
    for folder in store.require_folders(parse_reference(ref)):
        nbytes = sum(file.stat().st_size for file in folder.iterdir())
        store.remove(folder)
        removed.append({"model": shown_name(folder), "recipe": folder.name, "bytes": nbytes})
    if json:
        emit_json(removed)
        return
    for item in removed:
        emit(f"removed {item['model']}:{item['recipe']}, {format_bytes(item['bytes'])}")
