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
    Constraint,
    Drawn,
    EngineState,
    Feed,
    Guide,
    PrefillProgress,
    SequenceTokens,
    check_bias,
    check_ids,
    check_prompt,
    check_window,
    chunks,
    rows_per_chunk,
)
from localq.engines.mlx_group import Group, can_be_grouped
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
    return MlxEngine(network, context_length, options)


class MlxEngine:
    """An opened MLX model with a key-value cache for each sequence."""

    def __init__(self, network: Network, context_length: int, options: LoadOptions) -> None:
        """See `open_engine`."""
        self.context_length = context_length
        self.vocabulary_size = network.vocabulary_size
        self.state_settings = network.state_settings
        self.sequences = options.sequences
        self._model = network.model
        self._make_cache = network.make_cache
        most_tokens = _MOST_PASS_TOKENS.get(network.model.model_type)
        self._pass_tokens = most_tokens or options.batch_tokens
        self.chunk_tokens = self.step_tokens = min(self._pass_tokens, _chunk_tokens())
        # A pass of one sequence has the same numbers in any company; that of several may round otherwise.
        self._shares_passes = not options.reproducible and most_tokens is None and self.sequences > 1
        self._shares_passes = self._shares_passes and can_be_grouped(self._model, self._make_cache())
        repeatable_chunk = self.chunk_tokens if options.reproducible else None
        self._cached = [SequenceTokens(repeatable_chunk) for _ in range(self.sequences)]
        self._caches: list[list[Any]] = [[] for _ in range(self.sequences)]
        self._group = Group(self._caches)
        self._steps = 0
        self._newest_logits: mx.array | None = None

    def prefill(self, prompt: Sequence[int], on_progress: PrefillProgress | None = None) -> int:
        """See `Engine.prefill`."""
        import mlx.core as mx

        reused = self.begin(0, prompt)
        report = on_progress or (lambda done, total: None)
        for chunk in chunks(prompt[:-1], reused, self.chunk_tokens):
            self._append(0, chunk)
            mx.clear_cache()
            report(len(self._cached[0].ids), len(prompt))
        self._newest_logits = self._append_last(0, prompt[-1])
        report(len(prompt), len(prompt))
        return reused

    def generate(self, options: GenerationOptions, constraint: Constraint | None = None) -> Generator[int, None, None]:
        """See `Engine.generate`. On Metal the next forward pass runs while the caller handles a token."""
        import mlx.core as mx

        logits = self._require_logits()
        sampler = self.sampler(options, self._cached[0].ids)
        guide = Guide(constraint, options, self.vocabulary_size)
        left = min(options.max_tokens, self.context_length - len(self._cached[0].ids))
        # For log-probabilities the caller reads the row of each token before the next one is computed.
        runs_ahead = _runs_ahead() and options.logprobs is None and constraint is None
        mask = guide.mask()
        with self._errors_translated():
            token = sampler.draw(logits, mask)
        while left > 0:
            ahead = self._following(token, sampler) if left > 1 and runs_ahead else None
            with self._errors_translated():
                token_id = int(token.item())  # type: ignore[arg-type]
            following = guide.follow(token_id)[:left]
            if left % _TOKENS_BETWEEN_CLEARS == 0:
                mx.clear_cache()
            if ahead is not None:
                token = self._commit(following[0], ahead)
            for forced in following[1:]:
                sampler.accept(forced)
            left -= len(following)
            yield from following
            if left > 0 and ahead is None:
                for forced in following[:-1]:
                    self._append(0, [forced])
                newest = mx.array(following[-1:], dtype=mx.int32) if len(following) > 1 else token
                token = self._commit(following[-1], self._following(newest, sampler, guide))

    def _following(self, token: mx.array, sampler: Sampler, guide: Guide | None = None) -> tuple[mx.array, mx.array]:
        """Start the pass that computes `token`; returns the next token and the logits it was drawn from."""
        with self._errors_translated():
            logits = self._forward(0, token)[-1]
        mask = guide.mask() if guide is not None else None
        with self._errors_translated():
            following = sampler.draw(logits, mask)
        return following, logits

    def _commit(self, token_id: int, following: tuple[mx.array, mx.array]) -> mx.array:
        """Record that `token_id` is in the cache now; returns the token that follows."""
        self._cached[0].append([token_id])
        token, self._newest_logits = following
        return token

    def sampler(self, options: GenerationOptions, context: Sequence[int]) -> Sampler:
        """See `Engine.sampler`."""
        check_bias(options, self.vocabulary_size)
        return Sampler(options, context)

    def reusable(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.reusable`."""
        return self._cached[sequence].reusable(prompt)

    def begin(self, sequence: int, prompt: Sequence[int]) -> int:
        """See `Engine.begin`."""
        self._require_open()
        check_prompt(prompt, self.vocabulary_size, self.context_length)
        return self._keep(self.reusable(sequence, prompt), sequence)

    def step(self, feeds: Sequence[Feed]) -> list[Drawn | None]:
        """See `Engine.step`. One token of several sequences is computed together, and a prompt by itself."""
        import mlx.core as mx
        import numpy as np

        self._require_open()
        together = [feed for feed in feeds if self._shares_passes and len(feed.tokens) == 1 and feed.sampler]
        rows: dict[int, mx.array] = {}
        with self._errors_translated():
            if len(together) > 1:
                rows = self._forward_together(together)
            for feed in feeds:
                if feed.sequence not in rows and feed.sampler is not None:
                    self._append(feed.sequence, feed.tokens[:-1])
                    rows[feed.sequence] = self._append_last(feed.sequence, feed.tokens[-1])
                elif feed.sequence not in rows:
                    self._append(feed.sequence, feed.tokens)
            drawn = [feed.sampler and feed.sampler.draw(rows[feed.sequence], feed.mask) for feed in feeds]
            mx.eval(drawn, self._group.state)
            self._steps += 1
            if self._steps % _TOKENS_BETWEEN_CLEARS == 0:
                mx.clear_cache()
            self._newest_logits = None
            return [
                Drawn(int(token.item()), np.array(rows[feed.sequence]) if feed.sampler.keeps_logits else None)
                if token is not None
                else None
                for feed, token in zip(feeds, drawn, strict=True)
            ]

    def _forward_together(self, feeds: Sequence[Feed]) -> dict[int, mx.array]:
        """Append the token of each feed in one pass; the logits of each sequence."""
        by_sequence = {feed.sequence: feed for feed in feeds}
        if set(by_sequence) != set(self._group.members):
            self._group.change(list(by_sequence))
        members = self._group.members
        rows = self._group.forward(self._model, [by_sequence[member].tokens[0] for member in members])
        for member in members:
            self._cached[member].append(by_sequence[member].tokens)
        return dict(zip(members, rows, strict=True))

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
        self._empty(0)
        for chunk in chunks(tokens[:first], 0, self._pass_tokens):
            self._append(0, chunk)
        for chunk in chunks(tokens, first, min(self._pass_tokens, rows_per_chunk(self.vocabulary_size))):
            with self._pass(0, chunk) as rows:
                newest = rows[-1]
                mx.eval(rows, newest)
            self._newest_logits = newest
            yield np.array(rows)

    def state(self, sequence: int = 0) -> EngineState:
        """See `Engine.state`."""
        self._require_open()
        cached = self._cached[sequence]
        self._keep(len(cached.ids), sequence)
        return EngineState(tuple(cached.ids), cache_arrays(self._caches[sequence]), cached.repeatable)

    def restore(self, state: EngineState, sequence: int = 0) -> None:
        """See `Engine.restore`."""
        self._require_open()
        check_ids(state.tokens, self.vocabulary_size)
        self._empty(sequence)
        if state.tokens:
            try:
                fill_cache(self._model, self._caches[sequence], state.arrays, len(state.tokens))
            except BaseException:
                self._empty(sequence)
                raise
        cached = self._cached[sequence]
        cached.ids, cached.repeatable = list(state.tokens), state.repeatable_tokens

    def close(self) -> None:
        """See `Engine.close`."""
        import mlx.core as mx

        self._model = self._newest_logits = None
        self._make_cache = list  # the earlier function refers to the model
        self._clear()
        # MLX keeps the buffers of freed arrays for new ones.
        mx.clear_cache()

    def _keep(self, token_count: int, sequence: int = 0) -> int:
        """Remove all but the first tokens from a cache; returns how many could be kept."""
        from mlx_lm.models.cache import can_trim_prompt_cache

        self._newest_logits = None
        self._leave_group(sequence)
        cache = self._caches[sequence]
        if not cache or not can_trim_prompt_cache(cache):
            self._empty(sequence)
            return 0
        self._cached[sequence].cut(token_count)
        for layer in cache:
            layer.trim(layer.offset - token_count)
        return token_count

    def _leave_group(self, sequence: int) -> None:
        if sequence in self._group.members:
            self._group.change([member for member in self._group.members if member != sequence])

    def _empty(self, sequence: int) -> None:
        self._newest_logits = None
        self._leave_group(sequence)
        self._cached[sequence].cut(0)
        self._caches[sequence] = self._make_cache()

    def _clear(self) -> None:
        """Empty all sequences."""
        self._newest_logits = None
        self._group.drop()
        for sequence, cached in enumerate(self._cached):
            cached.cut(0)
            self._caches[sequence] = self._make_cache()

    def _append(self, sequence: int, tokens: Sequence[int]) -> None:
        """Compute tokens, at most a chunk, without logits."""
        import mlx.core as mx

        if tokens:
            with self._pass(sequence, tokens):
                mx.eval([layer.state for layer in self._caches[sequence]])

    def _append_last(self, sequence: int, token: int) -> mx.array:
        """Compute a token; returns the logits after it.

        It has its own pass: mlx_lm's networks compute the output layer for all tokens of a pass.
        """
        import mlx.core as mx

        with self._pass(sequence, [token]) as rows:
            newest = rows[-1]
            mx.eval(newest)
        return newest

    def _forward(self, sequence: int, ids: mx.array) -> mx.array:
        """Logits after each of `ids`, shape (len(ids), vocabulary_size), not evaluated yet; the cache grows."""
        import mlx.core as mx

        self._newest_logits = None
        self._leave_group(sequence)
        try:
            rows: mx.array = self._model(ids[None], cache=self._caches[sequence])[0].astype(mx.float32)
        except BaseException:
            # Interrupted in the middle of an update: the keys and values of a layer may not match any more.
            self._empty(sequence)
            raise
        return rows

    @contextmanager
    def _pass(self, sequence: int, tokens: Sequence[int]) -> Iterator[mx.array]:
        """A forward pass over a chunk. The `with` block evaluates what it needs; then the tokens count as cached."""
        import mlx.core as mx

        with self._errors_translated():
            yield self._forward(sequence, mx.array(list(tokens), dtype=mx.int32))
        self._cached[sequence].append(tokens)

    @contextmanager
    def _errors_translated(self) -> Iterator[None]:
        try:
            yield
        except (RuntimeError, ValueError) as error:
            self._clear()
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
