"""`localq prune`: delete what killed conversions left."""

from __future__ import annotations

from localq.cli.arguments import Json, ModelsDir
from localq.cli.output import emit, emit_json, say
from localq.tables import format_bytes


def prune(models_dir: ModelsDir = None, json: Json = False) -> None:
    """Delete half-written files of killed conversions.

    Artifacts and checkpoints are not touched.
    """
    from localq.store.store import Store
    from localq.store.upkeep import remove_leftovers

    store = Store.existing(models_dir)
    removed = remove_leftovers(store)
    if json:
        emit_json([{"path": str(leftover.path), "bytes": leftover.bytes} for leftover in removed])
        return
    for leftover in removed:
        emit(f"removed {leftover.path}, {format_bytes(leftover.bytes)}")
    if not removed:
        say(f"nothing to delete in {store.folder}")
