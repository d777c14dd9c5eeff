"""MLX conversion against mlx_lm's own quantization of the same checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint.folder import open_checkpoint
from localq.conversion import plan_mlx as plans
from localq.conversion.convert import convert
from localq.conversion.plan_gguf import plan_gguf
from localq.recipes import RECIPES
from tests.tiny_checkpoints import CONFIGS, random_tensors, write_checkpoint

mx = pytest.importorskip("mlx.core")
mlx_utils = pytest.importorskip("mlx_lm.utils")

from mlx.utils import tree_flatten  # noqa: E402


def make(folder: Path, recipe: str, models: Path) -> Path:
    return convert(str(folder), [recipe], models_dir=models)[0].path


def parameters(model: object) -> dict[str, object]:
    return dict(tree_flatten(model.parameters()))  # type: ignore[attr-defined]


def assert_same_arrays(made: dict[str, object], expected: dict[str, object]) -> None:
    assert made.keys() == expected.keys()
    for name, array in expected.items():
        assert made[name].dtype == array.dtype, name  # type: ignore[attr-defined]
        assert mx.array_equal(made[name], array), name


@pytest.mark.parametrize(
    ("recipe", "bits", "group"), [("mlx-4bit", 4, 64), ("mlx-8bit", 8, 64), ("mlx-3bit-g32", 3, 32)]
)
@pytest.mark.parametrize("name", ["llama-3.2", "llama-odd", "phi-3.5"])
def test_quantized_weights_equal_mlx_lms(name: str, recipe: str, bits: int, group: int, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / name, name)
    artifact = make(folder, recipe, tmp_path / "models")
    # The artifact's own config: mlx_lm reads only the keys of transformers 4, which localq writes out.
    config = json.loads((artifact / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
    expected, config = mlx_utils.load_model(folder, model_config=config)
    expected, _ = mlx_utils.quantize_model(expected, config, group, bits)
    made, loaded_config = mlx_utils.load_model(artifact)
    assert_same_arrays(parameters(made), parameters(expected))
    assert loaded_config["quantization"] == {"group_size": group, "bits": bits, "mode": "affine"}


@pytest.mark.parametrize("mode", ["mxfp4", "mxfp8", "nvfp4"])
def test_small_floats_equal_mlx_lms(mode: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-4")
    artifact = make(folder, f"mlx-{mode}", tmp_path / "models")
    made, config = mlx_utils.load_model(artifact)
    how = RECIPES[f"mlx-{mode}"].quantization  # type: ignore[union-attr]
    assert how is not None
    plain = {key: value for key, value in config.items() if not key.startswith("quantization")}
    expected, _ = mlx_utils.load_model(folder, model_config=plain)
    expected, _ = mlx_utils.quantize_model(expected, plain, how.group_size, how.bits, mode=mode)
    assert_same_arrays(parameters(made), parameters(expected))


@pytest.mark.parametrize("layers", [2, 11, 16])
@pytest.mark.parametrize("name", ["llama-3", "llama-3.2", "phi-4", "phi-4-mini", "phi-3.5-moe"])
def test_a_mix_spends_its_bits_as_q4_k_m_does(
    name: str, layers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIGS, "deep", {**CONFIGS[name], "num_hidden_layers": layers})
    monkeypatch.setattr("tests.tiny_checkpoints.CONFIGS", {**CONFIGS, "deep": CONFIGS["deep"]})
    checkpoint = open_checkpoint(write_checkpoint(tmp_path / "deep", "deep"), "deep")
    gguf = {tensor.name: tensor.type_name for tensor in plan_gguf(checkpoint, RECIPES["gguf-q4_k_m"]).tensors}  # type: ignore[arg-type]
    mlx = plans.plan_mlx(checkpoint, RECIPES["mlx-mixed-4-6"])  # type: ignore[arg-type]
    bits = {"q4_K": 4, "q5_K": 5, "q6_K": 6, "f32": None}
    for tensor in mlx.tensors:
        made = tensor.quantization.bits if tensor.quantization else None
        is_fused = "qkv_proj" in tensor.name  # too large to be raised for the values in it
        assert made == (4 if is_fused else bits[gguf[tensor.layout.gguf_name]]), tensor.name
    assert {4, 6} <= {tensor.quantization.bits for tensor in mlx.tensors if tensor.quantization}


@pytest.mark.parametrize("name", ["llama-3.2", "phi-3.5"])
def test_stock_mlx_lm_loads_a_mix(name: str, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", name)
    artifact = make(folder, "mlx-mixed-3-6", tmp_path / "models")
    made, config = mlx_utils.load_model(artifact)
    embedding = config["quantization"].get("model.embed_tokens")
    assert (embedding or {}).get("bits") == (6 if CONFIGS[name]["tie_word_embeddings"] else None)
    whole, _ = mlx_utils.load_model(make(folder, "mlx-f32", tmp_path / "models"))
    tokens = mx.array([[1, 2, 3, 4, 5, 6]])
    differences = [
        mx.abs(model(tokens).astype(mx.float32) - whole(tokens)).mean().item()
        for model in (made, mlx_utils.load_model(make(folder, "mlx-3bit", tmp_path / "models"))[0])
    ]
    assert 0 < differences[0] < differences[1]


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F32"])
@pytest.mark.parametrize("recipe", ["mlx-bf16", "mlx-f16", "mlx-f32"])
def test_floating_forms_hold_the_checkpoints_values(recipe: str, dtype: str, tmp_path: Path) -> None:
    artifact = make(write_checkpoint(tmp_path / "model", "phi-4", dtype=dtype), recipe, tmp_path / "models")
    made = mx.load(str(artifact / "model.safetensors"))
    expected = random_tensors(CONFIGS["phi-4"])
    assert made.keys() == expected.keys()
    wanted = {"mlx-bf16": mx.bfloat16, "mlx-f16": mx.float16, "mlx-f32": mx.float32}[recipe]
    for name, values in expected.items():
        assert made[name].dtype == wanted
        assert np.array_equal(np.array(made[name].astype(mx.float32)), values)


def test_rows_that_fit_no_group_stay_as_they_are_as_in_mlx_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CONFIGS, "odd", {**CONFIGS["llama-3"], "intermediate_size": 544})
    artifact = make(write_checkpoint(tmp_path / "odd", "odd"), "mlx-4bit", tmp_path / "models")
    made, _ = mlx_utils.load_model(artifact)
    names = parameters(made).keys()
    assert "model.layers.0.mlp.gate_proj.scales" in names
    assert "model.layers.0.mlp.down_proj.scales" not in names


def test_big_models_are_written_in_shards_that_mlx_lm_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    whole, _ = mlx_utils.load_model(make(folder, "mlx-4bit", tmp_path / "whole"))
    monkeypatch.setattr(plans, "MLX_LARGEST_SHARD_BYTES", 200_000)
    artifact = make(folder, "mlx-4bit", tmp_path / "sharded")
    shards = sorted(artifact.glob("model-*.safetensors"))
    assert len(shards) > 2
    index = json.loads((artifact / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    sharded, _ = mlx_utils.load_model(artifact)
    assert_same_arrays(parameters(sharded), parameters(whole))


def test_stock_mlx_lm_loads_the_artifact_with_its_tokenizer(tmp_path: Path) -> None:
    from mlx_lm import load

    folder = write_checkpoint(tmp_path / "model", "llama-3.2")
    model, tokenizer = load(str(make(folder, "mlx-4bit", tmp_path / "models")))
    logits = model(mx.array([tokenizer.encode("the quick brown fox")]))
    assert logits.shape[-1] == CONFIGS["llama-3.2"]["vocab_size"]
