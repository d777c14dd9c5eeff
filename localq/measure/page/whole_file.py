"""A text file that appears whole or not at all. Knows nothing of what stands in it."""

from __future__ import annotations

import os
from pathlib import Path

from localq.errors import OptionError
from localq.measure.output_file import check_writable, writing_errors


def check_replaceable(file: Path, flag: str) -> None:
    """Raise OptionError where it can be known that `write_whole` can't write `file`, given with `flag`."""
    check_writable(file, flag)
    folder = file.resolve().parent
    if not os.access(folder, os.W_OK):
        raise OptionError(f"{flag} is '{file}': nothing may be written into {folder}", "give another file")


def write_whole(file: Path, text: str) -> None:
    """Write a file in UTF-8; what was there before is replaced. Raises LocalqError, and leaves it then as it was."""
    target = file.resolve()  # a link stays one
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    with writing_errors(file):
        try:
            with beside.open("w", encoding="utf-8", errors="backslashreplace") as opened:  # a name may be no UTF-8
                opened.write(text)
                opened.flush()
                os.fsync(opened.fileno())
            beside.replace(target)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise
