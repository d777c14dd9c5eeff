"""Files from the hub against the hashes that it states, and a note of which files were compared already.

The hub states the SHA-256 of a large file, and git's hash of any other. A file that was compared is known again by its
size and time, so that it is read once. The note is in the user's cache folder, not in the folder shared with others.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import replacing

if TYPE_CHECKING:
    from hashlib import _Hash

_PIECE_BYTES = 1 << 20
_STATED = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


def is_stated_hash(etag: str) -> bool:
    """Whether an ETag is a hash of the contents; a mirror may send something else."""
    return _STATED.fullmatch(etag) is not None


def new_digest(etag: str, size_bytes: int) -> _Hash:
    """What to feed a file's bytes to, for comparison with its ETag: SHA-256, or git's hash of a blob."""
    if len(etag) == 64:
        return hashlib.sha256()
    return hashlib.sha1(b"blob %d\0" % size_bytes, usedforsecurity=False)


def feed(file: Path, digest: _Hash) -> None:
    """Give a file's bytes to a digest. Raises OSError."""
    with file.open("rb") as stream:
        while piece := stream.read(_PIECE_BYTES):
            digest.update(piece)


def has_hash(file: Path, etag: str) -> bool:
    """Whether a file's bytes have the hash, which is noted. Raises OSError."""
    digest = new_digest(etag, file.stat().st_size)
    feed(file, digest)
    is_right = digest.hexdigest() == etag
    note_checked(file, etag if is_right else None)
    return is_right


def damaged_blob(files: Iterable[Path], again: bool = False) -> Path | None:
    """The first file in the cache whose bytes are not those that its blob's name states, read once, or `again`."""
    for file in files:
        etag = file.resolve().name
        is_known = not is_stated_hash(etag) or (not again and was_checked(file, etag))
        if not is_known and not has_hash(file, etag):
            return file
    return None


def was_checked(file: Path, etag: str) -> bool:
    """Whether a file was found to have the hash, and was not changed since."""
    return _noted().get(str(file.resolve())) == _identity(file, etag)


def note_checked(file: Path, etag: str | None) -> None:
    """Note that a file has the hash, or has a wrong one. Where that can't be written, it will be compared again."""
    with suppress(OSError):
        noted = {name: identity for name, identity in _noted().items() if Path(name).exists()}
        noted.pop(str(file.resolve()), None)
        if etag is not None:
            noted[str(file.resolve())] = _identity(file, etag)
        _note().parent.mkdir(parents=True, exist_ok=True)
        with replacing(_note()) as stream:
            stream.write(json.dumps(noted, indent=1).encode())


def _identity(file: Path, etag: str) -> list[str | int]:
    status = file.stat()
    return [etag, status.st_size, status.st_mtime_ns]


def _noted() -> dict[str, list[str | int]]:
    with suppress(OSError, ValueError):
        found = json.loads(_note().read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def _note() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("localq")) / "downloads.json"
