"""How far a download is: huggingface_hub's progress bars, turned into calls. Imports nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def ignore_bytes(file_bytes: int) -> None:
    """For a file that does not count."""


def byte_counter(on_bytes: Callable[[int], None]) -> Any:
    """A class that the client takes for tqdm: it draws nothing and reports the bytes of one file so far."""

    class Counter:
        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self._done_bytes = initial

        def __enter__(self) -> Counter:
            return self

        def update(self, new_bytes: float | None = 1) -> None:
            # Negative when a broken transfer starts again from zero.
            self._done_bytes += int(new_bytes or 0)
            on_bytes(self._done_bytes)

        def _ignore(self, *_: object, **__: object) -> None:
            pass

        # `update_transfer` is told the bytes on the wire; without it xet would make a second bar for them.
        __exit__ = close = update_transfer = set_postfix_str = set_transfer_postfix_str = _ignore

    return Counter
