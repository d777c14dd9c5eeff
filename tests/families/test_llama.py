"""Llama's facts, against mlx_lm and against the formula in double precision."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import ModelConfig, parse_config
from localq.families.llama import FAMILY
from tests.tiny_checkpoints import CONFIGS, tensor_shapes

NAMES = [name for name, config in CONFIGS.items() if config["model_type"] == "llama"]
LLAMA_3_2 = CONFIGS["llama-3.2"]["rope_scaling"]


def config_of(name: str, **changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS[name], **changes})


def test_only_queries_and_keys_change_the_order_of_rows() -> None:
    turned = {
        layout.name.split(".", 3)[3]: layout.rope_head_count
        for layout in FAMILY.tensors(config_of("llama-odd"))
        if layout.rope_head_count
    }
    assert turned == {
        "self_attn.q_proj.weight": 4,
        "self_attn.q_proj.bias": 4,
        "self_attn.k_proj.weight": 2,
        "self_attn.k_proj.bias": 2,
    }


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_reads_the_same_numbers_from_the_mlx_config(name: str) -> None:
    llama = pytest.importorskip("mlx_lm.models.llama")
    config = config_of(name)
    arguments = llama.ModelArgs.from_dict(FAMILY.mlx_config(config))
    assert arguments.hidden_size == config.hidden_size
    assert arguments.num_hidden_layers == config.layer_count
    assert arguments.num_attention_heads == config.head_count
    assert arguments.num_key_value_heads == config.kv_head_count
    assert (arguments.head_dim or config.hidden_size // config.head_count) == config.head_dim
    assert arguments.rope_theta == config.rope.theta
    assert arguments.tie_word_embeddings == config.tied_embeddings
    assert arguments.rms_norm_eps == config.norm_epsilon
    assert arguments.attention_bias == bool(CONFIGS[name].get("attention_bias"))
    assert (arguments.rope_scaling or {}).get("type", "default") == config.rope.type


@pytest.mark.parametrize("name", NAMES)
def test_mlx_lm_builds_a_model_with_these_tensors(name: str) -> None:
    llama = pytest.importorskip("mlx_lm.models.llama")
    utils = pytest.importorskip("mlx.utils")
    model = llama.Model(llama.ModelArgs.from_dict(FAMILY.mlx_config(config_of(name))))
    shapes = {key: value.shape for key, value in utils.tree_flatten(model.parameters()) if "rope" not in key}
    assert shapes == dict(tensor_shapes(CONFIGS[name]))


def test_the_mlx_config_says_that_embeddings_are_untied_where_the_checkpoint_does_not() -> None:
    raw = {key: value for key, value in CONFIGS["llama-3"].items() if key != "tie_word_embeddings"}
    assert FAMILY.mlx_config(parse_config(raw))["tie_word_embeddings"] is False


def test_a_list_of_layer_types_does_not_count_the_layers_in_mlx() -> None:
    assert "layer_types" not in FAMILY.mlx_config(config_of("llama-3", layer_types=["full_attention"]))


def test_the_first_llama_has_the_context_and_the_rotary_base_of_transformers() -> None:
    config = config_of("llama-1")
    assert (config.max_position_embeddings, config.rope.theta, config.kv_head_count) == (2048, 10000.0, 4)
    assert FAMILY.mlx_config(config)["max_position_embeddings"] == 2048


SCALINGS = [
    pytest.param(128, LLAMA_3_2, id="small"),
    pytest.param(128, {**LLAMA_3_2, "factor": 8.0, "original_max_position_embeddings": 8192}, id="Llama 3.1"),
    pytest.param(64, {**LLAMA_3_2, "factor": 32.0, "original_max_position_embeddings": 8192}, id="Llama 3.2"),
    pytest.param(64, {**LLAMA_3_2, "low_freq_factor": 2.0, "high_freq_factor": 3.0}, id="narrow band"),
]


def exact_factors(head_dim: int, theta: float, scaling: dict[str, Any]) -> list[float]:
    """The formula of the Llama 3.1 release, in double precision."""
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    factors = []
    for i in range(0, head_dim, 2):
        turns = scaling["original_max_position_embeddings"] * theta ** (-i / head_dim) / (2 * math.pi)
        share = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / (share + (1 - share) / scaling["factor"]))
    return factors


@pytest.mark.parametrize(("head_dim", "scaling"), SCALINGS)
def test_frequency_factors_are_those_of_the_exact_formula(head_dim: int, scaling: dict[str, Any]) -> None:
    config = config_of("llama-3", head_dim=head_dim, rope_scaling=scaling)
    (factors,) = FAMILY.gguf_extra_tensors(config).values()
    assert factors.dtype == np.float32 and factors.shape == (head_dim // 2,)
    np.testing.assert_allclose(factors, exact_factors(head_dim, 500000.0, scaling), rtol=2e-5)
    assert factors[0] == 1.0 and factors[-1] == scaling["factor"]


@pytest.mark.parametrize(("head_dim", "scaling"), SCALINGS)
def test_frequency_factors_are_those_of_mlx_lm(head_dim: int, scaling: dict[str, Any]) -> None:
    rope_utils = pytest.importorskip("mlx_lm.models.rope_utils")
    config = config_of("llama-3", head_dim=head_dim, rope_scaling=scaling)
    rope = rope_utils.Llama3RoPE(head_dim, base=500000.0, scaling_config=FAMILY.mlx_config(config)["rope_scaling"])
    (factors,) = FAMILY.gguf_extra_tensors(config).values()
    unscaled = 500000.0 ** (np.arange(0, head_dim, 2) / head_dim)
    np.testing.assert_allclose(factors, np.array(rope._freqs) / unscaled, rtol=1e-4)


@pytest.mark.parametrize("name", ["llama-2", "llama-2-linear", "llama-3"])
def test_other_scalings_have_no_frequency_factors(name: str) -> None:
    assert FAMILY.gguf_extra_tensors(config_of(name)) == {}


def test_linear_scaling_is_in_the_metadata() -> None:
    metadata = FAMILY.gguf_metadata(config_of("llama-2-linear"))
    assert metadata["llama.rope.scaling.type"] == "linear"
    assert metadata["llama.rope.scaling.factor"] == 2.0
    assert "llama.rope.scaling.type" not in FAMILY.gguf_metadata(config_of("llama-3.2"))


def test_a_separate_head_width_is_in_the_metadata() -> None:
    metadata = FAMILY.gguf_metadata(config_of("llama-odd"))
    assert {metadata[f"llama.{key}"] for key in ("rope.dimension_count", "attention.key_length")} == {32}


@pytest.mark.parametrize("kind", ["longrope", "su", "proportional", "mystery", "5"])
def test_other_rotary_scalings_are_refused_by_name(kind: str) -> None:
    shown = "longrope" if kind == "su" else kind
    with pytest.raises(UnsupportedModelError, match=f"'{shown}'") as caught:
        FAMILY.check(config_of("llama-3", rope_scaling={"rope_type": kind, "factor": 2.0}))
    assert "llama3" in caught.value.hint


YARN = CONFIGS["llama-yarn"]["rope_scaling"]


def test_yarn_is_in_the_metadata() -> None:
    metadata = FAMILY.gguf_metadata(config_of("llama-yarn"))
    assert metadata["llama.rope.scaling.type"] == "yarn"
    assert metadata["llama.rope.scaling.factor"] == 4.0
    assert metadata["llama.rope.scaling.original_context_length"] == 128


@pytest.mark.parametrize(
    ("key", "value", "taken"),
    [
        ("beta_fast", 24, 32),
        ("beta_slow", 2.0, 1.0),
        ("truncate", False, True),
        ("mscale", 0.7, 1.0),
        ("mscale_all_dim", 1.0, 0),
        ("extrapolation_factor", 2.0, 1),
        ("attention_factor", 1.0, 0.1 * math.log(4) + 1),
    ],
)
def test_a_setting_of_yarn_that_a_runtime_does_not_read_is_refused(key: str, value: Any, taken: Any) -> None:
    FAMILY.check(config_of("llama-yarn", rope_scaling={**YARN, key: taken}))
    with pytest.raises(UnsupportedModelError, match=f"{key}.*{value}") as caught:
        FAMILY.check(config_of("llama-yarn", rope_scaling={**YARN, key: value}))
    assert caught.value.hint


@pytest.mark.parametrize("key", ["factor", "original_max_position_embeddings"])
def test_yarn_without_what_it_needs_is_refused_by_the_missing_key(key: str) -> None:
    scaling = {name: value for name, value in YARN.items() if name != key}
    with pytest.raises(CheckpointError, match=key):
        FAMILY.check(config_of("llama-yarn", rope_scaling=scaling))


def test_dynamic_scaling_is_plain_rotation_up_to_the_maximum_context_and_a_caveat_says_so() -> None:
    rope_utils = pytest.importorskip("mlx_lm.models.rope_utils")
    mx = pytest.importorskip("mlx.core")
    config = config_of("llama-dynamic")
    dynamic = rope_utils.initialize_rope(64, 10000.0, False, FAMILY.mlx_config(config)["rope_scaling"], 512)
    plain = rope_utils.initialize_rope(64, 10000.0, False)
    values = mx.array(np.random.RandomState(0).standard_normal((1, 1, 512, 64)).astype(np.float32))
    np.testing.assert_array_equal(np.array(dynamic(values)), np.array(plain(values)))
    (sentence,) = FAMILY.caveats(config)
    assert "512 tokens" in sentence
    assert FAMILY.caveats(config_of("llama-3")) == ()


@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"])
def test_an_incomplete_llama_3_scaling_is_refused_by_its_missing_key(key: str) -> None:
    scaling = {name: value for name, value in LLAMA_3_2.items() if name != key}
    with pytest.raises(CheckpointError, match=key) as caught:
        FAMILY.check(config_of("llama-3", rope_scaling=scaling))
    assert caught.value.hint


@pytest.mark.parametrize("value", ["8", 0, -1.0, float("nan"), None, True, [2.0]], ids=repr)
@pytest.mark.parametrize("kind", ["linear", "llama3"])
def test_an_impossible_factor_is_refused_by_name(kind: str, value: Any) -> None:
    with pytest.raises(CheckpointError, match="factor") as caught:
        FAMILY.check(config_of("llama-3", rope_scaling={**LLAMA_3_2, "rope_type": kind, "factor": value}))
    assert caught.value.hint


def test_a_linear_scaling_without_a_factor_is_refused() -> None:
    with pytest.raises(CheckpointError, match="factor"):
        FAMILY.check(config_of("llama-3", rope_scaling={"rope_type": "linear"}))


@pytest.mark.parametrize(("low", "high"), [(4.0, 4.0), (4.0, 1.0)])
def test_a_frequency_band_that_is_empty_is_refused(low: float, high: float) -> None:
    scaling = {**LLAMA_3_2, "low_freq_factor": low, "high_freq_factor": high}
    with pytest.raises(CheckpointError, match="low_freq_factor.*high_freq_factor"):
        FAMILY.check(config_of("llama-3", rope_scaling=scaling))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"model_type": "mistral"}, "'mistral'"),
        ({"partial_rotary_factor": 0.5}, "0.5"),
        ({"draft_vocab_size": 32000}, "draft"),
        ({"layer_types": 5}, "5"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
    ],
)
def test_variants_that_the_runtimes_would_run_incorrectly_are_refused(changes: dict[str, Any], named: str) -> None:
    FAMILY.check(config_of("llama-3"))
    with pytest.raises(UnsupportedModelError, match=named) as caught:
        FAMILY.check(config_of("llama-3", **changes))
    assert caught.value.hint


def test_the_default_context_is_the_models_own_up_to_8192_tokens() -> None:
    assert FAMILY.default_context_length(config_of("llama-3")) == 512
    assert FAMILY.default_context_length(config_of("llama-3", max_position_embeddings=131072)) == 8192


def test_settings_of_yarn_are_written_where_the_config_has_them() -> None:
    rope = {**CONFIGS["llama-yarn"]["rope_scaling"], "beta_fast": 32, "beta_slow": 1}
    metadata = FAMILY.gguf_metadata(config_of("llama-yarn", rope_scaling=rope))
    assert metadata["llama.rope.scaling.yarn_beta_fast"] == 32.0
    assert metadata["llama.rope.scaling.yarn_beta_slow"] == 1.0
    assert not any("yarn_" in key for key in FAMILY.gguf_metadata(config_of("llama-yarn")))
