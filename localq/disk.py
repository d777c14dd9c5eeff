"""What is written: errors of the disk in localq's words; files and folders that appear whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import NamedTemporaryFile, TemporaryDirectory
from typing import IO

from localq.errors import ConversionError, LocalqError, OptionError, StoreError

ELSEWHERE_HINT = "choose another folder with --models-dir or LOCALQ_MODELS"

_MOST_TRIES = 100  # where other processes rename and delete at the same time
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_RENAME_SWAP = 2  # macOS, sys/stdio.h


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


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network folders can't
            raise
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, and sync their names; does nothing where it is there. Raises OSError."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


def delete_tree(path: Path) -> None:
    """Delete a folder, a file or a link, after the names beside it are on the disk: a rename is kept by a power cut.

    Another process may delete the same at the same time. Raises OSError.
    """
    sync_folder(path.parent)
    for _ in range(_MOST_TRIES):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            return
        except FileNotFoundError:  # the other process was quicker with something inside
            continue


def put_in_place(folder: Path, target: Path, spare: Path) -> None:
    """Rename `folder` to `target`, beside it, and sync that; what was at `target` is at `folder` then.

    Both are exchanged in one step. Where the system or the file system can't, the old one has the name `spare` for a
    moment. After an error all is as it was. Raises OSError.
    """
    _exchange_or_rename(folder, target, spare)
    try:
        sync_folder(target.parent)
    except OSError:
        with suppress(OSError):
            if os.path.lexists(folder):
                _exchange_or_rename(folder, target, spare)
            else:
                target.rename(folder)
        raise


def _exchange_or_rename(folder: Path, target: Path, spare: Path) -> None:
    for tries_left in reversed(range(_MOST_TRIES)):
        try:
            if not os.path.lexists(target):
                folder.rename(target)
            elif not exchange(folder, target):
                _rename_in_two_steps(folder, target, spare)
            return
        except OSError as error:
            came_or_went = error.errno in (errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)
            if not (came_or_went and tries_left and os.path.lexists(folder)):
                raise


def _rename_in_two_steps(folder: Path, target: Path, spare: Path) -> None:
    target.rename(spare)
    try:
        folder.rename(target)
    except BaseException:
        spare.rename(target)
        raise
    spare.rename(folder)


def exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where the system or the file system can't. Raises OSError."""
    library = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(library, "renamex_np"):  # macOS
        failed = library.renamex_np(*names, _RENAME_SWAP)
    elif hasattr(library, "renameat2"):  # Linux
        failed = library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE)
    else:
        return False
    number = ctypes.get_errno()
    if failed and number not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        raise OSError(number, os.strerror(number), str(first), None, str(second))
    return not failed


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
