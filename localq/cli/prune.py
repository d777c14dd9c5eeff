"""`localq prune`: delete what killed conversions left."""

from __future__ import annotations

from localq.cli.arguments import DryRun, Json, ModelsDir
from localq.cli.output import emit, emit_json, say
from localq.tables import format_bytes


def prune(dry_run: DryRun = False, models_dir: ModelsDir = None, json: Json = False) -> None:
    """Delete half-written files of killed conversions.

    Artifacts and checkpoints are not touched.
    """
    from localq.store.store import Store
    from localq.store.upkeep import find_leftovers, remove_leftovers

    store = Store.existing(models_dir)
    leftovers = find_leftovers(store) if dry_run else remove_leftovers(store)
    if json:
        emit_json([{"path": str(leftover.path), "bytes": leftover.bytes} for leftover in leftovers])
        return
    for leftover in leftovers:
        emit(f"{'would remove' if dry_run else 'removed'} {leftover.path}, {format_bytes(leftover.bytes)}")
    if not leftovers:
        say(f"nothing to delete in {store.folder}")
