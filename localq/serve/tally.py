"""What the server counts: a line in the log for each request, and the figures of `/metrics`."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from localq.serve.core import Reply
    from localq.serve.models import Models

CLIENT_GONE = 499
"""The status in the log and in the figures where the client closed the connection first."""

_SHOWN_REPLIES = 4


@dataclass
class Record:
    """What the log says of a request."""

    id: str
    method: str
    path: str
    client: str = ""
    """Who asks; not for the log."""
    started: float = field(default_factory=time.perf_counter)
    status: int = CLIENT_GONE
    model: str = ""
    form: str = ""
    replies: list[str] = field(default_factory=list)
    """Tokens, rates and times of each one."""
    failure: str = ""
    """For the log only: it may name files."""
    prompts: list[str] = field(default_factory=list)

    def line(self) -> str:
        """`time id method path status seconds model=... form=... reply="..." error="..." prompt="..."`"""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        took = f"{time.perf_counter() - self.started:.3f}s"
        words = [now, self.id, self.method, _quoted(self.path), str(self.status), took]
        named = [("model", self.model), ("form", self.form), ("error", self.failure)]
        named += [("reply", reply) for reply in self.replies[:_SHOWN_REPLIES]]
        named += [("more_replies", str(len(self.replies) - _SHOWN_REPLIES))] if self.replies[_SHOWN_REPLIES:] else []
        named += [("prompt", prompt) for prompt in self.prompts]
        return " ".join([*words, *(f"{name}={_quoted(value)}" for name, value in named if value)])


def _quoted(text: str) -> str:
    """Without spaces and line breaks, which would forge words and lines of the log."""
    plain = text.isascii() and text.isprintable() and not {" ", '"'} & set(text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _head(name: str, kind: str, about: str) -> list[str]:
    return [f"# HELP localq_{name} {about}", f"# TYPE localq_{name} {kind}"]


class Tally:
    """Counts since the server began."""

    def __init__(self, log: Callable[[str], None], paths: frozenset[str]) -> None:
        """`log` writes a line; `paths` are the ones that the figures name."""
        self._log, self._paths = log, paths
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._seconds = {"prompt": 0.0, "decode": 0.0}
        self.queued: Counter[str] = Counter()
        """Replies of each client that are wanted and not at their end."""

    def leave(self, client: str, count: int) -> None:
        """Replies of a client are at their end."""
        self.queued[client] -= count
        if not self.queued[client]:
            del self.queued[client]

    def count(self, record: Record, model: str, replies: Sequence[Reply]) -> None:
        """Count the tokens of the replies to one request."""
        for reply in replies:
            self._tokens[model, "prompt"] += len(reply.prompt)
            self._tokens[model, "generated"] += len(reply.token_ids)
            if reply.statistics is None:
                record.replies.append(f"{len(reply.prompt)} prompt tokens, {len(reply.token_ids)} generated, cut off")
                continue
            record.replies.append(str(reply.statistics))
            self._tokens[model, "cached"] += reply.statistics.cached_prompt_tokens
            self._seconds["prompt"] += reply.statistics.prompt_seconds
            self._seconds["decode"] += reply.statistics.decode_seconds

    def finish(self, record: Record) -> None:
        """Write the line of a request and count it."""
        path = record.path if record.path in self._paths else "other"
        self._requests[path, record.status] += 1
        self._log(record.line())

    def metrics(self, models: Models) -> str:
        """The figures in Prometheus' text form."""
        opened = models.opened()
        lines = _head("requests_total", "counter", "Requests by path and status.")
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'localq_requests_total{{path="{path}",status="{status}"}} {count}')
        lines += _head("tokens_total", "counter", "Tokens of prompts, of them from the cache, and of replies.")
        for (model, kind), count in sorted(self._tokens.items()):
            lines.append(f'localq_tokens_total{{model="{model}",kind="{kind}"}} {count}')
        lines += _head("compute_seconds_total", "counter", "Seconds that replies took, by phase.")
        for phase, seconds in self._seconds.items():
            lines.append(f'localq_compute_seconds_total{{phase="{phase}"}} {seconds:.6f}')
        gauges = (
            ("replies_queued", self.queued.total(), "Replies that are wanted and not at their end."),
            ("replies_running", sum(one.batcher.running for one in opened), "Replies that are being computed."),
            ("replies_waiting", sum(one.batcher.waiting for one in opened), "Replies that wait for their turn."),
            ("models_open", len(opened), "Models in memory."),
        )
        for name, value, about in gauges:
            lines += [*_head(name, "gauge", about), f"localq_{name} {value}"]
        return "\n".join(lines) + "\n"
