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
    from localq.generation import GenerationStatistics
    from localq.serve.core import Reply
    from localq.serve.models import Models

CLIENT_GONE = 499
"""The status in the log and in the figures where the client closed the connection first."""


@dataclass
class Record:
    """What the log says of a request."""

    id: str
    method: str
    path: str
    started: float = field(default_factory=time.perf_counter)
    status: int = CLIENT_GONE
    model: str = ""
    form: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    first: GenerationStatistics | None = None
    """Of the first reply: its rates are shown."""
    failure: str = ""
    """For the log only: it may name files."""
    prompts: list[str] = field(default_factory=list)

    def line(self) -> str:
        """`time id method path status key=value ...`"""
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        words = [now, self.id, self.method, _quoted(self.path), str(self.status)]
        if self.model:
            words += [f"model={_quoted(self.model)}", f"form={self.form}"]
        if self.prompt_tokens:
            tokens = (("prompt", self.prompt_tokens), ("cached", self.cached_tokens), ("new", self.generated_tokens))
            words += [f"{name}_tokens={count}" for name, count in tokens]
        if self.first is not None:
            words += _rates(self.first)
        words.append(f"seconds={time.perf_counter() - self.started:.3f}")
        words += [f"error={_quoted(self.failure)}"] if self.failure else []
        words += [f"prompt={json.dumps(prompt, ensure_ascii=False)}" for prompt in self.prompts]
        return " ".join(words)


def _rates(statistics: GenerationStatistics) -> list[str]:
    rates = {
        "prompt_tokens_per_second": statistics.prompt_tokens_per_second,
        "new_tokens_per_second": statistics.generated_tokens_per_second,
    }
    shown = [f"{name}={rate:.1f}" for name, rate in rates.items() if rate is not None]
    first = statistics.time_to_first_token_seconds
    return [*shown, *([f"first_token_seconds={first:.3f}"] if first is not None else [])]


def _quoted(text: str) -> str:
    """Without spaces and line breaks, which would forge words and lines of the log."""
    plain = text.isascii() and text.isprintable() and not {" ", '"'} & set(text)
    return text if plain else json.dumps(text)


class Tally:
    """Counts since the server began."""

    def __init__(self, log: Callable[[str], None], paths: frozenset[str]) -> None:
        """`log` writes a line; `paths` are the ones that the figures name."""
        self._log, self._paths = log, paths
        self._requests: Counter[tuple[str, int]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()
        self._seconds: Counter[str] = Counter()
        self.queued = 0
        """Replies that are wanted and not at their end."""

    def count(self, record: Record, model: str, replies: Sequence[Reply]) -> None:
        """Count the tokens of the replies to one request."""
        for reply in replies:
            statistics = reply.statistics
            record.generated_tokens += len(reply.token_ids)
            record.prompt_tokens += len(reply.prompt)
            if statistics is not None:
                record.first = record.first or statistics
                record.cached_tokens += statistics.cached_prompt_tokens
                self._seconds["prompt"] += statistics.prompt_seconds  # type: ignore[assignment]
                self._seconds["decode"] += statistics.decode_seconds  # type: ignore[assignment]
        self._tokens[model, "prompt"] += record.prompt_tokens
        self._tokens[model, "cached"] += record.cached_tokens
        self._tokens[model, "generated"] += record.generated_tokens

    def finish(self, record: Record) -> None:
        """Write the line of a request and count it."""
        path = record.path if record.path in self._paths else "other"
        self._requests[path, record.status] += 1
        self._log(record.line())

    def metrics(self, models: Models) -> str:
        """The figures in Prometheus' text form."""
        opened = models.opened()
        lines = ["# TYPE localq_requests_total counter"]
        for (path, status), count in sorted(self._requests.items()):
            lines.append(f'localq_requests_total{{path="{path}",status="{status}"}} {count}')
        lines.append("# TYPE localq_tokens_total counter")
        for (model, kind), count in sorted(self._tokens.items()):
            lines.append(f'localq_tokens_total{{model="{model}",kind="{kind}"}} {count}')
        lines.append("# TYPE localq_compute_seconds_total counter")
        for phase in ("prompt", "decode"):
            lines.append(f'localq_compute_seconds_total{{phase="{phase}"}} {self._seconds[phase]:.6f}')
        gauges = {
            "replies_queued": self.queued,
            "replies_running": sum(one.batcher.running for one in opened),
            "replies_waiting": sum(one.batcher.waiting for one in opened),
            "models_open": len(opened),
        }
        for name, value in gauges.items():
            lines += [f"# TYPE localq_{name} gauge", f"localq_{name} {value}"]
        return "\n".join(lines) + "\n"
