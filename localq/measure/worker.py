"""The process that opens and measures one form: `python -m localq.measure.worker`.

Reads a request per line on standard input and writes an answer per line on standard output, both JSON
objects; `localq.measure.process` is the other end. It ends when its input ends. One process measures one
form, so that load time and peak memory are that form's own.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.errors import EngineError, LocalqError, OptionError
from localq.generation import GenerationStatistics, TextRules, stream
from localq.measure.machine import peak_memory_bytes
from localq.model import Model, open_form, open_gguf_file
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from localq.text.tokenizer import Tokenizer


def plain_token_ids(tokenizer: Tokenizer) -> list[int]:
    """Ids of the vocabulary without special and other added tokens, ascending."""
    added = set(tokenizer.added_tokens.values())
    return [token for token in range(tokenizer.vocabulary_size) if token not in added]


def random_prompt(plain: Sequence[int], count: int, run: int) -> list[int]:
    """`count` ids for a run: the same for every form of a model, and others in every run.

    The first id differs from that of the run before, so that an engine finds nothing of it in its cache.
    """
    return [plain[run % len(plain)], *random.Random(run).choices(plain, k=count - 1)]


class MeasuredModel:
    """An opened form, and what can be asked of it."""

    def __init__(self, path: Path, options: LoadOptions) -> None:
        """`path` is a folder or a `.gguf` file. Raises errors of the tree in `localq.errors`."""
        try:
            self.model: Model = open_gguf_file(path, options) if path.is_file() else open_form(path, options)
        except OptionError as error:
            raise OptionError(
                error.message, "measure fewer tokens with -p and -g, or give a smaller context with -c"
            ) from error
        self._plain = plain_token_ids(self.model.tokenizer)

    def measure(self, run: int, prompt_tokens: int, generated_tokens: int) -> GenerationStatistics:
        """Compute a random prompt and generate exactly so many tokens, greedily; end tokens end nothing."""
        prompt = random_prompt(self._plain, prompt_tokens, run)
        options = GenerationOptions(max_tokens=generated_tokens)
        *_, last = stream(self.model.engine, TextRules(self.model.tokenizer), prompt, options)
        assert last.statistics is not None  # the last chunk has them
        if last.statistics.generated_tokens != generated_tokens:
            raise EngineError(f"{last.statistics.generated_tokens} tokens came instead of {generated_tokens}")
        return last.statistics


class Worker:
    """Answers requests: first `load`, then `measure` as often as wanted, and `peak_memory`."""

    def __init__(self) -> None:
        self._measured: MeasuredModel | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """The answer to one request; for an error of localq its `error` and `hint`."""
        arguments = dict(request)
        command = arguments.pop("command")
        try:
            if command == "load":
                return self._load(**arguments)
            if command == "measure":
                return self._measure(**arguments)
        except LocalqError as error:
            return {"error": error.message, "hint": error.hint}
        assert command == "peak_memory", command
        return {"peak_memory_bytes": peak_memory_bytes()}

    def _load(self, path: str, context_length: int, threads: int | None) -> dict[str, Any]:
        self._measured = MeasuredModel(Path(path), LoadOptions(context_length, threads))
        return {"load_seconds": self._measured.model.load_seconds}

    def _measure(self, run: int, prompt_tokens: int, generated_tokens: int) -> dict[str, Any]:
        assert self._measured is not None, "load comes first"
        statistics = self._measured.measure(run, prompt_tokens, generated_tokens)
        return {
            "prompt_tokens_per_second": statistics.prompt_tokens_per_second,
            "generated_tokens_per_second": statistics.generated_tokens_per_second,
            "time_to_first_token_seconds": statistics.time_to_first_token_seconds,
        }


def main() -> None:
    """Answer until the input ends."""
    # Whatever a library writes to standard output goes to standard error: the answers' way is theirs alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        worker = Worker()
        for line in sys.stdin:
            answers.write(json.dumps(worker.answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
