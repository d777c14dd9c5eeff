"""The Engine over MLX: the networks of mlx_lm with localq's own generation loop.

The network and its key-value cache are mlx_lm's. Its tokenizer is not used: for some checkpoints it gives other ids
than the tokenizer that they come with.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.backends import require_backend
from localq.engines.base import (
    PREFILL_CHUNK_TOKENS,
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
from localq.engines.mlx_network import Network, cache_arrays, fill_cache, load_network
from localq.engines.mlx_sampling import Sampler
from localq.errors import EngineError, UnsupportedOptionError
from localq.hardware import mlx_runs_on_gpu
from localq.options import GenerationOptions, LoadOptions

if TYPE_CHECKING:
    import mlx.core as mx
    import numpy as np
    from numpy.typing import NDArray

_CPU_CHUNK_TOKENS = 32
"""Prompt tokens between two chances to cancel where MLX runs on a CPU: there a 1.2B model computes one or two per
second, and large chunks are no faster than small ones."""
_TOKENS_BETWEEN_CLEARS = 256
"""How often MLX frees the buffers that it keeps for reuse, as in mlx_lm."""
_MOST_PASS_TOKENS = {"phi3small": 1}
"""By model type, where mlx_lm (0.32.2) is right only in short passes: its block-sparse attention adds a mask of
booleans, so that the earlier tokens of a pass attend to the later ones."""


def open_engine(folder: Path, options: LoadOptions, context_length: int) -> MlxEngine:
    """Load an MLX folder on MLX's default device.

    Raises BackendUnavailableError without mlx and mlx_lm, UnsupportedOptionError for an option that MLX does not have
    and for a cache that the network can't have, EngineError when mlx_lm can't load the folder.
    """
    require_backend("mlx")
    if options.threads is not None:
        raise UnsupportedOptionError(
            f"MLX chooses its own number of threads; it can't be set to {options.threads}",
            "leave --threads out, or use a gguf format",
        )
    if options.flash_attention is not None:
        raise UnsupportedOptionError(
            f"MLX has one kind of attention; flash_attention can't be {options.flash_attention}",
            "leave --flash-attention out, or use a gguf format",
        )
    network = load_network(folder, options, context_length)
    pass_tokens = _MOST_PASS_TOKENS.get(network.model.model_type, options.batch_tokens)
    return MlxEngine(network, context_length, pass_tokens)


class MlxEngine:
    """An opened MLX model with one key-value cache."""

    def __init__(self, network: Network, context_length: int, pass_tokens: int) -> None:
        """At most `pass_tokens` are computed in one pass."""
        self.context_length = context_length
        self.vocabulary_size = network.vocabulary_size
        self.state_settings = network.state_settings
        self._model = network.model
        self._make_cache = network.make_cache
        self._pass_tokens = pass_tokens
        self._cache: list[Any] = []
        # Tokens that every layer's cache certainly holds. After an interruption some may hold more, never less.
        self._tokens: list[int] = []
        self._newest_logits: mx.array | None = None

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`."""
        import mlx.core as mx

        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        reused = self._keep(shared_prefix_tokens(self._tokens, prompt))
        report = on_progress or (lambda done, total: None)
        # The last token has its own pass: mlx_lm's networks compute the output layer for all tokens of a pass.
        for chunk in chunks(prompt[:-1], reused, min(self._pass_tokens, _chunk_tokens())):
            with self._pass(chunk):
                mx.eval([layer.state for layer in self._cache])
            mx.clear_cache()
            report(len(self._tokens), len(prompt))
        with self._pass(prompt[-1:]) as rows:
            newest = rows[-1]
            mx.eval(newest)
        self._newest_logits = newest
        report(len(prompt), len(prompt))
        return reused

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        """See `Engine.generate`. On Metal the next forward pass runs while the caller handles a token."""
        import mlx.core as mx

        logits = self._require_logits()
        check_bias(options, self.vocabulary_size)
        sampler = Sampler(options, self._tokens)
        limit = min(options.max_tokens, self.context_length - len(self._tokens))
        # For log-probabilities the caller reads the row of each token before the next one is computed.
        runs_ahead = _runs_ahead() and options.logprobs is None
        with self._errors_translated():
            token = sampler.draw(logits)
        for left in reversed(range(limit)):
            following = self._following(token, sampler) if left and runs_ahead else None
            with self._errors_translated():
                token_id = int(token.item())  # type: ignore[arg-type]
            if left % _TOKENS_BETWEEN_CLEARS == 0:
                mx.clear_cache()
            if following is not None:
                token = self._commit(token_id, following)
            yield token_id
            if left and following is None:
                token = self._commit(token_id, self._following(token, sampler))

    def _following(self, token: mx.array, sampler: Sampler) -> tuple[mx.array, mx.array]:
        """Start the pass that computes `token`; returns the next token and the logits it was drawn from."""
        with self._errors_translated():
            logits = self._forward(token)[-1]
            following = sampler.draw(logits)
        return following, logits

    def _commit(self, token_id: int, following: tuple[mx.array, mx.array]) -> mx.array:
        """Record that `token_id` is in the cache now; returns the token that follows."""
        self._tokens.append(token_id)
        token, self._newest_logits = following
        return token

    def logits(self) -> NDArray[np.float32]:
        """See `Engine.logits`."""
        import numpy as np

        return np.array(self._require_logits())

    def logits_in_chunks(self, tokens: Sequence[int], first: int = 0) -> Iterator[NDArray[np.float32]]:
        """See `Engine.logits_in_chunks`. The output layer is not evaluated for the tokens before `first`."""
        import mlx.core as mx
        import numpy as np

        self._require_open()
        check_window(tokens, self.vocabulary_size, self.context_length)
        self._drop_cache()
        for chunk in chunks(tokens[:first], 0, self._pass_tokens):
            with self._pass(chunk):
                mx.eval([layer.state for layer in self._cache])
        for chunk in chunks(tokens, first, min(self._pass_tokens, rows_per_chunk(self.vocabulary_size))):
            with self._pass(chunk) as rows:
                newest = rows[-1]
                mx.eval(rows, newest)
            self._newest_logits = newest
            yield np.array(rows)

    def state(self) -> EngineState:
        """See `Engine.state`."""
        self._require_open()
        self._keep(len(self._tokens))
        return EngineState(tuple(self._tokens), cache_arrays(self._cache))

    def restore(self, state: EngineState) -> None:
        """See `Engine.restore`."""
        self._require_open()
        check_ids(state.tokens, self.vocabulary_size)
        self._drop_cache()
        if state.tokens:
            try:
                fill_cache(self._model, self._cache, state.arrays, len(state.tokens))
            except BaseException:
                self._drop_cache()
                raise
        self._tokens = list(state.tokens)

    def close(self) -> None:
        """See `Engine.close`."""
        import mlx.core as mx

        self._model = self._newest_logits = None
        self._make_cache = list  # the earlier function refers to the model
        self._cache = []
        self._tokens = []
        # MLX keeps the buffers of freed arrays for new ones.
        mx.clear_cache()

    def _keep(self, token_count: int) -> int:
        """Remove all but the first tokens from the cache; returns how many could be kept."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        self._newest_logits = None
        if not self._cache or not can_trim_prompt_cache(self._cache):
            self._drop_cache()
            return 0
        del self._tokens[token_count:]
        for layer in self._cache:
            layer.trim(layer.offset - token_count)
        return token_count

    def _drop_cache(self) -> None:
        self._newest_logits = None
        self._tokens = []
        self._cache = self._make_cache()

    def _forward(self, ids: mx.array) -> mx.array:
        """Logits after each of `ids`, shape (len(ids), vocabulary_size), not evaluated yet; the cache grows."""
        import mlx.core as mx

        self._newest_logits = None
        try:
            rows: mx.array = self._model(ids[None], cache=self._cache)[0].astype(mx.float32)
        except BaseException:
            # Interrupted in the middle of an update: the keys and values of a layer may not match any more.
            self._drop_cache()
            raise
        return rows

    @contextmanager
    def _pass(self, tokens: Sequence[int]) -> Iterator[mx.array]:
        """A forward pass over a chunk. The `with` block evaluates what it needs; then the tokens count as cached."""
        import mlx.core as mx

        with self._errors_translated():
            yield self._forward(mx.array(list(tokens), dtype=mx.int32))
        self._tokens.extend(tokens)

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            self._drop_cache()
            raise EngineError(f"MLX could not compute the next tokens: {error}") from error

    def _require_open(self) -> None:
        if self._model is None:
            raise EngineError("this model has been closed")

    def _require_logits(self) -> mx.array:
        self._require_open()
        if self._newest_logits is None:
            raise EngineError("there are no logits: no prompt was computed to its end")
        return self._newest_logits


def _chunk_tokens() -> int:
    return PREFILL_CHUNK_TOKENS if mlx_runs_on_gpu() else _CPU_CHUNK_TOKENS


def _runs_ahead() -> bool:
    """A pass whose result is not used is cheap on a GPU that would be idle; on a CPU it takes as long as a token."""
    return mlx_runs_on_gpu()
