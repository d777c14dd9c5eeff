"""Phi-3's facts, against mlx_lm and against LongRoPE's formula."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import ModelConfig, parse_config
from localq.families.phi3 import FAMILY
from tests.tiny_checkpoints import CONFIGS, tensor_shapes

NAMES = [name for name, config in CONFIGS.items() if config["model_type"] == "phi3"]
LONGROPE = CONFIGS["phi-3.5"]["rope_scaling"]


def config_of(name: str, **changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS[name], **changes})


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_change_their_order(name: str) -> None:
    assert not any(layout.rope_head_count for layout in FAMILY.tensors(config_of(name)))


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_builds_this_model_from_the_mlx_config(name: str) -> None:
    phi3 = pytest.importorskip("mlx_lm.models.phi3")
    utils = pytest.importorskip("mlx.utils")
    config = config_of(name)
    arguments = phi3.ModelArgs.from_dict(FAMILY.mlx_config(config))
    assert arguments.original_max_position_embeddings == CONFIGS[name]["original_max_position_embeddings"]
    assert arguments.partial_rotary_factor == config.rope.partial_rotary_factor
    assert arguments.rope_theta == config.rope.theta
    assert (arguments.rope_scaling or {}).get("type", "default") == config.rope.type
    model = phi3.Model(arguments)
    shapes = {key: value.shape for key, value in utils.tree_flatten(model.parameters()) if "rope" not in key}
    assert shapes == dict(tensor_shapes(CONFIGS[name]))


@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"type": "default", "rope_theta": 10000.0}, {}, None])
@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_mlx_lm_accepts_a_scaling_that_is_null(key: str, scaling: Any) -> None:
    phi3 = pytest.importorskip("mlx_lm.models.phi3")
    arguments = phi3.ModelArgs.from_dict(FAMILY.mlx_config(config_of("phi-4", **{key: scaling})))
    assert not arguments.rope_scaling


@pytest.mark.parametrize("name", ["phi-3.5", "phi-4-mini"])
def test_the_attention_factor_is_that_of_mlx_lm(name: str) -> None:
    phi3 = pytest.importorskip("mlx_lm.models.phi3")
    config = config_of(name)
    attention = phi3.Attention(phi3.ModelArgs.from_dict(FAMILY.mlx_config(config)))
    factor = FAMILY.gguf_metadata(config)["phi3.rope.scaling.attn_factor"]
    assert factor == pytest.approx(attention.rope._scale, rel=1e-12)
    assert factor == pytest.approx(math.sqrt(1 + math.log(512 / 256) / math.log(256)), rel=1e-12)
    assert attention.rope.dim == FAMILY.gguf_metadata(config)["phi3.rope.dimension_count"]


def test_a_context_that_was_not_stretched_has_an_attention_factor_of_one() -> None:
    config = config_of("phi-3.5", original_max_position_embeddings=512)
    assert FAMILY.gguf_metadata(config)["phi3.rope.scaling.attn_factor"] == 1.0


@pytest.mark.parametrize("name", NAMES)
def test_both_lists_of_factors_are_written_and_nothing_else(name: str) -> None:
    extra = FAMILY.gguf_extra_tensors(config_of(name))
    scaling = CONFIGS[name].get("rope_scaling")
    expected = (
        {f"rope_factors_{kind}.weight": scaling[f"{kind}_factor"] for kind in ("long", "short")} if scaling else {}
    )
    assert set(extra) == set(expected)
    for key, values in expected.items():
        np.testing.assert_array_equal(extra[key], np.array(values, dtype=np.float32))


@pytest.mark.parametrize("name", NAMES)
def test_a_model_without_a_sliding_window_has_a_zero_in_the_metadata(name: str) -> None:
    window = FAMILY.gguf_metadata(config_of(name))["phi3.attention.sliding_window"]
    assert window == (CONFIGS[name]["sliding_window"] or 0)


@pytest.mark.parametrize("kind", ["linear", "llama3", "yarn", "dynamic"])
def test_other_rotary_scalings_are_refused_by_name(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"'{kind}'") as caught:
        FAMILY.check(config_of("phi-4", rope_scaling={"type": kind, "factor": 2.0}))
    assert "longrope" in caught.value.hint


@pytest.mark.parametrize("name", ["phi-3.5", "phi-4-mini"])
@pytest.mark.parametrize("key", ["short_factor", "long_factor"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        [1.0] * 31,
        [1.0] * 33,
        "ones",
        1.0,
        ["1.0"] * 32,
        [math.nan] * 32,
        [0.0] * 32,
        [-1.0] * 32,
        [True] * 32,
    ],
    ids=lambda value: repr(value)[:12],
)
def test_factors_that_are_missing_or_impossible_are_refused_by_name(name: str, key: str, value: Any) -> None:
    if isinstance(value, list) and len(value) == 32 and name == "phi-4-mini":
        value = value[:24]
    scaling = {**CONFIGS[name]["rope_scaling"], key: value}
    with pytest.raises(CheckpointError, match=key) as caught:
        FAMILY.check(config_of(name, rope_scaling=scaling))
    assert caught.value.hint


def test_a_wrong_number_of_factors_is_named_with_the_right_one() -> None:
    with pytest.raises(CheckpointError, match=r"31.*\b32\b"):
        FAMILY.check(config_of("phi-3.5", rope_scaling={**LONGROPE, "long_factor": [1.0] * 31}))


@pytest.mark.parametrize("value", [None, 1], ids=repr)
def test_longrope_needs_the_original_context(value: Any) -> None:
    with pytest.raises(CheckpointError, match="original_max_position_embeddings") as caught:
        FAMILY.check(config_of("phi-3.5", original_max_position_embeddings=value))
    assert caught.value.hint


@pytest.mark.parametrize("key", ["attention_factor", "short_mscale", "long_mscale", "factor"])
def test_a_longrope_scale_that_the_runtimes_would_not_use_is_refused(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"{key}.*1.25") as caught:
        FAMILY.check(config_of("phi-3.5", rope_scaling={**LONGROPE, key: 1.25}))
    assert caught.value.hint


def test_a_longrope_factor_that_follows_from_both_lengths_is_accepted() -> None:
    FAMILY.check(config_of("phi-3.5", rope_scaling={**LONGROPE, "factor": 2.0, "attention_factor": None}))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"model_type": "llama"}, "'llama'"),
        ({"head_dim": 32}, "32"),
        ({"partial_rotary_factor": 0.3}, "19"),
        ({"partial_rotary_factor": 1.5}, "1.5"),
        ({"sliding_window": "wide"}, "'wide'"),
    ],
)
def test_variants_that_the_runtimes_would_run_incorrectly_are_refused(changes: dict[str, Any], named: str) -> None:
    FAMILY.check(config_of("phi-4"))
    with pytest.raises(CheckpointError, match=named) as caught:
        FAMILY.check(config_of("phi-4", **changes))
    assert caught.value.hint


def test_a_window_that_no_runtime_uses_is_a_caveat() -> None:
    (sentence,) = FAMILY.caveats(config_of("phi-3-4k", sliding_window=100))
    assert "100 tokens" in sentence
    assert FAMILY.caveats(config_of("phi-3-4k", sliding_window=512)) == FAMILY.caveats(config_of("phi-4")) == ()


def test_the_default_context_is_the_original_one_up_to_8192_tokens() -> None:
    assert FAMILY.default_context_length(config_of("phi-3.5")) == 256
    long = config_of("phi-4", max_position_embeddings=16384, original_max_position_embeddings=16384)
    assert FAMILY.default_context_length(long) == 8192
    assert FAMILY.default_context_length(config_of("phi-4", original_max_position_embeddings=None)) == 512


def test_an_original_context_that_llama_cpp_rounds_is_a_caveat() -> None:
    even, uneven = (
        config_of("phi-3.5", sliding_window=None, original_max_position_embeddings=length) for length in (256, 250)
    )
    assert FAMILY.caveats(even) == ()
    (caveat,) = FAMILY.caveats(uneven)
    assert "250" in caveat and "multiples of 256" in caveat
