"""Conversations on disk: JSON lines in the user's data folder, one line for each thing that happened.

The first line says what the file is; every later one is appended at once and synced, so that a killed process loses
nothing but the reply in progress. Every line is an object with a `type`:

    {"type": "conversation", "version": 1, "id": ..., "started": ..., "model": ..., "format": ..., "system": ...}
    {"type": "turn", "time": ..., "messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}],
     "model": ..., "format": ..., "finish_reason": ..., "options": {...}, "statistics": {...}, "token_ids": [...]}
    {"type": "undo"}                     the newest turn no longer counts
    {"type": "clear"}                    no turn before this line counts
    {"type": "system", "content": ...}   the system message from here on; null for none
    {"type": "model", "path": ...}       what opens the model of later turns whose format is only `gguf` or `mlx`

A reply that was made again or continued is an `undo` and a new `turn`, written together. Times are ISO 8601 in UTC.
Knows no models.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localq.disk import reason, writing_errors
from localq.errors import LocalqError, ModelNotFoundError

VERSION = 1
_FIRST_WORDS_CHARACTERS = 60

Event = dict[str, Any]


@dataclass(slots=True)
class Record:
    """What a file says, after everything in it was applied."""

    id: str
    started: str
    model: str
    """A reference without format."""
    format: str
    """The newest one used, such as `gguf-q4_k_m`."""
    system: str | None = None
    turns: list[Event] = field(default_factory=list)
    """The `turn` lines that count, oldest first."""
    path: str = ""
    """Of a file or folder that was converted elsewhere, which the model's name does not lead to."""

    @property
    def reference(self) -> str:
        """What opens the model again."""
        return self.path if self.path and self.format in ("gguf", "mlx") else f"{self.model}:{self.format}"

    @property
    def first_words(self) -> str:
        """The beginning of the first question, in one line."""
        text = " ".join(self.turns[0]["messages"][0]["content"].split()) if self.turns else ""
        return text if len(text) <= _FIRST_WORDS_CHARACTERS else text[: _FIRST_WORDS_CHARACTERS - 3] + "..."


class Transcript:
    """A file that a conversation is written to as it goes. It is made when the first turn comes."""

    def __init__(self, file: Path, header: Event | None) -> None:
        """`header` is the first line of a new file; None continues one."""
        self.file = file
        self._waiting = [header] if header else []

    @property
    def id(self) -> str:
        """What `--resume` takes."""
        return self.file.stem

    def append(self, *events: Event) -> None:
        """Write events in one piece, and sync them. Raises LocalqError.

        Before the first turn they wait: a conversation without any leaves no file.
        """
        self._waiting += events
        if not self.file.exists() and all(event["type"] != "turn" for event in self._waiting):
            return
        text = as_lines(self._waiting)
        with writing_errors(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.file, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "rb+") as stream:
                size = stream.seek(0, os.SEEK_END)
                if size:  # a line that a full disk cut short must not swallow the next one
                    stream.seek(size - 1)
                    text = text if stream.read(1) == b"\n" else "\n" + text
                stream.write(text.encode(errors="surrogatepass"))
                stream.flush()
                os.fsync(stream.fileno())
        self._waiting = []


def conversations_folder() -> Path:
    """Where conversations are kept: `conversations` in the user's data folder."""
    from platformdirs import user_data_path

    return user_data_path("localq", appauthor=False) / "conversations"


def new_transcript(model: str, recipe: str, system: str | None) -> Transcript:
    """A transcript whose name is its time and four random letters, so that names sort by time."""
    name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"
    file = conversations_folder() / f"{name}.jsonl"
    return Transcript(file, header_event(name, model, recipe, system))


def open_transcript(record_id: str | None = None) -> tuple[Record, Transcript]:
    """A conversation by its id, by the beginning of one, or by a file; the newest one for None.

    Raises ModelNotFoundError where there is none, or several begin so; LocalqError for a file that can't be read.
    """
    folder = conversations_folder()
    if record_id is not None and Path(record_id).is_file():
        return read_record(Path(record_id)), Transcript(Path(record_id), None)
    files = _files(folder)
    found = [file for file in files if record_id is None or file.stem.startswith(record_id)]
    if record_id is None:
        found = found[:1]
    if not found:
        what = "no conversation is kept" if record_id is None else f"no conversation begins with {record_id!r}"
        raise ModelNotFoundError(f"{what} in {folder}", "`localq chat --list` lists them")
    if len(found) > 1:
        raise ModelNotFoundError(f"{len(found)} conversations begin with {record_id!r}", "`localq chat --list`")
    return read_record(found[0]), Transcript(found[0], None)


def list_records() -> Iterator[Record]:
    """Every conversation that can be read, newest first."""
    for file in _files(conversations_folder()):
        try:
            yield read_record(file)
        except LocalqError:
            continue


def read_record(file: Path) -> Record:
    """What a file says. Lines that a crash left damaged are skipped. Raises LocalqError."""
    try:
        lines = file.read_bytes().split(b"\n")
    except OSError as error:
        raise LocalqError(f"can't read {file}: {reason(error)}") from error
    events = [event for event in map(_parsed, lines) if event is not None]
    if not events or events[0].get("type") != "conversation":
        raise LocalqError(f"{file} is no conversation of localq", "`localq chat --list` lists them")
    first = events[0]
    if first.get("version") != VERSION:
        raise LocalqError(
            f"{file} has version {first.get('version')} of the format; this localq reads version {VERSION}"
        )
    record = Record(
        id=str(first.get("id", "")),
        started=str(first.get("started", "")),
        model=str(first.get("model", "")),
        format=str(first.get("format", "")),
        system=first.get("system"),
    )
    for event in events[1:]:
        _apply(record, event)
    return record


def header_event(name: str, model: str, recipe: str, system: str | None) -> Event:
    """The first line of a file."""
    started = datetime.now(UTC).isoformat(timespec="seconds")
    made_for = {"model": model, "format": recipe, "system": system}
    return {"type": "conversation", "version": VERSION, "id": name, "started": started, **made_for}


def as_lines(events: Sequence[Event]) -> str:
    """JSON lines, each with its line end."""
    return "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events)


def turn_event(
    messages: Sequence[Mapping[str, str]], model: str, recipe: str, finish_reason: str, details: Mapping[str, Any]
) -> Event:
    """A line for one exchange; `details` are `options`, `statistics` and `token_ids`."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    named = {"model": model, "format": recipe, "finish_reason": finish_reason}
    return {"type": "turn", "time": time, "messages": [dict(message) for message in messages], **named, **details}


def _apply(record: Record, event: Event) -> None:
    match event:
        case {"type": "turn", "messages": [{"content": str()}, {"content": str()}]}:
            record.turns.append(event)
            record.model, record.format = event.get("model", record.model), event.get("format", record.format)
        case {"type": "undo"} if record.turns:
            record.turns.pop()
        case {"type": "clear"}:
            record.turns.clear()
        case {"type": "model", "path": str(path)}:
            record.path = path
        case {"type": "system"}:
            record.system = event.get("content")


def _parsed(line: bytes) -> Event | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"), key=lambda file: file.stem, reverse=True)
