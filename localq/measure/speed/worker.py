"""The process that opens and measures one form: `python -m localq.measure.speed.worker`.

One process measures one form, so that load time and peak memory are that form's own. How requests come and answers
go is the business of `localq.measure.serving`; how many processes there are, that of `localq.measure.speed.bench`.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.errors import EngineError, OptionError, UnsupportedOptionError
from localq.generation import GenerationStatistics, TextRules, stream
from localq.hardware import peak_memory_bytes
from localq.measure.serving import Commands, serve
from localq.measure.speed.energy import EnergyMeter
from localq.measure.speed.results import DECODE_PROMPT_TOKENS, BenchTest
from localq.model import Model, open_form, open_gguf_file
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from localq.text.tokenizer import Tokenizer

_WARM_UP_SECONDS = 0.1
_WARM_UP_GENERATED_TOKENS = 8


def plain_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the vocabulary without special and other added tokens, ascending."""
    added = set(tokenizer.added_tokens.values())
    return [token for token in range(tokenizer.vocabulary_size) if token not in added]


def random_prompt(plain: Sequence[int], count: int, run: int) -> list[int]:
    """`count` ids for a run: the same for every form of a model, and others in every run.

    The first id differs from that of the run before and from that of `depth_ids`, so that an engine finds nothing of
    it in its cache.
    """
    return [plain[run % (len(plain) - 1)], *random.Random(run).choices(plain, k=count - 1)]


def depth_ids(plain: Sequence[int], count: int) -> list[int]:
    """The ids that stand in the cache before a test at depth: always the same ones, more of them for a greater depth.

    So an engine that keeps a prefix still has them after the test before.
    """
    return [plain[-1], *random.Random("depth").choices(plain, k=count - 1)] if count else []


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run of a test."""

    test: BenchTest
    statistics: GenerationStatistics
    joules: float | None
    """Of the tokens that the test is about; None where the machine does not tell."""

    def to_json(self) -> dict[str, Any]:
        test, statistics = self.test, self.statistics
        rate = statistics.prompt_tokens_per_second if test.prompt_tokens else statistics.generated_tokens_per_second
        # A generation computes its prompt of one token and all it generates but the last: as many as it generates.
        count = test.prompt_tokens or test.generated_tokens
        return {
            "tokens_per_second": rate,
            "time_to_first_token_seconds": statistics.time_to_first_token_seconds,
            "joules_per_token": None if self.joules is None else self.joules / count,
        }


class MeasuredModel:
    """An opened form, and what can be asked of it."""

    def __init__(self, path: Path, options: LoadOptions) -> None:
        """`path` is a folder or a `.gguf` file. Raises errors of the tree in `localq.errors`."""
        try:
            self.model: Model = open_gguf_file(path, options) if path.is_file() else open_form(path, options)
        except OptionError as error:
            raise OptionError(
                error.message, "measure fewer tokens with -p, -g and -d, or give a smaller context with -c"
            ) from error
        self._plain = plain_token_ids(self.model.tokenizer)
        self._batch_tokens = options.batch_tokens

    def measure(self, run: int, test: BenchTest) -> Measurement:
        """Compute a random prompt and generate exactly so many tokens, greedily; end tokens end nothing.

        The tokens of the depth are in the cache before the clock starts. Raises UnsupportedOptionError for prompt
        processing at depth where the engine computes what is in the cache again with the prompt.
        """
        self._warm_up(run, test)
        return self._run(run, test)

    def _warm_up(self, run: int, test: BenchTest) -> None:
        """Run a batch of the prompt, or generate some tokens: at least once, and for a tenth of a second.

        That touches memory for the first time, which costs a prompt of 256 tokens 5% of its rate in a 1.2B model on a
        CPU; it compiles what is to be compiled, and fills the processor's caches after another process ran.
        """
        most = self._batch_tokens if test.prompt_tokens else _WARM_UP_GENERATED_TOKENS
        prompt_tokens, generated_tokens = min(test.prompt_tokens, most), min(test.generated_tokens, most)
        smaller = replace(test, prompt_tokens=prompt_tokens, generated_tokens=generated_tokens)
        deadline = time.perf_counter() + _WARM_UP_SECONDS
        # Two prompts in turn, neither of them the one of `run`: none finds anything of itself in the cache.
        for other in itertools.cycle((run + 1, run + 2)):
            self._run(other, smaller)
            if time.perf_counter() > deadline:
                return

    def _run(self, run: int, test: BenchTest) -> Measurement:
        before = depth_ids(self._plain, test.depth_tokens)
        if before:
            self.model.engine.prefill(before)
        prompt = [*before, *random_prompt(self._plain, test.prompt_tokens or DECODE_PROMPT_TOKENS, run)]
        options = GenerationOptions(max_tokens=test.generated_tokens or 1)
        energy = EnergyMeter()
        *_, last = stream(self.model.engine, TextRules(self.model.tokenizer), prompt, options)
        joules = energy.joules()
        statistics = last.statistics
        assert statistics is not None  # the last chunk has them
        if statistics.generated_tokens != options.max_tokens:
            raise EngineError(f"{statistics.generated_tokens} tokens came instead of {options.max_tokens}")
        if test.prompt_tokens and statistics.cached_prompt_tokens != test.depth_tokens:
            raise UnsupportedOptionError(
                f"the cache of this model can't be kept at {test.depth_tokens} tokens while prompts come and go",
                "measure prompts without -d, or generation alone (-p 0)",
            )
        return Measurement(test, statistics, joules)


class Worker:
    """What the process can be asked for: first `load`, then `measure` as often as wanted, and `peak_memory`."""

    def __init__(self) -> None:
        self._measured: MeasuredModel | None = None

    @property
    def commands(self) -> Commands:
        """By name, for `serve`."""
        return {"load": self._load, "measure": self._measure, "peak_memory": self._peak_memory}

    def _load(self, path: str, **options: Any) -> dict[str, Any]:
        self._measured = MeasuredModel(Path(path), LoadOptions(**options))
        return {"load_seconds": self._measured.model.load_seconds}

    def _measure(self, run: int, **test: int) -> dict[str, Any]:
        assert self._measured is not None, "load comes first"
        return self._measured.measure(run, BenchTest(**test)).to_json()

    def _peak_memory(self) -> dict[str, Any]:
        return {"peak_memory_bytes": peak_memory_bytes()}


if __name__ == "__main__":
    serve(Worker().commands)
