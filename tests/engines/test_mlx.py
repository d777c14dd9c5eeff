"""Only for the MLX engine: its LongRoPE factors, its number type, its errors."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from localq.engines.mlx import _chunk_tokens, _runs_ahead, open_engine
from localq.engines.mlx_network import longrope_for, wire_memory
from localq.errors import EngineError, UnsupportedOptionError
from localq.options import GenerationOptions, LoadOptions

pytest.importorskip("mlx_lm")  # not on every platform
import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models import llama

LONGROPE = {"type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 9.0]}
CONFIG: dict[str, Any] = {"original_max_position_embeddings": 4096, "rope_scaling": LONGROPE}

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 1,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
}


def save_llama(folder: Path, dtype: mx.Dtype, **quantization: int) -> None:
    model = llama.Model(llama.ModelArgs.from_dict(LLAMA))
    model.set_dtype(dtype)
    if quantization:
        nn.quantize(model, **quantization)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    config = LLAMA | ({"quantization": quantization} if quantization else {})
    (folder / "config.json").write_text(json.dumps(config))


def test_a_context_within_the_original_one_takes_the_short_factors() -> None:
    changed = longrope_for(CONFIG, 4096)["rope_scaling"]
    assert changed["long_factor"] == [1.0, 1.5]
    assert LONGROPE["long_factor"] == [2.0, 9.0]


def test_a_longer_context_leaves_the_config_as_it_is() -> None:
    assert longrope_for(CONFIG, 4097) == {}


def test_a_scale_named_for_each_regime_goes_with_its_factors() -> None:
    scaling = LONGROPE | {"short_mscale": 1.1, "long_mscale": 1.3}
    assert longrope_for(CONFIG | {"rope_scaling": scaling}, 100)["rope_scaling"]["long_mscale"] == 1.1


@pytest.mark.parametrize("scaling", [None, {"type": "llama3", "factor": 8.0}])
def test_other_rotary_embeddings_are_left_alone(scaling: dict[str, Any] | None) -> None:
    assert longrope_for({"rope_scaling": scaling}, 100) == {}


@pytest.mark.skipif(mx.default_device().type == mx.DeviceType.gpu, reason="on the GPU a model keeps its dtype")
@pytest.mark.parametrize("quantization", [{}, {"group_size": 32, "bits": 4}])
def test_the_cpu_computes_in_float32(tmp_path: Path, quantization: dict[str, int]) -> None:
    save_llama(tmp_path, mx.bfloat16, **quantization)
    engine = open_engine(tmp_path, LoadOptions(), 32)
    dtypes = {array.dtype for _, array in tree_flatten(engine._model.parameters())}
    assert dtypes <= {mx.float32, mx.uint32}
    engine.prefill([1, 2, 3])
    assert len(list(engine.generate(GenerationOptions(max_tokens=4)))) == 4


def test_a_folder_without_weights_is_named_in_the_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(EngineError, match=f"{tmp_path}.*No safetensors"):
        open_engine(tmp_path, LoadOptions(), 32)


def test_an_unknown_architecture_is_named_in_the_error(tmp_path: Path) -> None:
    save_llama(tmp_path, mx.float32)
    (tmp_path / "config.json").write_text(json.dumps(LLAMA | {"model_type": "nonesuch"}))
    with pytest.raises(EngineError, match="nonesuch"):
        open_engine(tmp_path, LoadOptions(), 32)


def test_running_ahead_gives_the_same_tokens_and_a_cache_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on Metal: the pass after the one that is read is queued already when the caller stops."""
    save_llama(tmp_path, mx.float32)
    prompt, options = [5, 6, 7], GenerationOptions(max_tokens=8)
    plain = open_engine(tmp_path, LoadOptions(), 64)
    plain.prefill(prompt)
    expected = list(plain.generate(options))
    monkeypatch.setattr("localq.engines.mlx._runs_ahead", lambda: True)
    engine = open_engine(tmp_path, LoadOptions(), 64)
    assert engine.prefill(prompt) == 0
    assert list(engine.generate(options)) == expected
    assert engine.prefill([*prompt, *expected]) == len(prompt) + len(expected) - 1
    engine.prefill(prompt)
    ids = engine.generate(options)
    assert [next(ids), next(ids)] == expected[:2]
    ids.close()
    engine.prefill([*prompt, *expected[:2]])
    assert list(engine.generate(GenerationOptions(max_tokens=6))) == expected[2:]


@pytest.mark.parametrize("ahead", [True, False])
@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_pass_is_computed_whose_logits_nobody_draws_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ahead: bool, count: int
) -> None:
    save_llama(tmp_path, mx.float32)
    monkeypatch.setattr("localq.engines.mlx._runs_ahead", lambda: ahead)
    engine = open_engine(tmp_path, LoadOptions(), 64)
    engine.prefill([5, 6, 7])
    passes = []
    forward = llama.Model.__call__
    monkeypatch.setattr(llama.Model, "__call__", lambda *a, **k: passes.append(1) or forward(*a, **k))
    assert len(list(engine.generate(GenerationOptions(max_tokens=count)))) == count
    assert len(passes) == count - 1


def test_a_number_of_threads_is_refused(tmp_path: Path) -> None:
    save_llama(tmp_path, mx.float32)
    with pytest.raises(UnsupportedOptionError, match="own number of threads; it can't be set to 3") as caught:
        open_engine(tmp_path, LoadOptions(threads=3), 32)
    assert "--threads" in caught.value.hint


@pytest.mark.parametrize(("kind", "on_gpu"), [(mx.cpu, False), (mx.gpu, True)])
def test_the_device_that_mlx_computes_on_decides_and_not_the_one_that_is_there(
    kind: mx.DeviceType, on_gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(kind))
    monkeypatch.setattr(mx.metal, "is_available", lambda: not on_gpu)
    assert _runs_ahead() == on_gpu
    assert (_chunk_tokens() == 512) == on_gpu


def test_memory_is_wired_once_for_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path, mx.float32)
    limits: list[int] = []
    monkeypatch.setattr(mx, "device_info", lambda: {"max_recommended_working_set_size": 1 << 30})
    monkeypatch.setattr(mx, "set_wired_limit", limits.append)
    wire_memory.cache_clear()
    try:
        engines = [open_engine(tmp_path, LoadOptions(), 32) for _ in range(2)]
        for engine in engines:
            engine.prefill([1, 2, 3])
            list(engine.generate(GenerationOptions(max_tokens=3)))
            engine.close()
    finally:
        wire_memory.cache_clear()
    assert limits == [1 << 30]


def test_closing_gives_back_the_buffers_that_mlx_keeps(tmp_path: Path) -> None:
    save_llama(tmp_path, mx.float32)
    engine = open_engine(tmp_path, LoadOptions(), 32)
    engine.prefill([1, 2, 3])
    del engine._model.layers[:]  # something for MLX to keep
    assert mx.get_cache_memory() > 0
    engine.close()
    assert mx.get_cache_memory() == 0


def test_loading_again_and_again_takes_no_more_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LLAMA, "num_hidden_layers", 24)
    save_llama(tmp_path, mx.float32)

    def resident_bytes(loads: int) -> int:
        for _ in range(loads):
            open_engine(tmp_path, LoadOptions(), 32).close()
        return psutil.Process().memory_info().rss

    before = resident_bytes(15)
    # The weights that each one has first, random and never used, would add 370 kB if they stayed uncomputed.
    assert resident_bytes(45) - before < 45 * 40_000


def test_threads_may_take_turns_where_a_pass_is_queued_ahead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_llama(tmp_path, mx.float32)
    monkeypatch.setattr("localq.engines.mlx._runs_ahead", lambda: True)
    options = GenerationOptions(max_tokens=12, temperature=1.0, repeat_penalty=1.2, seed=4)
    engine = open_engine(tmp_path, LoadOptions(), 64)
    engine.prefill([5, 6, 7])
    expected = list(engine.generate(options))
    engine.prefill([5, 6, 7])
    reply = engine.generate(options)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        assert [(one, other)[turn % 2].submit(next, reply).result() for turn in range(12)] == expected
