"""A quantized key-value cache: nearly the same logits, and its prefixes can be used again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.engines import llamacpp, mlx
from localq.engines.base import Engine
from localq.errors import UnsupportedOptionError
from localq.options import GenerationOptions, KvCacheType, LoadOptions
from tests.contracts.replies import all_logits, kl_divergence, long_prompt

pytest.importorskip("mlx_lm")  # not on every platform

Opener = Callable[[KvCacheType | None], Engine]
GREEDY = GenerationOptions(max_tokens=8)


@pytest.fixture(params=["gguf", "mlx"])
def open_with(request: pytest.FixtureRequest, heads_of_64: dict[str, Path]) -> Iterator[Opener]:
    """Opens each engine with a cache of a given type and a context of 1,024 tokens."""
    opened: list[Engine] = []

    def open_one(kv_cache_type: KvCacheType | None) -> Engine:
        if request.param == "mlx":
            options = LoadOptions(kv_cache_type=kv_cache_type)
            opened.append(mlx.open_engine(heads_of_64["mlx"], options, 1024))
        else:
            options = LoadOptions(kv_cache_type=kv_cache_type, threads=1)
            opened.append(llamacpp.open_engine(heads_of_64["gguf"], options, 1024))
        return opened[-1]

    yield open_one
    for engine in opened:
        engine.close()


def test_logits_with_a_quantized_cache_are_nearly_those_without(open_with: Opener) -> None:
    tokens = long_prompt(600)
    expected = all_logits(open_with(None), tokens)
    eight, four = (
        kl_divergence(expected, all_logits(open_with(kv_cache_type), tokens)).mean()
        for kv_cache_type in ("q8_0", "q4_0")
    )
    # Not the same logits: the option did something.
    assert 1e-12 < eight < 1e-4
    assert eight < four < 1e-2


@pytest.mark.parametrize("kv_cache_type", ["q8_0", "q4_0"])
def test_a_prefix_of_a_quantized_cache_gives_the_same_as_computing_it_again(
    open_with: Opener, kv_cache_type: KvCacheType
) -> None:
    prompt = long_prompt(600)
    engine = open_with(kv_cache_type)
    engine.prefill([*prompt[:300], 5, 6, 7])
    list(engine.generate(GREEDY))
    assert engine.prefill(prompt) == 300
    found, reply = engine.logits(), list(engine.generate(GREEDY))
    all_logits(engine, [1])
    fresh = open_with(kv_cache_type)
    assert fresh.prefill(prompt) == 0
    # The same numbers are rounded in the same way, except where the last digit differs: chunks end elsewhere.
    assert kl_divergence(fresh.logits()[None], found[None]).max() < 1e-5
    assert list(fresh.generate(GREEDY)) == reply


@pytest.mark.parametrize("kv_cache_type", ["q8_0", "q4_0"])
def test_heads_that_do_not_divide_into_blocks_are_refused_with_a_hint(
    tiny_llama: Any, kv_cache_type: KvCacheType
) -> None:
    options = LoadOptions(kv_cache_type=kv_cache_type)
    with pytest.raises(UnsupportedOptionError, match=kv_cache_type) as caught:
        llamacpp.open_engine(tiny_llama.gguf_file, options, 64)
    assert "--kv-cache-type" in caught.value.hint
    with pytest.raises(UnsupportedOptionError, match=kv_cache_type) as caught:
        mlx.open_engine(tiny_llama.mlx_folder, options, 64)
    assert "--kv-cache-type" in caught.value.hint


@pytest.mark.parametrize("flash_attention", [True, False])
def test_both_kinds_of_attention_give_the_same_logits_and_mlx_refuses_the_choice(
    heads_of_64: dict[str, Path], flash_attention: bool
) -> None:
    tokens = long_prompt(100)
    rows = []
    for options in (LoadOptions(threads=1), LoadOptions(threads=1, flash_attention=flash_attention)):
        engine = llamacpp.open_engine(heads_of_64["gguf"], options, 256)
        rows.append(all_logits(engine, tokens))
        engine.close()
    assert kl_divergence(*rows).max() < 1e-5
    with pytest.raises(UnsupportedOptionError, match="flash_attention"):
        mlx.open_engine(heads_of_64["mlx"], LoadOptions(flash_attention=flash_attention), 64)


def test_a_quantized_cache_without_flash_attention_is_refused(heads_of_64: dict[str, Path]) -> None:
    with pytest.raises(UnsupportedOptionError, match="flash_attn") as caught:
        llamacpp.open_engine(heads_of_64["gguf"], LoadOptions(kv_cache_type="q8_0", flash_attention=False), 64)
    assert "--flash-attention" in caught.value.hint


@pytest.mark.parametrize("batch_tokens", [1, 7, 512])
def test_a_batch_has_at_most_so_many_tokens_and_changes_no_logits(
    heads_of_64: dict[str, Path], batch_tokens: int
) -> None:
    tokens = long_prompt(60)
    for open_engine, path in ((llamacpp.open_engine, heads_of_64["gguf"]), (mlx.open_engine, heads_of_64["mlx"])):
        done = [0]
        engine = open_engine(path, LoadOptions(batch_tokens=batch_tokens), 128)
        engine.prefill(tokens, lambda count, _total, done=done: done.append(count))
        assert max(np.diff(done)) <= batch_tokens
        found = engine.logits()
        assert kl_divergence(all_logits(engine, tokens)[-1:], found[None]).max() < 1e-5
        engine.close()
