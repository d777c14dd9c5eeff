"""PhiMoE's facts, against mlx_lm."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localq.errors import CheckpointError
from localq.families.config import ModelConfig, parse_config
from localq.families.phimoe import FAMILY
from tests.tiny_checkpoints import CONFIGS, tensor_shapes

NAMES = [name for name, config in CONFIGS.items() if config["model_type"] == "phimoe"]
LONGROPE = CONFIGS["phi-3.5-moe"]["rope_scaling"]


def config_of(name: str, **changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS[name], **changes})


@pytest.mark.parametrize("name", NAMES)
def test_parts_and_single_tensors_together_are_those_of_the_checkpoint(name: str) -> None:
    layouts = FAMILY.tensors(config_of(name))
    shapes = {
        source: layout.shape[1:] if layout.parts else layout.shape for layout in layouts for source in layout.sources
    }
    assert shapes == dict(tensor_shapes(CONFIGS[name]))
    assert len({layout.gguf_name for layout in layouts}) == len(layouts)


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_builds_a_model_with_these_tensors(name: str) -> None:
    phimoe = pytest.importorskip("mlx_lm.models.phimoe")
    utils = pytest.importorskip("mlx.utils")
    model = phimoe.Model(phimoe.ModelArgs.from_dict(FAMILY.mlx_config(config_of(name))))
    shapes = {key: value.shape for key, value in utils.tree_flatten(model.parameters()) if "rope" not in key}
    assert shapes == {layout.mlx_name or layout.name: layout.shape for layout in FAMILY.tensors(config_of(name))}


def test_mlx_lm_stacks_the_experts_of_the_checkpoint_in_the_same_way() -> None:
    phimoe = pytest.importorskip("mlx_lm.models.phimoe")
    mx = pytest.importorskip("mlx.core")
    config = config_of("phi-3.5-moe")
    model = phimoe.Model(phimoe.ModelArgs.from_dict(FAMILY.mlx_config(config)))
    numbered = {name: mx.full(shape, i) for i, (name, shape) in enumerate(tensor_shapes(CONFIGS["phi-3.5-moe"]))}
    stacked = model.sanitize(dict(numbered))
    for layout in FAMILY.tensors(config):
        if layout.parts:
            ours = [numbered[part][0, 0].item() for part in layout.parts]
            assert np.array(stacked[layout.name])[:, 0, 0].tolist() == ours


def test_only_the_routers_stay_in_single_precision() -> None:
    kept = [layout.gguf_name for layout in FAMILY.tensors(config_of("phi-3.5-moe")) if layout.is_float32_in_gguf]
    assert kept == ["blk.0.ffn_gate_inp.weight", "blk.1.ffn_gate_inp.weight"]


def test_the_scale_of_longrope_is_that_of_llama_cpps_converter_and_a_caveat_where_the_model_has_another() -> None:
    config = config_of("phi-3.5-moe", rope_scaling={**LONGROPE, "short_mscale": 1.243, "long_mscale": 1.243})
    FAMILY.check(config)
    derived = FAMILY.gguf_metadata(config)["phimoe.rope.scaling.attn_factor"]
    assert derived == pytest.approx(1.0606601)
    assert any("1.061" in caveat and "1.243" in caveat for caveat in FAMILY.caveats(config))
    phimoe = pytest.importorskip("mlx_lm.models.phimoe")
    attention = phimoe.Attention(phimoe.ModelArgs.from_dict(FAMILY.mlx_config(config)))
    assert attention.rope._scale == 1.243  # MLX takes what the config states
    assert attention.rope.original_max_position_embeddings == 256
    same = config_of("phi-3.5-moe", rope_scaling={**LONGROPE, "short_mscale": derived, "long_mscale": derived})
    assert not any("1.061" in caveat for caveat in FAMILY.caveats(same))


def test_without_longrope_there_are_neither_factors_nor_a_scale() -> None:
    config = config_of("phi-mini-moe")
    assert FAMILY.gguf_extra_tensors(config) == {}
    assert "phimoe.rope.scaling.attn_factor" not in FAMILY.gguf_metadata(config)
    assert set(FAMILY.gguf_extra_tensors(config_of("phi-3.5-moe"))) == {
        "rope_factors_long.weight",
        "rope_factors_short.weight",
    }


def test_a_config_without_a_rotary_base_has_that_of_transformers() -> None:
    raw = {key: value for key, value in CONFIGS["phi-mini-moe"].items() if key != "rope_theta"}
    assert parse_config(raw).rope.theta == 1_000_000.0


def test_the_difference_of_llama_cpp_and_the_window_are_caveats() -> None:
    (routing,) = FAMILY.caveats(config_of("phi-3.5-moe"))
    assert "softmax" in routing and "GGUF" in routing
    assert "255 tokens" in FAMILY.caveats(config_of("phi-mini-moe"))[1]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": False}, "attention_bias False"),
        ({"lm_head_bias": False}, "lm_head_bias False"),
        ({"tie_word_embeddings": True}, "tied embeddings"),
        ({"num_experts_per_tok": 3}, "num_experts_per_tok 3"),
        ({"num_local_experts": 1}, "num_local_experts"),
        ({"num_local_experts": 10**12}, "num_local_experts"),
        ({"num_local_experts": None}, "num_local_experts"),
        ({"num_local_experts": "16"}, "num_local_experts"),
        ({"head_dim": 32}, "head width 32"),  # as Phi-tiny-MoE
        ({"sliding_window": "wide"}, "'wide'"),
        ({"rope_scaling": {**LONGROPE, "long_mscale": 1.3}}, "long_mscale 1.3"),
        ({"rope_scaling": {**LONGROPE, "short_mscale": None}}, "short_mscale"),
        ({"rope_scaling": {**LONGROPE, "short_mscale": math.inf}}, "short_mscale"),
        ({"rope_scaling": {**LONGROPE, "short_factor": [1.0] * 31}}, "short_factor"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
    ],
)
def test_variants_that_the_runtimes_would_run_incorrectly_are_refused(changes: dict[str, Any], named: str) -> None:
    FAMILY.check(config_of("phi-3.5-moe"))
    with pytest.raises(CheckpointError, match=named) as caught:
        FAMILY.check(config_of("phi-3.5-moe", **changes))
    assert caught.value.hint


def test_the_default_context_is_the_original_one() -> None:
    assert FAMILY.default_context_length(config_of("phi-3.5-moe")) == 256
    assert FAMILY.default_context_length(config_of("phi-mini-moe")) == 512
