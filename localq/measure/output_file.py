"""A file that a measurement is written to: can it be, and errors of writing it in localq's words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localq.errors import LocalqError, OptionError


def check_writable(file: Path, flag: str) -> None:
    """Raise OptionError where it can be known that `file`, given with `flag`, can't be written. Writes nothing."""
    folder = file.absolute().parent
    if file.is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"there is no folder {folder}"
    elif not os.access(file if file.exists() else folder, os.W_OK):
        reason = "it may not be written"
    else:
        return
    raise OptionError(f"{flag} is '{file}': {reason}", "give another file")


@contextmanager
def writing_errors(file: Path) -> Iterator[None]:
    """Turn an OSError of writing `file` into a LocalqError."""
    try:
        yield
    except OSError as error:
        raise LocalqError(f"can't write {file}: {error.strerror or error}") from error
