"""The Engine over llama.cpp, through the C functions that llama_cpp exposes.

The high-level `Llama` class is not used: its streaming gets slower as the text gets longer. Nor are llama.cpp's
tokenizer and chat templates.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.backends import require_backend
from localq.engines.base import (
    EngineState,
    PrefillProgress,
    check_bias,
    check_ids,
    check_prompt,
    check_window,
    chunks,
    rows_per_chunk,
    shared_prefix_tokens,
)
from localq.engines.llamacpp_loading import LoadedContext, free, llama_api, load_context, reason
from localq.engines.llamacpp_sampling import sampler_chain
from localq.errors import EngineError
from localq.llama_log import captured_llama_log
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SEQUENCE = 0
"""llama.cpp can hold several token sequences; localq uses one."""
_NEWEST = -1
"""Index of the newest output in llama.cpp's calls that take one."""


def open_engine(path: Path, options: LoadOptions, context_length: int) -> LlamaCppEngine:
    """Load a `.gguf` file.

    Raises BackendUnavailableError without llama_cpp, EngineError with llama.cpp's own reason when the file can't be
    loaded, UnsupportedOptionError when the model can't have the cache that the options name.
    """
    require_backend("gguf")
    return LlamaCppEngine(load_context(path, options, context_length), context_length, options.batch_tokens)


class LlamaCppEngine:
    """An opened GGUF model with one key-value cache."""

    def __init__(self, loaded: LoadedContext, context_length: int, batch_tokens: int) -> None:
        """Frees what was loaded when it is closed."""
        model, context = loaded.model, loaded.context
        self._api = llama_api()
        self._context = context
        self._memory = self._api.llama_get_memory(context)
        self._batch_tokens = batch_tokens
        self.context_length = context_length
        self.vocabulary_size: int = self._api.llama_vocab_n_tokens(self._api.llama_model_get_vocab(model))
        self.state_settings = loaded.state_settings
        # Tokens that are certainly in the cache. After an interruption it may hold more, never less.
        self._tokens: list[int] = []
        self._has_logits = False
        # Runs at exit too: on a GPU, llama.cpp crashes at exit when a context is still open.
        self._free = weakref.finalize(self, free, self._api, model, context)

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`."""
        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        reused = self._keep(shared_prefix_tokens(self._tokens, prompt))
        for chunk in chunks(prompt, reused, self._batch_tokens):
            self._compute(chunk)
            if on_progress is not None:
                on_progress(len(self._tokens), len(prompt))
        return reused

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        """See `Engine.generate`."""
        self._require_logits()
        check_bias(options, self.vocabulary_size)
        sample = self._api.llama_sampler_sample
        limit = min(options.max_tokens, self.context_length - len(self._tokens))
        with sampler_chain(options, self.vocabulary_size, self._tokens) as chain:
            for left in reversed(range(limit)):
                token: int = sample(chain, self._context, _NEWEST)
                yield token
                if left > 0:
                    self._compute((token,))

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        import numpy as np

        self._require_logits()
        row = self._api.llama_get_logits_ith(self._context, _NEWEST)
        return np.ctypeslib.as_array(row, (self.vocabulary_size,)).copy()

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
            wanted = min(len(self._tokens) + len(chunk) - first, len(chunk))
            self._compute(chunk, wanted)
            for done in range(0, wanted, rows_per_chunk(self.vocabulary_size)):
                rows = np.ctypeslib.as_array(self._api.llama_get_logits(self._context), (wanted, self.vocabulary_size))
                yield rows[done : done + rows_per_chunk(self.vocabulary_size)].copy()

    def state(self) -> EngineState:
        """See `Engine.state`."""
        import numpy as np

        self._require_open()
        self._keep(len(self._tokens))
        buffer = np.empty(self._api.llama_state_seq_get_size(self._context, _SEQUENCE), dtype=np.uint8)
        written = self._api.llama_state_seq_get_data(self._context, _pointer(buffer), buffer.size, _SEQUENCE)
        return EngineState(tuple(self._tokens), (buffer[:written],))

    def restore(self, state: EngineState) -> None:
        """See `Engine.restore`."""
        self._require_open()
        self._keep(0)
        check_ids(state.tokens, self.vocabulary_size)
        taken = 0
        with captured_llama_log() as log:
            for buffer in state.arrays[:1]:
                taken = self._api.llama_state_seq_set_data(self._context, _pointer(buffer), buffer.size, _SEQUENCE)
        newest = self._api.llama_memory_seq_pos_max(self._memory, _SEQUENCE)
        if not taken or newest + 1 != len(state.tokens):
            # A damaged state may leave cells that no position finds again.
            self._api.llama_memory_clear(self._memory, True)
            raise EngineError(f"llama.cpp could not restore {len(state.tokens)} computed tokens: {reason(log)}")
        self._tokens = list(state.tokens)

    def close(self) -> None:
        """See `Engine.close`."""
        self._free()

    def _keep(self, token_count: int) -> int:
        """Remove all but the first tokens from the cache; returns how many could be kept."""
        del self._tokens[token_count:]
        self._has_logits = False
        # Also when our own list has no more tokens: after an interruption the cache may hold more.
        if not self._api.llama_memory_seq_rm(self._memory, _SEQUENCE, token_count, -1):
            self._api.llama_memory_clear(self._memory, False)
            self._tokens.clear()
        return len(self._tokens)

    def _compute(self, tokens: Sequence[int], outputs: int = 1) -> None:
        """Append at most a chunk of tokens to the cache and compute the logits of the last `outputs`, at least one."""
        api = self._api
        # The batch only points to these arrays: they must exist until llama_decode returns.
        ids = (api.llama_token * len(tokens))(*tokens)
        batch = api.llama_batch_get_one(ids, len(tokens))
        if outputs > 1:
            wanted = (ctypes.c_int8 * len(tokens))(*[index >= len(tokens) - outputs for index in range(len(tokens))])
            batch.logits = ctypes.cast(wanted, ctypes.POINTER(ctypes.c_int8))
        self._has_logits = False
        with captured_llama_log() as log:
            status = api.llama_decode(self._context, batch)
            api.llama_synchronize(self._context)
        if status != 0:
            self._keep(0)
            raise EngineError(f"llama.cpp could not compute {len(tokens)} tokens (status {status}): {reason(log)}")
        self._tokens.extend(tokens)
        self._has_logits = True

    def _require_open(self) -> None:
        if not self._free.alive:
            raise EngineError("this model has been closed")

    def _require_logits(self) -> None:
        self._require_open()
        if not self._has_logits:
            raise EngineError("there are no logits: no prompt was computed to its end")


def _pointer(buffer: NDArray[np.uint8]) -> Any:
    return buffer.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
