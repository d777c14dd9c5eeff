"""Forms of a shape with random weights, against real conversions of a checkpoint of that shape."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import psutil
import pytest

from localq.checkpoint import tensors
from localq.checkpoint.safetensors_header import read_header
from localq.conversion.convert import convert
from localq.errors import EngineError, OptionError, StoreError
from localq.generation import TextRules, complete
from localq.measure import shapes
from localq.measure.forms import Form
from localq.measure.shapes import shape_forms
from localq.memory import RUNTIME_BYTES
from localq.model import open_form
from localq.options import GenerationOptions, LoadOptions
from localq.store.layout import MANIFEST_NAME
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from localq.text.gguf_tokenizer import load_gguf_tokenizer
from localq.text.tokenizer import load_tokenizer
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

NAMES = ["llama-3.2", "llama-odd", "phi-2", "phi-4-mini", "phi-3.5-moe"]
OPTIONS = LoadOptions(context_length=64)


@pytest.fixture(autouse=True)
def _tiny_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shapes, "_table", lambda: CONFIGS)


@contextmanager
def only_form(name: str, recipe: str, models: Path) -> Iterator[Form]:
    with shape_forms(name, recipe, OPTIONS, models_dir=models) as (form,):
        yield form


def gguf_file(folder: Path) -> Path:
    return next(folder.glob("*.gguf"))


def gguf_tensors(folder: Path) -> list[tuple[str, list[int], str, int]]:
    """Name, shape, type and bytes, in file order."""
    read = gguf.GGUFReader(gguf_file(folder)).tensors
    return [(t.name, t.shape.tolist(), t.tensor_type.name, int(t.n_bytes)) for t in read]


def gguf_hyperparameters(folder: Path) -> dict[str, Any]:
    fields = gguf.GGUFReader(gguf_file(folder)).fields
    kept = {key: field.contents() for key, field in fields.items() if not key.startswith(("tokenizer.", "GGUF."))}
    del kept["general.name"]
    return kept


def mlx_tensors(folder: Path) -> list[tuple[str, str, tuple[int, ...], int]]:
    """Name, type, shape and bytes, in file order."""
    (file,) = folder.glob("model*.safetensors")
    return [(t.name, t.dtype, t.shape, t.nbytes) for t in read_header(file)]


def mlx_config(folder: Path) -> dict[str, Any]:
    config = json.loads((folder / "config.json").read_text())
    scaling = config.get("rope_scaling") or {}
    for made_up in ("short_factor", "long_factor"):
        scaling.pop(made_up, None)
    return {key: value for key, value in config.items() if key not in ("bos_token_id", "eos_token_id")}


@pytest.mark.parametrize("name", NAMES)
def test_forms_have_the_tensors_types_and_sizes_of_conversions(name: str, tmp_path: Path) -> None:
    recipes = ["gguf-q4_k_m", "gguf-iq4_nl", "gguf-q2_k", "gguf-q8_0", "gguf-bf16"]
    recipes += ["mlx-4bit", "mlx-3bit-g32", "mlx-mixed-4-6", "mlx-mxfp4", "mlx-bf16"]
    facts = {"gguf": (gguf_tensors, gguf_hyperparameters), "mlx": (mlx_tensors, mlx_config)}
    converted = convert(write_checkpoint(tmp_path / name, name), recipes, models_dir=tmp_path / "models")
    with shape_forms(name, recipes, OPTIONS, models_dir=tmp_path / "models") as forms:
        for form, artifact in zip(forms, converted, strict=True):
            for fact in facts[form.format]:
                assert fact(form.path) == fact(artifact.folder)
            assert form.bits_per_weight == artifact.manifest.bits_per_weight


@pytest.mark.parametrize("name", NAMES)
def test_a_form_computes_finite_logits_and_generates_as_many_tokens_as_are_wanted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 4096)  # so that matrices repeat a piece
    recipes = ["gguf-q4_k_m", "gguf-f16", "mlx-4bit", "mlx-bf16"]
    with shape_forms(name, recipes, OPTIONS, models_dir=tmp_path) as forms:
        for form in forms:
            with open_form(form.path, OPTIONS) as model:
                assert model.tokenizer.vocabulary_size == CONFIGS[name]["vocab_size"]
                assert not model.end_tokens
                rules, options = TextRules(model.tokenizer), GenerationOptions(max_tokens=12)
                assert len(complete(model.engine, rules, range(500, 532), options).generated_token_ids) == 12
                logits = np.asarray(model.engine.logits())
                assert np.isfinite(logits).all() and logits.std() > 0


def test_matrices_are_like_those_of_a_new_model_and_norms_let_values_through(tmp_path: Path) -> None:
    with only_form("phi-2", "gguf-q8_0", tmp_path) as form:
        for tensor in gguf.GGUFReader(gguf_file(form.path)).tensors:
            values = gguf.dequantize(tensor.data, tensor.tensor_type)
            if len(tensor.shape) > 1:
                assert values.mean() == pytest.approx(0, abs=0.001) and values.std() == pytest.approx(0.02, rel=0.05)
            else:
                assert (values == (1 if tensor.name.endswith(".weight") else 0)).all(), tensor.name


def test_each_type_and_row_length_is_quantized_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from localq.conversion import ggml

    quantized = []
    plain = ggml.quantize_rows

    def counting(ggml_type: int, values: np.ndarray, importance: None = None) -> np.ndarray:
        quantized.append((ggml_type, *values.shape))
        return plain(ggml_type, values, importance)

    monkeypatch.setattr(ggml, "quantize_rows", counting)
    monkeypatch.setattr(tensors, "PIECE_ELEMENTS", 4096)
    with only_form("llama-2", "gguf-q4_0", tmp_path):
        matrices = [kind for kind in quantized if kind[1] > 1]
    # In pieces of 16 rows of 256 and 8 rows of 512; threads that begin together may each quantize the first one.
    assert {kind[1:] for kind in matrices} == {(64, 256), (16, 256), (8, 512)}
    assert len(matrices) < 40 < 2 * (7 * 256 * 256 + 3 * 256 * 512) / 4096


def test_both_engines_read_the_same_made_up_vocabulary(tmp_path: Path) -> None:
    text = "How fast would it be?\nÜber 10 tokens, I hope."
    with only_form("llama-3.2", "gguf-q8_0", tmp_path) as form:
        tokenizer, of_llama_cpp = load_tokenizer(form.path), load_gguf_tokenizer(gguf_file(form.path))
        ids = tokenizer.encode(text, add_special_tokens=True)
        assert tokenizer.decode(ids) == text
        assert of_llama_cpp.encode(text, add_special_tokens=True) == ids
        assert of_llama_cpp.vocabulary_size == tokenizer.vocabulary_size == CONFIGS["llama-3.2"]["vocab_size"]


def test_forms_come_in_the_order_of_the_recipes_and_by_the_shapes_name(tmp_path: Path) -> None:
    recipes = ["gguf-q8_0", "mlx-4bit", "gguf-q4_0"]
    with shape_forms("LLAMA-3", recipes, OPTIONS, models_dir=tmp_path) as forms:
        assert [form.name for form in forms] == [f"llama-3:{recipe}" for recipe in recipes]
        for form in forms:
            sizes = [file.stat().st_size for file in form.path.iterdir() if file.name != MANIFEST_NAME]
            assert form.artifact_bytes == sum(sizes)


def left_in(models: Path) -> list[str]:
    return [path.name for path in models.iterdir() if path.name != ".locks"]


def test_nobody_else_sees_the_forms_and_they_are_gone_at_the_end_or_after_an_error(tmp_path: Path) -> None:
    with shape_forms("llama-3", None, OPTIONS, models_dir=tmp_path) as forms:
        assert len(forms) == 2 and left_in(tmp_path) == ["llama-3"]
        assert Store(tmp_path).artifacts() == [] and Store(tmp_path).damaged() == []
        assert remove_leftovers(Store(tmp_path)) == []
    assert left_in(tmp_path) == []
    with pytest.raises(RuntimeError), only_form("llama-3", "gguf-q4_0", tmp_path):
        raise RuntimeError
    assert left_in(tmp_path) == []


def test_they_are_gone_after_an_error_while_they_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("localq.conversion.gguf.GgufFile._write", interrupted)
    with pytest.raises(KeyboardInterrupt), only_form("llama-3", "gguf-q4_0", tmp_path):
        pass
    assert left_in(tmp_path) == []


KILLED = """
import os, signal, sys
from localq.measure import shapes
from localq.measure.shapes import shape_forms
from tests.tiny_checkpoints import CONFIGS
shapes._table = lambda: CONFIGS
with shape_forms("llama-3", "gguf-q4_0", models_dir=sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_process_left_goes_like_any_half_written_form(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL and left_in(tmp_path) == ["llama-3"]
    (removed,) = remove_leftovers(Store(tmp_path))
    assert removed.path.name.startswith(".gguf-q4_0.temporary-") and left_in(tmp_path) == []


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if "waiting" in line:
            raise KeyboardInterrupt

    with only_form("llama-3", "gguf-q4_0", tmp_path), pytest.raises(KeyboardInterrupt):
        shape_forms("llama-3", "gguf-q4_0", OPTIONS, models_dir=tmp_path, on_step=stop).__enter__()
    assert said[-1] == "another localq measures this shape as gguf-q4_0: waiting for it"


def memory_with(free_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.memory._runs_on_gpu", lambda form: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free_bytes, total=free_bytes))


def test_it_is_told_what_each_form_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_with(1_000_000_000, monkeypatch)
    said: list[str] = []
    with shape_forms("llama-3", "gguf-q8_0", OPTIONS, models_dir=tmp_path, on_step=said.append):
        pass
    weights = "1.68 MB"  # 34 bytes for 32 weights of 1,572,864, and 5 norms of 256 in single precision
    assert said == [
        # 300 MB for the process, and for each token 1,024 bytes of keys and values and 1,024 of the mask
        f"llama-3:gguf-q8_0 {weights}, needs about 301.81 MB of memory with a context of 64 tokens; 1.00 GB are free",
        f"writing {weights} of random weights in the shape of llama-3",
    ]


@pytest.mark.parametrize(
    ("recipes", "kept", "free_bytes"),
    [
        (["gguf-q8_0", "gguf-q4_0"], "gguf-q8_0", 2 * RUNTIME_BYTES),
        (["gguf-q4_0", "gguf-q8_0"], "gguf-q4_0", 2 * RUNTIME_BYTES),
        (["gguf-f32", "gguf-q4_0"], "gguf-q4_0", RUNTIME_BYTES + 2_000_000),
    ],
    ids=["beside the first", "beside the first, other order", "alone"],
)
def test_a_form_without_room_is_left_out(
    recipes: list[str], kept: str, free_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_with(free_bytes, monkeypatch)
    said: list[str] = []
    with shape_forms("llama-3", recipes, OPTIONS, models_dir=tmp_path, on_step=said.append) as forms:
        assert [form.recipe for form in forms] == [kept]
    (left_out,) = set(recipes) - {kept}
    (warning,) = [line for line in said if line.startswith("warning: left out")]
    assert f"llama-3:{left_out}" in warning
    assert ("for other formats" in warning) == (kept == recipes[0])


def test_where_no_form_fits_it_is_an_error_with_all_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory_with(RUNTIME_BYTES, monkeypatch)
    with pytest.raises(EngineError) as caught:
        shape_forms("llama-3", ["gguf-q8_0", "gguf-q4_0"], OPTIONS, models_dir=tmp_path).__enter__()
    for part in ("llama-3:gguf-q8_0 with a context of 64 tokens needs about", "llama-3:gguf-q4_0 with", "are free"):
        assert part in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_a_disk_without_room_is_told_with_numbers_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=3_000_000))
    with pytest.raises(StoreError, match="3 MB free; 3. MB are needed"), only_form("llama-3", "gguf-q8_0", tmp_path):
        pass
    assert left_in(tmp_path) == []


def test_a_context_beyond_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="a context of 513 tokens is more than the model's 512"):
        shape_forms("llama-3", "gguf-q8_0", LoadOptions(513), models_dir=tmp_path).__enter__()
