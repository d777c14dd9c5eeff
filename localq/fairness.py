"""Whose reply begins next: clients by turns, so that one that asks much does not keep the others waiting."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar


class Waiting(Protocol):
    """A reply that is wanted."""

    @property
    def client(self) -> str:
        """Who wants it."""

    @property
    def arrived(self) -> float:
        """When it was asked for; see `time.monotonic`."""


_Reply = TypeVar("_Reply", bound=Waiting)


class Rotation:
    """The order of those that wait. One client alone is served in the order in which it asked."""

    def __init__(self) -> None:
        self._began: dict[str, float] = {}

    def order(self, waiting: Sequence[_Reply], running: Iterable[Waiting]) -> list[_Reply]:
        """Those first whose client has the fewest running replies; of these the one whose client waits longest."""
        held = Counter(reply.client for reply in running)
        keys: list[tuple[int, float]] = []
        for reply in waiting:
            keys.append((held[reply.client], max(reply.arrived, self._began.get(reply.client, 0.0))))
            held[reply.client] += 1
        self._began = {client: began for client, began in self._began.items() if client in held}
        return [waiting[place] for place in sorted(range(len(waiting)), key=keys.__getitem__)]

    def began(self, reply: Waiting) -> None:
        """A reply got its turn."""
        self._began[reply.client] = time.monotonic()
