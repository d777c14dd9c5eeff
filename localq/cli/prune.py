"""`localq prune`: delete what killed conversions left, and on request what was not used for long."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli.arguments import DryRun, Json, ModelsDir
from localq.cli.output import emit, emit_json, say
from localq.errors import OptionError
from localq.tables import format_bytes, parse_bytes

if TYPE_CHECKING:
    from localq.store.leftovers import Leftover
    from localq.store.manifest import Artifact

_OlderThan = Annotated[
    str | None,
    typer.Option("--older-than", metavar="TIME", help="Also delete artifacts not used for so long: 30d, 12h, 8w."),
]
_KeepBytes = Annotated[
    str | None,
    typer.Option(
        "--keep-bytes", metavar="SIZE", help="Also delete artifacts, longest unused first, until SIZE is left: 20GB."
    ),
]

_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def prune(
    older_than: _OlderThan = None,
    keep_bytes: _KeepBytes = None,
    dry_run: DryRun = False,
    models_dir: ModelsDir = None,
    json: Json = False,
) -> None:
    """Delete half-written files of killed conversions.

    Also folders of artifacts that have lost their localq.json. A whole artifact that a killed process left out of its
    place is put back. Artifacts are deleted only with --older-than or --keep-bytes, by their last use, which
    `localq ls` shows. Checkpoints are not touched.
    """
    from localq.store.store import Store
    from localq.store.upkeep import find_leftovers, least_recently_used, remove_leftovers

    age = _parse_age(older_than) if older_than is not None else None
    kept = _parse_size(keep_bytes) if keep_bytes is not None else None
    store = Store.existing(models_dir)
    leftovers = (find_leftovers if dry_run else remove_leftovers)(store, lost=True)
    lines = [_of_leftover(leftover) for leftover in leftovers]
    if age is not None or kept is not None:
        for artifact in least_recently_used(store.artifacts(), age, kept):
            line = _of_artifact(artifact)
            if dry_run or store.remove(artifact.folder):
                lines.append(line)
    if json:
        emit_json([line.record for line in lines])
        return
    for line in lines:
        emit(f"{'would ' if dry_run else ''}{line.verb if dry_run else line.done} {line.what}")
    if not lines:
        say(f"nothing to delete in {store.folder}")


@dataclass(frozen=True, slots=True)
class _Line:
    """What is printed of one deletion."""

    record: dict[str, Any]
    what: str
    verb: str = "remove"
    done: str = "removed"


def _of_leftover(leftover: Leftover) -> _Line:
    record: dict[str, Any] = {"path": str(leftover.path), "bytes": leftover.bytes}
    what = f"{leftover.path}, {format_bytes(leftover.bytes)}"
    if leftover.is_artifact:
        return _Line(
            {**record, "put_back": True}, f"{what}: a whole artifact whose place was empty", "put back", "put back"
        )
    return _Line(record, what)


def _of_artifact(artifact: Artifact) -> _Line:
    manifest, used = artifact.manifest, artifact.last_used.isoformat(timespec="seconds")
    record = {"path": str(artifact.folder), "bytes": manifest.bytes}
    named = {"model": manifest.model, "recipe": manifest.recipe, "last_used": used}
    return _Line({**record, **named}, f"{artifact.name}, {format_bytes(manifest.bytes)}, last used {used[:10]}")


def _parse_age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip().lower())
    if match is None:
        raise OptionError(f"--older-than is {text!r}", "give a number and m, h, d or w: 30d is thirty days")
    return int(match[1]) * _UNITS[match[2]]


def _parse_size(text: str) -> int:
    size = parse_bytes(text)
    if size is None:
        raise OptionError(f"--keep-bytes is {text!r}", "give a number of bytes, or one with a unit: 20GB")
    return size
