from __future__ import annotations

import math
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors import safe_open

from localq.conversion.convert import convert
from localq.errors import ModelFileError
from localq.json_files import read_json
from localq.measure import limits
from localq.measure.forms import Form, find_forms, form_of
from localq.measure.limits import bytes_per_token
from localq.model import load
from localq.options import LoadOptions
from tests.foreign_forms import GGUF_ARCHITECTURES, HEAD_WIDTH, KV_HEADS, LAYERS, write_gguf, write_mlx
from tests.tiny_checkpoints import write_checkpoint
from tests.tiny_tokenizers import byte_level_backend

_OPTIONS = LoadOptions()
_VOCABULARY = 768  # of the tiny checkpoints


def _form(reference: str | Path, models_dir: Path | None = None) -> Form:
    (form,) = find_forms([str(reference)], models_dir)
    return form


def _gguf_sizes(form: Form) -> dict[str, int]:
    """As gguf-py reads them, and not ggml."""
    file = form.path if form.path.is_file() else next(form.path.glob("*.gguf"))
    return {tensor.name: tensor.n_bytes for tensor in gguf.GGUFReader(file).tensors}


def _mlx_bytes(form: Form) -> dict[str, int]:
    """What the loaded network holds."""
    from mlx.utils import tree_flatten

    with load(form.path) as model:
        arrays = tree_flatten(model.engine._model.parameters())  # type: ignore[attr-defined]
    return {name: array.nbytes for name, array in arrays}


def _kv_bytes(form: Form, number_bytes: int) -> int:
    config = read_json(form.path / "config.json")
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * number_bytes


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_a_gguf_token_reads_the_weights_and_the_keys_and_values_before_it(toy: str) -> None:
    form = _form(f"{toy}:gguf-q4_k_m")
    sizes = _gguf_sizes(form)
    if "output.weight" in sizes:
        rows = read_json(form.path / "config.json")["vocab_size"]
        sizes["token_embd.weight"] //= rows
    assert bytes_per_token(form, _OPTIONS, 0) == sum(sizes.values())
    config = read_json(form.path / "config.json")
    kv_heads = config.get("num_key_value_heads") or config["num_attention_heads"]
    head_width = config["hidden_size"] // config["num_attention_heads"]
    numbers = 2 * config["num_hidden_layers"] * kv_heads * head_width
    assert bytes_per_token(form, _OPTIONS, 100) == sum(sizes.values()) + 100 * numbers * 2
    # In 8 bits they take a scale for 32 numbers as well; the estimate is that of MLX, for a few numbers more.
    in_8_bits = bytes_per_token(form, LoadOptions(kv_cache_type="q8_0"), 100)
    assert in_8_bits == sum(sizes.values()) + math.floor(numbers * 1.125) * 100


@pytest.mark.parametrize("recipe", ["mlx-4bit", "mlx-bf16", "mlx-f32"])
def test_an_mlx_token_reads_what_lies_in_memory(recipe: str, models_dir: Path) -> None:
    pytest.importorskip("mlx_lm")
    tied = _form(f"toy-llama:{recipe}")
    held = _mlx_bytes(tied)
    assert not any("lm_head" in name for name in held)  # so the embedding table is read whole
    assert bytes_per_token(tied, _OPTIONS, 0) == sum(held.values())
    on_gpu = limits.mlx_runs_on_gpu()
    number_bytes = 2 if on_gpu and recipe != "mlx-f32" else 4
    assert bytes_per_token(tied, _OPTIONS, 30) == sum(held.values()) + 30 * _kv_bytes(tied, number_bytes)


@pytest.mark.parametrize("recipe", ["mlx-4bit", "gguf-q4_k_m"])
def test_of_an_untied_embedding_table_a_token_reads_one_row(recipe: str, tmp_path: Path) -> None:
    form = _form(f"{write_checkpoint(tmp_path / 'model', 'phi-4')}:{recipe}", tmp_path / "models")
    sizes = _gguf_sizes(form) if recipe.startswith("gguf") else _mlx_bytes(form)
    whole = {name: nbytes for name, nbytes in sizes.items() if "embd" in name or "embed_tokens" in name}
    rest = sum(sizes.values()) - sum(whole.values())
    assert bytes_per_token(form, _OPTIONS, 0) == rest + sum(whole.values()) // _VOCABULARY


@pytest.mark.parametrize("recipe", ["mlx-4bit", "gguf-q4_k_m"])
def test_of_four_experts_a_token_reads_two(recipe: str, tmp_path: Path) -> None:
    form = _form(f"{write_checkpoint(tmp_path / 'model', 'phi-mini-moe')}:{recipe}", tmp_path / "models")
    sizes = _gguf_sizes(form) if recipe.startswith("gguf") else _mlx_bytes(form)
    experts = sum(nbytes for name, nbytes in sizes.items() if "_exps" in name or "switch_mlp" in name)
    table = sum(nbytes for name, nbytes in sizes.items() if "token_embd" in name or "embed_tokens" in name)
    assert experts > 0 and table > 0
    expected = sum(sizes.values()) - experts // 2 - table + table // _VOCABULARY
    assert bytes_per_token(form, _OPTIONS, 0) == expected


def test_on_a_gpu_halves_stay_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlx_lm")
    form = _form("toy-llama:mlx-4bit")
    monkeypatch.setattr(limits, "mlx_runs_on_gpu", lambda: True)
    monkeypatch.setattr("localq.memory.mlx_runs_on_gpu", lambda: True)
    monkeypatch.setattr("localq.memory.sys.platform", "darwin")
    (file,) = form.path.glob("*.safetensors")
    with safe_open(file, "numpy") as stored:
        slices = [stored.get_slice(name) for name in stored.keys()]  # noqa: SIM118 (no dictionary)
        widths = {"U32": 4, "BF16": 2}
        expected = sum(int(np.prod(part.get_shape())) * widths[part.get_dtype()] for part in slices)
    assert bytes_per_token(form, _OPTIONS, 0) == expected
    assert bytes_per_token(form, _OPTIONS, 7) == expected + 7 * _kv_bytes(form, 2)


@pytest.mark.parametrize("architecture", GGUF_ARCHITECTURES)
def test_a_gguf_file_of_any_architecture_has_a_limit(architecture: str, tmp_path: Path) -> None:
    form = _form(write_gguf(tmp_path / "model.gguf", architecture))
    sizes = _gguf_sizes(form)
    if "output.weight" in sizes:
        sizes["token_embd.weight"] //= byte_level_backend().get_vocab_size()
    kv_bytes = 0 if architecture == "mamba" else LAYERS * KV_HEADS * 2 * HEAD_WIDTH * 4
    assert bytes_per_token(form, _OPTIONS, 10) == sum(sizes.values()) + 10 * kv_bytes


def test_a_split_file_counts_with_all_its_parts(tmp_path: Path) -> None:
    whole = _form(write_gguf(tmp_path / "whole.gguf", "qwen2"))
    split = _form(write_gguf(tmp_path / "split.gguf", "qwen2", tensors_per_part=10))
    assert bytes_per_token(split, _OPTIONS, 5) == bytes_per_token(whole, _OPTIONS, 5)


@pytest.mark.parametrize("model_type", ["qwen2", "gemma3"])
def test_a_foreign_mlx_folder_has_a_limit(model_type: str, tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    form = _form(write_mlx(tmp_path / "model", model_type, 4))
    held = _mlx_bytes(form)
    if any("lm_head" in name for name in held):  # as mlx_lm leaves it of Gemma 3
        held = {name: nbytes // 416 if "embed_tokens" in name else nbytes for name, nbytes in held.items()}
    assert bytes_per_token(form, _OPTIONS, 0) == sum(held.values())


def test_a_model_whose_experts_are_not_told_is_refused(tmp_path: Path) -> None:
    metadata = {"llama.expert_count": 4, "llama.expert_used_count": 2}
    form = _form(write_gguf(tmp_path / "model.gguf", "llama", metadata))
    with pytest.raises(ModelFileError, match="the file has no experts"):
        bytes_per_token(form, _OPTIONS, 0)


def test_an_output_layer_of_an_unknown_name_leaves_no_limit(tmp_path: Path) -> None:
    pytest.importorskip("mlx_lm")
    folder = write_mlx(tmp_path / "model", "qwen2", None)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"tie_word_embeddings": true', '"tie_word_embeddings": false'))
    assert bytes_per_token(_form(folder), _OPTIONS, 0) is None


def test_what_runs_on_a_graphics_card_has_no_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (artifact,) = convert("toy-llama", "gguf-q4_k_m", models_dir=tmp_path)
    monkeypatch.setattr("localq.memory._runs_on_gpu", lambda form: True)
    monkeypatch.setattr("localq.memory.sys.platform", "linux")
    assert bytes_per_token(form_of(artifact), _OPTIONS, 0) is None
