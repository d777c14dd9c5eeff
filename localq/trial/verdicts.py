"""What trials of files came to, kept by the files' sizes, times and first bytes: a good file is tried once.

Kept for this process, and for later ones in the user's cache folder where that can be written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from localq.disk import replacing
from localq.regular_files import open_regular, require_regular

GOOD = ""
_HASHED_BYTES = 16 << 20
"""More than the header of most files, whose vocabulary is the largest part."""
_MOST_VERDICTS = 1000

_this_process: dict[tuple[object, ...], str] = {}
"""By library and the files' status."""


def verdict(library: str, files: Sequence[Path], tried: Callable[[], str]) -> str:
    """What `tried` returned for these files, now or earlier: `GOOD`, or why they are refused. Raises OSError.

    `library` is the Python package that opens them: another version of it may take other files.
    """
    status = [require_regular(file) for file in files]
    key = (library, *((found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns) for found in status))
    if key not in _this_process:
        identity = _identity(library, files)
        found = _remembered().get(identity)
        if found is None:
            found = tried()
            _remember(identity, found)
        _this_process[key] = found
    return _this_process[key]


def trust(library: str, files: Sequence[Path]) -> None:
    """Note that localq wrote files, which need not be tried. Does nothing where that can't be noted."""
    with suppress(OSError):
        _remember(_identity(library, files), GOOD)


def _identity(library: str, files: Sequence[Path]) -> str:
    digest = hashlib.blake2b(_version(library).encode(), digest_size=20)
    for file in files:
        with open_regular(file) as stream:
            status = os.fstat(stream.fileno())
            digest.update(f"|{status.st_size}|{status.st_mtime_ns}|".encode())
            digest.update(stream.read(_HASHED_BYTES))
    return digest.hexdigest()


@cache
def _version(library: str) -> str:
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return library
    return f"{spec.origin}|{Path(spec.origin).stat().st_mtime_ns}"


def _file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("localq")) / "trials.json"


def _remembered() -> dict[str, str]:
    with suppress(OSError, ValueError):
        found = json.loads(_file().read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(value, str) for value in found.values()):
            return found
    return {}


def _remember(identity: str, verdict: str) -> None:
    """The oldest are forgotten; one that another process writes at the same time may be lost, and is found again."""
    with suppress(OSError):
        verdicts = _remembered()
        verdicts.pop(identity, None)
        kept = dict([*verdicts.items(), (identity, verdict)][-_MOST_VERDICTS:])
        _file().parent.mkdir(parents=True, exist_ok=True)
        with replacing(_file()) as stream:
            stream.write(json.dumps(kept, indent=2).encode())
