"""Phi's facts, against mlx_lm."""

from __future__ import annotations

from typing import Any

import pytest

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import ModelConfig, parse_config
from localq.families.phi import FAMILY
from tests.tiny_checkpoints import CONFIGS

NAMES = [name for name, config in CONFIGS.items() if config["model_type"] == "phi"]


def config_of(name: str, **changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS[name], **changes})


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("changes", [{}, {"num_key_value_heads": 2, "rope_theta": 50000.0, "intermediate_size": 512}])
def test_mlx_lm_builds_this_model_from_the_mlx_config(name: str, changes: dict[str, Any]) -> None:
    phi = pytest.importorskip("mlx_lm.models.phi")
    utils = pytest.importorskip("mlx.utils")
    config = config_of(name, **changes)
    arguments = phi.ModelArgs.from_dict(FAMILY.mlx_config(config))
    assert arguments.rope_theta == config.rope.theta
    assert arguments.layer_norm_eps == config.norm_epsilon
    model = phi.Model(arguments)
    assert model.layers[0].self_attn.rope.dims == config.rotated_width
    shapes = {key: value.shape for key, value in utils.tree_flatten(model.parameters())}
    assert shapes == {layout.name: layout.shape for layout in FAMILY.tensors(config)}


@pytest.mark.parametrize(("name", "width"), [("phi-1.5", 32), ("phi-2", 32)])
def test_the_rotated_width_is_in_the_metadata(name: str, width: int) -> None:
    assert FAMILY.gguf_metadata(config_of(name))["phi2.rope.dimension_count"] == width


def test_a_config_without_a_rotated_share_has_that_of_transformers() -> None:
    raw = {key: value for key, value in CONFIGS["phi-1.5"].items() if key != "partial_rotary_factor"}
    assert parse_config(raw).rope.partial_rotary_factor == 0.5
    assert FAMILY.mlx_config(parse_config(raw))["partial_rotary_factor"] == 0.5


def test_what_llama_cpp_assumes_is_written_where_the_model_differs() -> None:
    assert "phi2.rope.freq_base" not in FAMILY.gguf_metadata(config_of("phi-2"))
    unusual = config_of("phi-2", rope_theta=50000.0, num_key_value_heads=2, intermediate_size=512)
    metadata = FAMILY.gguf_metadata(unusual)
    assert metadata["phi2.rope.freq_base"] == 50000.0
    assert metadata["phi2.attention.head_count_kv"] == 2
    assert metadata["phi2.feed_forward_length"] == 512


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_act": "silu"}, "'silu'"),
        ({"qk_layernorm": True}, "qk_layernorm True"),
        ({"tie_word_embeddings": True}, "tied embeddings"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"head_dim": 32}, "32"),
        ({"partial_rotary_factor": 0.3}, "19"),
        ({"partial_rotary_factor": 0.01}, "0"),
        ({"layer_norm_eps": None}, "layer_norm_eps"),
    ],
)
def test_variants_that_the_runtimes_would_run_incorrectly_are_refused(changes: dict[str, Any], named: str) -> None:
    FAMILY.check(config_of("phi-1.5"))
    with pytest.raises(CheckpointError, match=named) as caught:
        FAMILY.check(config_of("phi-1.5", **changes))
    assert caught.value.hint


def test_the_supported_value_is_named() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        FAMILY.check(config_of("phi-1.5", hidden_act="relu"))
    assert "gelu_new" in caught.value.hint
