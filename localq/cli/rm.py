"""`localq rm`: delete artifacts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import DryRun, Json, ModelsDir, Reference
from localq.cli.output import emit, emit_json, say
from localq.errors import OptionError
from localq.tables import format_bytes

if TYPE_CHECKING:
    from localq.reference import ModelReference

_Yes = Annotated[bool, typer.Option("-y", "--yes", help="Delete all formats of a model without a question.")]


def rm(
    ref: Reference, yes: _Yes = False, dry_run: DryRun = False, models_dir: ModelsDir = None, json: Json = False
) -> None:
    """Delete converted models.

    Only one format where REF names it. Without a format all of them and the model's calibration, after a question;
    where nobody can answer, --yes is needed. Checkpoints are not touched.
    """
    from localq.reference import parse_reference
    from localq.store.leftovers import tree_bytes
    from localq.store.store import Store, shown_name

    store = Store.existing(models_dir)
    reference = parse_reference(ref)
    folders = store.require_folders(reference)
    records: list[dict[str, Any]] = []
    for folder in folders:
        records.append({"model": shown_name(folder), "recipe": folder.name, "bytes": tree_bytes(folder)})
    if not (yes or dry_run or _names_one(reference, folders)):
        _ask(ref, records)
    if not dry_run:
        gone = [not store.remove(folder) for folder in folders]  # another localq was quicker
        records = [record for record, is_gone in zip(records, gone, strict=True) if not is_gone]
    if json:
        emit_json(records)
    elif not records:
        say("nothing is left to delete: another localq was quicker")
    else:
        emit("\n".join(_lines("would remove" if dry_run else "removed", records)))


def _names_one(reference: ModelReference, folders: list[Path]) -> bool:
    """Whether a format is named, or the artifact by its own path."""
    path = reference.path
    return reference.recipe is not None or (path is not None and bool({path, path.parent} & set(folders)))


def _ask(ref: str, records: list[dict[str, Any]]) -> None:
    """Show what would be deleted; ends the command unless a person says yes."""
    total = f"{len(records)} artifact{'s' if len(records) > 1 else ''}, {format_bytes(_total(records))}"
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        one = f"{records[0]['model']}:{records[0]['recipe']}"
        raise OptionError(
            f"this would delete all formats of {ref}: {total}",
            f"add --yes, or name one format: localq rm {one}; --dry-run lists them",
        )
    say("\n".join(_lines("will remove", records)))
    sys.stderr.write(f"delete {total}? [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        say("nothing was deleted")
        raise typer.Exit(1)


def _lines(what: str, records: list[dict[str, Any]]) -> list[str]:
    lines = [f"{what} {record['model']}:{record['recipe']}, {format_bytes(record['bytes'])}" for record in records]
    return [*lines, *([f"{format_bytes(_total(records))} in all"] if len(records) > 1 else [])]


def _total(records: list[dict[str, Any]]) -> int:
    return sum(record["bytes"] for record in records)
