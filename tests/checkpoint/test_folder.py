"""Checkpoint folders: every family opens, and every fault is named."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.checkpoint.folder import Checkpoint, open_checkpoint
from localq.checkpoint.source import resolve_checkpoint
from localq.checkpoint.tensors import to_float32
from localq.errors import CheckpointError, UnsupportedModelError
from localq.reference import parse_reference
from tests.tiny_checkpoints import (
    CONFIGS,
    MLX_CONFIGS,
    random_tensors,
    tensor_shapes,
    write_checkpoint,
    write_safetensors,
)

HEAD = "lm_head.weight"


def opened(folder: Path) -> Checkpoint:
    return open_checkpoint(folder, folder.name)


def failure(folder: Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        opened(folder)
    assert caught.value.hint
    return caught.value


def change_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    for key, value in changes.items():
        if value is None:
            del config[key]
        else:
            config[key] = value
    file.write_text(json.dumps(config))


def change_tensors(folder: Path, name: str, **changes: np.ndarray | None) -> None:
    tensors: dict[str, Any] = random_tensors(CONFIGS[name])
    for tensor, values in changes.items():
        if values is None:
            del tensors[tensor]
        else:
            tensors[tensor] = values
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "llama", "llama-3")


@pytest.mark.parametrize("name", CONFIGS | MLX_CONFIGS)
@pytest.mark.parametrize("shards", [1, 3])
def test_every_family_opens(tmp_path: Path, name: str, shards: int) -> None:
    checkpoint = opened(write_checkpoint(tmp_path, name, shards=shards))
    config = (CONFIGS | MLX_CONFIGS)[name]
    shapes = dict(tensor_shapes(config))
    parts = [
        (part, layout.shape[1:] if layout.parts else layout.shape, layout)
        for layout in checkpoint.layouts
        for part in layout.sources
    ]
    assert {part: shape for part, shape, _ in parts} == shapes
    assert len(parts) == len(shapes)
    assert all(checkpoint.tensor(layout).shape == layout.shape for layout in checkpoint.layouts)
    assert checkpoint.parameters == sum(int(np.prod(shape)) for shape in shapes.values())
    assert checkpoint.config.architecture == config["architectures"][0]
    assert {file.name for file in checkpoint.tokenizer_files()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    "key",
    [
        "model_type",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "vocab_size",
        "rms_norm_eps",
    ],
)
def test_a_missing_key_of_the_config_is_named(llama: Path, key: str) -> None:
    change_config(llama, **{key: None})
    assert f'"{key}"' in failure(llama).message


def test_a_missing_context_length_is_that_of_the_first_llama_and_named_elsewhere(llama: Path, tmp_path: Path) -> None:
    change_config(llama, max_position_embeddings=None)
    assert opened(llama).config.max_position_embeddings == 2048
    phi = write_checkpoint(tmp_path / "phi", "phi-4")
    change_config(phi, max_position_embeddings=None)
    assert '"max_position_embeddings"' in failure(phi).message


@pytest.mark.parametrize("value", ["256", 256.5, -256, 0, True, [256]], ids=repr)
def test_an_impossible_size_is_named_with_its_value(llama: Path, value: Any) -> None:
    change_config(llama, hidden_size=value)
    message = failure(llama).message
    assert '"hidden_size"' in message and repr(value) in message


@pytest.mark.parametrize("value", ["1e-5", float("nan"), float("inf"), -1e-5, 0, False], ids=repr)
def test_an_impossible_norm_epsilon_is_named(llama: Path, value: Any) -> None:
    change_config(llama, rms_norm_eps=value)
    assert '"rms_norm_eps"' in failure(llama).message


@pytest.mark.parametrize("value", ["false", 0, []], ids=repr)
def test_tied_embeddings_that_are_neither_true_nor_false_are_refused(llama: Path, value: Any) -> None:
    change_config(llama, tie_word_embeddings=value)
    assert '"tie_word_embeddings"' in failure(llama).message


def test_heads_that_the_key_value_heads_do_not_divide_are_refused(llama: Path) -> None:
    change_config(llama, num_key_value_heads=3)
    message = failure(llama).message
    assert '"num_key_value_heads"' in message and "3" in message and "4" in message


def test_an_odd_head_width_is_refused(llama: Path) -> None:
    change_config(llama, head_dim=33)
    assert '"head_dim"' in failure(llama).message


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\ufeff{}", "[" * 100_000])
def test_a_config_that_is_not_a_json_object_is_named(llama: Path, content: str) -> None:
    (llama / "config.json").write_text(content, encoding="utf-8")
    assert str(llama / "config.json") in failure(llama).message


def test_a_config_that_is_not_text_is_named(llama: Path) -> None:
    (llama / "config.json").write_bytes(b'{"\xff": 1}')
    assert str(llama / "config.json") in failure(llama).message


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_a_missing_file_is_named_with_its_folder(llama: Path, file: str) -> None:
    (llama / file).unlink()
    message = failure(llama).message
    assert str(llama) in message and file.split(".")[-1] in message


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "absent") in failure(tmp_path / "absent").message


def test_an_unknown_architecture_is_named_with_the_known_ones(llama: Path) -> None:
    change_config(llama, architectures=["MistralForCausalLM"])
    error = failure(llama)
    assert isinstance(error, UnsupportedModelError)
    assert "'MistralForCausalLM'" in error.message
    assert "LlamaForCausalLM" in error.hint and "Phi3ForCausalLM" in error.hint


@pytest.mark.parametrize("value", [[], "LlamaForCausalLM", [5]], ids=repr)
def test_a_config_without_an_architecture_says_so(llama: Path, value: Any) -> None:
    change_config(llama, architectures=value)
    assert '"architectures"' in failure(llama).message


def test_the_architecture_follows_from_the_model_type_where_the_config_has_none(llama: Path) -> None:
    change_config(llama, architectures=None)
    assert opened(llama).config.architecture == "LlamaForCausalLM"
    change_config(llama, model_type="other")
    assert '"architectures"' in failure(llama).message


@pytest.mark.parametrize(
    ("key", "quantization", "shown"),
    [
        ("quantization_config", {"quant_method": "hqq", "bits": 4}, "hqq"),
        ("quantization_config", {"quant_method": "aqlm"}, "aqlm"),
        ("quantization", {"group_size": 64, "bits": 4}, "MLX"),
    ],
)
def test_a_method_of_quantization_that_is_not_read_is_named(
    llama: Path, key: str, quantization: Any, shown: str
) -> None:
    change_config(llama, **{key: quantization})
    error = failure(llama)
    assert isinstance(error, UnsupportedModelError)
    assert shown in error.message


@pytest.mark.parametrize("dtype", ["I8", "U8", "F8_E4M3", "F64"])
def test_weights_of_another_dtype_are_refused_with_tensor_and_dtype(llama: Path, dtype: str) -> None:
    raw = (llama / "model.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    entry = header["model.norm.weight"]
    begin, end = entry["data_offsets"]
    added = {"F64": 8}.get(dtype, 1) * entry["shape"][0] - (end - begin)
    entry["dtype"] = dtype
    for other in header.values():
        offsets = other.get("data_offsets", [0, 0])
        other["data_offsets"] = [n + added if n > begin else n for n in offsets]
    del header["__metadata__"]
    text = json.dumps(header).encode()
    data = raw[8 + length :]
    data = data[:begin] + bytes(end - begin + added) + data[end:]
    (llama / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    error = failure(llama)
    assert isinstance(error, UnsupportedModelError)
    assert "model.norm.weight" in error.message and dtype in error.message


@pytest.mark.parametrize("tensor", ["model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight", HEAD])
def test_a_missing_tensor_is_named(llama: Path, tensor: str) -> None:
    change_tensors(llama, "llama-3", **{tensor: None})
    error = failure(llama)
    assert tensor in error.message
    assert ("tie_word_embeddings" in error.hint) == (tensor == HEAD)


def test_a_wrong_shape_is_named_with_both_shapes(llama: Path) -> None:
    change_tensors(llama, "llama-3", **{"model.norm.weight": np.ones(255, dtype=np.float32)})
    message = failure(llama).message
    assert all(part in message for part in ("model.norm.weight", "(255,)", "(256,)"))


def test_a_tensor_that_the_model_does_not_have_is_named(llama: Path) -> None:
    name = "model.layers.0.self_attn.q_proj.lora_A.weight"
    change_tensors(llama, "llama-3", **{name: np.ones((4, 4), dtype=np.float32)})
    assert name in failure(llama).message


def test_more_layers_than_the_config_says_are_refused(llama: Path) -> None:
    change_config(llama, num_hidden_layers=1)
    assert "model.layers.1." in failure(llama).message


@pytest.mark.parametrize("name", ["llama-3", "phi-3-4k"])
def test_saved_rotary_tables_are_skipped(tmp_path: Path, name: str) -> None:
    folder = write_checkpoint(tmp_path, name)
    before = opened(folder).parameters
    table = "model.layers.0.self_attn.rotary_emb.inv_freq"
    change_tensors(folder, name, **{table: np.ones(32, dtype=np.float32)})
    checkpoint = opened(folder)
    assert table not in {layout.name for layout in checkpoint.layouts}
    assert checkpoint.parameters == before


def test_a_tied_output_layer_is_not_counted_whether_it_is_saved_or_not(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama-3.2")
    without = opened(folder).parameters
    embedding = random_tensors(CONFIGS["llama-3.2"])["model.embed_tokens.weight"]
    change_tensors(folder, "llama-3.2", **{HEAD: embedding})
    checkpoint = opened(folder)
    assert checkpoint.parameters == without
    assert HEAD not in {layout.name for layout in checkpoint.layouts}


def test_an_untied_output_layer_is_needed_where_the_config_does_not_tie_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, "llama-3.2")
    change_config(folder, tie_word_embeddings=None)
    assert HEAD in failure(folder).message


def test_the_revision_of_a_folder_changes_with_its_files_only(llama: Path, tmp_path: Path) -> None:
    first = opened(llama).revision
    assert len(first) == 40 and int(first, 16) >= 0
    assert opened(llama).revision == first
    assert open_checkpoint(llama, "x", "a" * 40).revision == "a" * 40
    (llama / "notes.txt").write_text("nothing of the model's")
    assert opened(llama).revision == first
    seen = {first}
    for file in ("config.json", "tokenizer.json", "model.safetensors"):
        os.utime(llama / file, ns=(1, 1))
        seen.add(opened(llama).revision)
    (llama / "generation_config.json").write_text("{}")
    seen.add(opened(llama).revision)
    assert len(seen) == 5
    moved = opened(llama.rename(tmp_path / "moved"))
    assert moved.revision in seen


def test_a_reference_opens_a_folder_and_refuses_a_gguf_file(llama: Path, tmp_path: Path) -> None:
    checkpoint = resolve_checkpoint(parse_reference(str(llama)))
    assert (checkpoint.name, checkpoint.folder) == ("llama", llama)
    file = tmp_path / "x.gguf"
    file.touch()
    with pytest.raises(CheckpointError, match="x.gguf is a converted file") as caught:
        resolve_checkpoint(parse_reference(str(file)))
    assert caught.value.hint


def test_more_layers_than_tensors_are_refused_before_they_are_listed(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10**9}))
    with pytest.raises(CheckpointError, match="1000000000 layers"):
        open_checkpoint(folder, "model")


def with_output_layer(folder: Path, change: float) -> Path:
    """A tied checkpoint that has an output layer too."""
    tensors = random_tensors(CONFIGS["llama-3.2"])
    head = tensors["model.embed_tokens.weight"].copy()
    head[-1, -1] += change
    write_safetensors(folder / "model.safetensors", {**tensors, "lm_head.weight": head})
    return folder


def test_an_output_layer_that_was_trained_is_converted_although_the_config_ties_it(tmp_path: Path) -> None:
    checkpoint = opened(with_output_layer(write_checkpoint(tmp_path, "llama-3.2"), 0.25))
    assert not checkpoint.config.tied_embeddings
    assert "lm_head.weight" in {layout.name for layout in checkpoint.layouts}
    assert checkpoint.family.mlx_config(checkpoint.config)["tie_word_embeddings"] is False


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_saved_without_its_output_layer_has_names_without_a_prefix(tmp_path: Path, tied: bool) -> None:
    folder = write_checkpoint(tmp_path / "whole", "llama-3.2" if tied else "llama-3")
    expected = opened(folder)
    change_config(folder, architectures=["LlamaModel"])
    tensors = random_tensors(CONFIGS["llama-3.2" if tied else "llama-3"])
    write_safetensors(
        folder / "model.safetensors", {name.removeprefix("model."): values for name, values in tensors.items()}
    )
    checkpoint = opened(folder)
    assert checkpoint.layouts == expected.layouts
    with checkpoint.weights as weights:
        rows = to_float32(weights.read_rows("model.layers.1.mlp.down_proj.weight", 0, 3))
    assert np.array_equal(rows, tensors["model.layers.1.mlp.down_proj.weight"][:3])
