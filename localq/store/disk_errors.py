"""Errors of the disk under the models folder, said in localq's words."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localq.errors import StoreError

ELSEWHERE_HINT = "choose another folder with --models-dir or LOCALQ_MODELS"


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of writing under `folder` into a StoreError. Wrap nothing that reads elsewhere."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message = f"the disk of {folder} is full"
            raise StoreError(message, f"remove something (`localq rm`) or {ELSEWHERE_HINT}") from error
        raise StoreError(f"can't write to {folder}: {error.strerror or error}", ELSEWHERE_HINT) from error
