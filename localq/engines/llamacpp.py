"""The Engine over llama.cpp, through the C functions that llama_cpp exposes.

The high-level `Llama` class is not used: its streaming gets slower as the text gets longer. Nor are llama.cpp's
tokenizer and chat templates.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.backends import require_backend
from localq.engines.base import (
    PREFILL_CHUNK_TOKENS,
    Constraint,
    Drawn,
    EngineState,
    Feed,
    Guide,
    PrefillProgress,
    SequenceTokens,
    check_ids,
    check_prompt,
    check_window,
    chunks,
    rows_per_chunk,
)
from localq.engines.llamacpp_batch import Batch
from localq.engines.llamacpp_loading import LoadedContext, free, llama_api, load_context, reason
from localq.engines.llamacpp_sampling import ChainSampler, logits_row
from localq.errors import EngineError
from localq.hardware import llama_cpp_has_gpu
from localq.llama_log import captured_llama_log
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_CPU_CHUNK_TOKENS = 64
"""Prompt tokens between two tokens of other replies where a CPU computes: half a second with a 1.2B model on two
cores."""
_SHARED_CHUNKS = 4
"""Chunks of several prompts in one step: with 16 prompts of 20 tokens, one of them in a step made replies a fifth
slower."""
_NEWEST = -1
"""Index of the newest output in llama.cpp's calls that take one."""


def open_engine(path: Path, options: LoadOptions, context_length: int) -> LlamaCppEngine:
    """Load a `.gguf` file.

    Raises BackendUnavailableError without llama_cpp, EngineError with llama.cpp's own reason when the file can't be
    loaded, UnsupportedOptionError when the model can't have the cache that the options name.
    """
    require_backend("gguf")
    return LlamaCppEngine(load_context(path, options, context_length), context_length, options)


class LlamaCppEngine:
    """An opened GGUF model with a key-value cache for each sequence."""

    def __init__(self, loaded: LoadedContext, context_length: int, options: LoadOptions) -> None:
        """Frees what was loaded when it is closed."""
        model, context = loaded.model, loaded.context
        self._api = llama_api()
        self._context = context
        self._memory = self._api.llama_get_memory(context)
        self._batch_tokens = options.batch_tokens
        self.context_length = context_length
        self.vocabulary_size: int = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))
        self.state_settings = loaded.state_settings
        self.sequences = options.sequences
        self.chunk_tokens = min(self._batch_tokens, _chunk_tokens())
        self.step_tokens = min(self._batch_tokens, _SHARED_CHUNKS * self.chunk_tokens)
        self._shared_rows = loaded.shared_rows
        self._shares_prompts = not options.reproducible
        if options.reproducible:
            self._batch_tokens = self.step_tokens = self.chunk_tokens
        repeatable_chunk = self.chunk_tokens if options.reproducible else None
        self._cached = [SequenceTokens(repeatable_chunk) for _ in range(self.sequences)]
        self._batch = Batch(self._api, max(options.batch_tokens, self.sequences), self.sequences)
        # llama.cpp's number of each sequence: only sequences whose numbers follow each other share a pass.
        self._streams = list(range(self.sequences))
        self._has_logits = False
        # Runs at exit too: on a GPU, llama.cpp crashes at exit when a context is still open.
        self._free = weakref.finalize(self, free, self._api, model, context)

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`."""
        reused = self.begin(0, prompt)
        for chunk in chunks(prompt, reused, self._batch_tokens):
            self._compute(chunk)
            if on_progress is not None:
                on_progress(len(self._cached[0].ids), len(prompt))
        return reused

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        """See `Engine.generate`."""
        self._require_logits()
        context = self._cached[0].ids
        guide = Guide(constraint, options, self.vocabulary_size)
        left = min(options.max_tokens, self.context_length - len(context))
        with closing(self.sampler(options, context)) as sampler:
            while left > 0:
                token = sampler.draw(self._context, _NEWEST, guide.mask())
                following = guide.follow(token)[:left]
                for forced in following[1:]:
                    sampler.accept(forced)
                left -= len(following)
                yield from following
                if left > 0:
                    self._compute(following)

    def sampler(self, options: GenerationOptions, context: Sequence[int]) -> ChainSampler:
        """See `Engine.sampler`."""
        return ChainSampler(options, self.vocabulary_size, context)

    def reusable(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.reusable`."""
        return self._cached[sequence].reusable(prompt)

    def begin(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.begin`."""
        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        return self._keep(self.reusable(sequence, prompt), sequence)

    def step(self, feeds: Sequence[Feed]) -> list[Drawn | None]:
        """See `Engine.step`. Prompts have passes of their own: llama.cpp would divide a mixed one too."""
        self._require_open()
        drawn: dict[int, Drawn] = {}
        single = [feed for feed in feeds if len(feed.tokens) == 1]
        prompts = [feed for feed in feeds if len(feed.tokens) > 1]
        if self._shared_rows > 1:
            self._gather([feed.sequence for feed in single])
        for some in (single, prompts):
            some.sort(key=lambda feed: self._streams[feed.sequence])
        shared_prompts = len(feeds) if self._shares_prompts else 1
        for group in [*chunks(single, 0, self._shared_rows), *chunks(prompts, 0, shared_prompts)]:
            outputs = self._decode([(feed.sequence, feed.tokens) for feed in group])
            for feed, output in zip(group, outputs, strict=True):
                if feed.sampler is not None:
                    drawn[feed.sequence] = feed.sampler.drawn(self._context, output, feed.mask)
        self._has_logits = False
        return [drawn.get(feed.sequence) for feed in feeds]

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        self._require_logits()
        return logits_row(self._context, _NEWEST, self.vocabulary_size).copy()

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See `Engine.logits_in_chunks`. The output layer is not computed for the tokens before `first`.

        A pass is as long as in `prefill`, although llama.cpp then keeps all of its logits: in the last rows of a pass
        whose length is not a multiple of four, it rounds the numbers that a quantized weight is multiplied by
        differently.
        """
        import numpy as np

        self._require_open()
        check_window(tokens, self.vocabulary_size, self.context_length)
        self._keep(0)
        for chunk in chunks(tokens, 0, self._batch_tokens):
            wanted = min(len(self._cached[0].ids) + len(chunk) - first, len(chunk))
            self._compute(chunk, wanted)
            for done in range(0, wanted, rows_per_chunk(self.vocabulary_size)):
                rows = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (wanted, self.vocabulary_size))
                yield rows[done : done + rows_per_chunk(self.vocabulary_size)].copy()

    def state(self, sequence: int = 0) -> EngineState:
        """See `Engine.state`."""
        import numpy as np

        self._require_open()
        cached, stream = self._cached[sequence], self._streams[sequence]
        self._keep(len(cached.ids), sequence)
        buffer = np.empty(self._api.llama_state_seq_get_size(self._context, stream), dtype=np.uint8)
        written = self._api.llama_state_seq_get_data(self._context, _pointer(buffer), buffer.size, stream)
        return EngineState(tuple(cached.ids), (buffer[:written],), cached.repeatable)

    def restore(self, state: EngineState, sequence: int = 0) -> None:
        """See `Engine.restore`."""
        self._require_open()
        self._keep(0, sequence)
        check_ids(state.tokens, self.vocabulary_size)
        taken, stream = 0, self._streams[sequence]
        with captured_llama_log() as log:
            for buffer in state.arrays[:1]:
                taken = self._api.llama_state_seq_set_data(self._context, _pointer(buffer), buffer.size, stream)
        newest = self._api.llama_memory_seq_pos_max(self._memory, stream)
        if not taken or newest + 1 != len(state.tokens):
            self._keep(0, sequence)
            if self.sequences == 1:  # a damaged state may leave cells that no position finds again
                self._clear(with_data=True)
            raise EngineError(f"llama.cpp could not restore {len(state.tokens)} computed tokens: {reason(log)}")
        cached = self._cached[sequence]
        cached.ids, cached.repeatable = list(state.tokens), state.repeatable_tokens

    def close(self) -> None:
        """See `Engine.close`."""
        self._free()

    def _keep(self, token_count: int, sequence: int = 0) -> int:
        """Remove all but the first tokens from a cache; returns how many could be kept."""
        self._cached[sequence].cut(token_count)
        self._has_logits = False
        # Also when our own list has no more tokens: after an interruption the cache may hold more.
        stream = self._streams[sequence]
        if not self._api.llama_memory_seq_rm(self._memory, stream, token_count, -1):
            self._api.llama_memory_seq_rm(self._memory, stream, -1, -1)
            self._cached[sequence].cut(0)
        return len(self._cached[sequence].ids)

    def _clear(self, with_data: bool = False) -> None:
        """Empty all sequences."""
        self._has_logits = False
        self._api.llama_memory_clear(self._memory, with_data)
        for cached in self._cached:
            cached.cut(0)

    def _compute(self, tokens: Sequence[int], outputs: int = 1) -> None:
        """Append at most a chunk of tokens to the first sequence and compute the logits of the last `outputs`."""
        self._decode([(0, tokens)], outputs)
        self._has_logits = True

    def _decode(self, rows: Sequence[tuple[int, Sequence[int]]], outputs: int = 1) -> list[int]:
        """Append tokens to sequences in one pass; returns the index of the newest output of each.

        Each gets the logits of its last `outputs` tokens, at least one.
        """
        self._batch.clear()
        for sequence, tokens in rows:
            self._batch.add(self._streams[sequence], len(self._cached[sequence].ids), tokens, outputs)
        self._has_logits = False
        with captured_llama_log() as log:
            status = self._api.llama_decode(self._context, self._batch.structure)
            self._api.llama_synchronize(self._context)
        if status != 0:
            count = self._batch.structure.n_tokens
            self._clear()
            raise EngineError(f"llama.cpp could not compute {count} tokens (status {status}): {reason(log)}")
        for sequence, tokens in rows:
            self._cached[sequence].append(tokens)
        return self._batch.newest

    def _gather(self, sequences: Sequence[int]) -> None:
        """Give sequences neighbouring streams. What another one holds changes places with them."""
        streams = sorted(self._streams[sequence] for sequence in sequences)
        if not streams or streams[-1] - streams[0] < len(streams):
            return
        free = iter([stream for stream in range(len(streams)) if stream not in streams])
        for sequence in sequences:
            if self._streams[sequence] >= len(streams):
                self._swap(sequence, self._streams.index(next(free)))

    def _swap(self, first: int, second: int) -> None:
        """Let two sequences change streams."""
        states = self.state(first), self.state(second)
        streams = self._streams
        streams[first], streams[second] = streams[second], streams[first]
        for sequence, state in zip((first, second), states, strict=True):
            self._keep(0, sequence)
            if state.tokens:
                self.restore(state, sequence)

    def _require_open(self) -> None:
        if not self._free.alive:
            raise EngineError("this model has been closed")

    def _require_logits(self) -> None:
        self._require_open()
        if not self._has_logits:
            raise EngineError("there are no logits: no prompt was computed to its end")


def _chunk_tokens() -> int:
    return PREFILL_CHUNK_TOKENS if llama_cpp_has_gpu() else _CPU_CHUNK_TOKENS


def _pointer(buffer: NDArray[np.uint8]) -> Any:
    return buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
