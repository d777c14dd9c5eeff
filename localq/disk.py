"""Files that are written: errors of the disk in localq's words, and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import IO

from localq.errors import ConversionError, LocalqError, OptionError, StoreError

ELSEWHERE_HINT = "choose another folder with --models-dir or LOCALQ_MODELS"


def reason(error: Exception) -> str:
    """What went wrong, without Python's number and file name."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing under a models folder into a StoreError. Wrap nothing that reads elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk of {folder} is full"
            raise StoreError(message, f"remove something (`localq rm`) or {ELSEWHERE_HINT}") from error
        raise StoreError(f"can't write to {folder}: {reason(error)}", ELSEWHERE_HINT) from error


@contextmanager
def writing_errors(file: Path) -> Iterator[None]:
    """Turn an OSError of writing `file` into a LocalqError."""
    try:
        yield
    except OSError as error:
        raise LocalqError(f"can't write {file}: {reason(error)}") from error


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is deleted at the end. Raises ConversionError for every OSError in the `with` block.

    So read no other files in it, except where their errors are translated already.
    """
    try:
        with TemporaryDirectory(prefix="localq-") as folder:
            yield Path(folder)
    except OSError as error:
        raise ConversionError(
            f"can't write to the temporary folder: {reason(error)}",
            "make room there, or set TMPDIR to a folder that has room",
        ) from error


@contextmanager
def replacing(file: Path) -> Iterator[IO[bytes]]:
    """A stream whose content becomes `file` at the end of the `with` block; after an error `file` is as it was.

    The content is synced to the disk first. A link stays a link. Raises OSError.
    """
    target = file.resolve()
    with NamedTemporaryFile(dir=target.parent, prefix=f".{target.name}.", delete=False) as beside:
        try:
            yield beside
            beside.flush()
            os.fsync(beside.fileno())
            umask = os.umask(0)
            os.umask(umask)
            written = Path(beside.name)
            written.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~umask)
            written.replace(target)
        except BaseException:
            Path(beside.name).unlink(missing_ok=True)
            raise


def write_text(file: Path, text: str) -> None:
    """Write or replace a file in UTF-8, whole or not at all. Raises LocalqError."""
    with writing_errors(file), replacing(file) as stream:
        stream.write(text.encode(errors="backslashreplace"))  # a file name in it may be no UTF-8


def check_writable(file: Path, flag: str, *, replaced: bool = False) -> None:
    """Raise OptionError where it can be known that `file`, given with `flag`, can't be written. Writes nothing.

    `replaced` asks for a folder in which a file may be made, as `replacing` needs it.
    """
    folder = file.resolve().parent if replaced else file.absolute().parent
    if file.is_dir():
        problem = "it is a folder"
    elif not folder.is_dir():
        problem = f"there is no folder {folder}"
    elif file.exists() and not os.access(file, os.W_OK):
        problem = "it may not be written"
    elif (replaced or not file.exists()) and not os.access(folder, os.W_OK):
        problem = f"nothing may be written into {folder}"
    else:
        return
    raise OptionError(f"{flag} is '{file}': {problem}", "give another file")
