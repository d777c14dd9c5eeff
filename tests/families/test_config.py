"""Both transformers generations' spellings of a config mean the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from localq.errors import CheckpointError
from localq.families.config import ModelConfig, parse_config
from localq.families.table import find_family
from localq.json_files import read_optional_json
from tests.tiny_checkpoints import CONFIGS

ROPE_KEYS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "partial_rotary_factor",
    "original_max_position_embeddings",
)


def without_raw(config: ModelConfig) -> ModelConfig:
    parameters = {
        key: value
        for key, value in config.rope.parameters.items()
        if key not in ("type", "rope_type", "rope_theta", "partial_rotary_factor")
    }
    return replace(config, raw={}, rope=replace(config.rope, parameters=parameters))


def as_transformers_5(raw: dict[str, Any]) -> dict[str, Any]:
    scaling = {**(raw.get("rope_scaling") or raw.get("rope_parameters") or {})}
    kind = scaling.pop("type", scaling.pop("rope_type", "default"))
    parameters = {"rope_theta": raw.get("rope_theta", 10000.0), "rope_type": kind, **scaling}
    for key in ("partial_rotary_factor", "original_max_position_embeddings"):
        if key in raw:
            parameters[key] = raw[key]
    return {key: value for key, value in raw.items() if key not in ROPE_KEYS} | {"rope_parameters": parameters}


@pytest.mark.parametrize("name", CONFIGS)
def test_both_generations_of_transformers_spell_the_same_config(name: str) -> None:
    raw = CONFIGS[name]
    assert without_raw(parse_config(as_transformers_5(raw))) == without_raw(parse_config(raw))


@pytest.mark.parametrize("name", CONFIGS)
def test_the_other_generation_gives_the_same_metadata(name: str) -> None:
    family = find_family(CONFIGS[name]["architectures"][0])
    old, new = parse_config(CONFIGS[name]), parse_config(as_transformers_5(CONFIGS[name]))
    for config in (old, new):
        family.check(config)
    assert family.gguf_metadata(new) == family.gguf_metadata(old)
    for key, value in family.gguf_extra_tensors(old).items():
        assert value.tolist() == family.gguf_extra_tensors(new)[key].tolist()


def config_with(**changes: Any) -> ModelConfig:
    return parse_config({**CONFIGS["llama-3"], **changes})


def test_type_and_rope_type_mean_the_same() -> None:
    old, new = (config_with(rope_scaling={key: "linear", "factor": 2.0}) for key in ("type", "rope_type"))
    assert old.rope.type == new.rope.type == "linear"


def test_su_is_the_old_name_of_longrope() -> None:
    assert config_with(rope_scaling={"type": "su", "short_factor": [], "long_factor": []}).rope.type == "longrope"


def test_rope_scaling_wins_over_rope_parameters_as_in_transformers() -> None:
    scaling, parameters = {"rope_type": "linear", "factor": 2.0}, {"rope_type": "default", "rope_theta": 5.0}
    assert config_with(rope_scaling=scaling, rope_parameters=parameters).rope.type == "linear"


@pytest.mark.parametrize("scaling", [None, {}])
def test_no_scaling_is_the_default_type(scaling: Any) -> None:
    rope = config_with(rope_scaling=scaling).rope
    assert (rope.type, rope.theta, rope.partial_rotary_factor) == ("default", 500000.0, 1.0)


def test_a_config_without_a_rope_theta_has_that_of_transformers() -> None:
    raw = {key: value for key, value in CONFIGS["llama-2"].items() if key != "rope_theta"}
    assert parse_config(raw).rope.theta == 10000.0


def test_key_value_heads_and_head_width_follow_from_the_heads_where_they_are_missing() -> None:
    raw = {key: value for key, value in CONFIGS["llama-3"].items() if key != "num_key_value_heads"}
    assert (parse_config(raw).kv_head_count, parse_config(raw).head_dim) == (4, 64)
    assert config_with(head_dim=None).head_dim == 64


@pytest.mark.parametrize("key", ["rope_theta", "partial_rotary_factor"])
@pytest.mark.parametrize("value", ["big", -1.0, 0, float("nan"), float("inf"), [1.0], True], ids=repr)
@pytest.mark.parametrize("inside", [False, True])
def test_an_impossible_number_in_the_rotary_settings_is_named(key: str, value: Any, inside: bool) -> None:
    settings = {key: value}
    with pytest.raises(CheckpointError, match=key) as caught:
        config_with(**({"rope_parameters": {"rope_type": "default", **settings}} if inside else settings))
    assert caught.value.hint


@pytest.mark.parametrize("value", ["long", -1, 0, 1.5, True], ids=repr)
@pytest.mark.parametrize("inside", [False, True])
def test_an_impossible_original_context_is_named(value: Any, inside: bool) -> None:
    settings = {"original_max_position_embeddings": value}
    with pytest.raises(CheckpointError, match="original_max_position_embeddings"):
        config_with(**({"rope_scaling": {"rope_type": "llama3", **settings}} if inside else settings))


def test_two_original_contexts_that_differ_are_refused_with_both() -> None:
    scaling = {"rope_type": "llama3", "original_max_position_embeddings": 128}
    with pytest.raises(CheckpointError, match="128.*256|256.*128"):
        config_with(rope_scaling=scaling, original_max_position_embeddings=256)


@pytest.mark.parametrize("scaling", ["linear", [1], 2.0], ids=repr)
def test_a_scaling_that_is_not_an_object_is_refused(scaling: Any) -> None:
    with pytest.raises(CheckpointError, match="rope_scaling") as caught:
        config_with(rope_scaling=scaling)
    assert caught.value.hint


@pytest.mark.parametrize("scaling", [{"factor": 2.0}, {"full_attention": {"rope_type": "llama3"}}])
def test_a_scaling_without_a_type_is_refused(scaling: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="rope_type"):
        config_with(rope_scaling=scaling)


def test_an_optional_file_that_is_missing_is_empty(tmp_path: Path) -> None:
    assert read_optional_json(tmp_path / "generation_config.json") == {}


def test_the_memory_of_a_context_counts_keys_and_values_of_every_layer() -> None:
    # 2 layers, 2 key-value heads of 64, keys and values, 2 bytes
    assert parse_config(CONFIGS["llama-3"]).kv_cache_bytes_per_token == 2 * 2 * 64 * 2 * 2
    assert parse_config(CONFIGS["phi-2"]).kv_cache_bytes_per_token == 2 * 4 * 80 * 2 * 2


def test_a_text_config_that_is_null_means_none_and_stays_out_of_mlx_configs() -> None:
    raw = CONFIGS["llama-3"]
    with_null = parse_config({**raw, "text_config": None})
    family = find_family(with_null.architecture)
    family.check(with_null)
    assert family.mlx_config(with_null) == family.mlx_config(parse_config(raw))
