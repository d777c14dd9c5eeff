"""What is compared with what."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from localq.errors import OptionError
from localq.measure.baseline import EvalForms, find_eval_forms
from localq.measure.forms import Form, find_forms
from localq.store.layout import MANIFEST_NAME

pytest.importorskip("mlx_lm")  # not on every platform


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def chosen(references: list[str], models: Path, baseline: str | None = None, floor: bool = True) -> list[str | None]:
    """Recipes of the baseline, the noise floor and the artifacts."""
    found = find_eval_forms(references, baseline, floor, models)
    return [found.baseline.recipe, found.noise_floor and found.noise_floor.recipe, *(f.recipe for f in found.forms)]


def rewritten(form: Form, folder: Path, manifest: dict[str, object], config: dict[str, object]) -> str:
    """A copy of an artifact with other facts in its manifest and config."""
    copy = shutil.copytree(form.path, folder)
    for name, changes in ((MANIFEST_NAME, manifest), ("config.json", config)):
        value = json.loads((copy / name).read_text())
        (copy / name).write_text(json.dumps({**value, **changes}))
    record = json.loads((copy / MANIFEST_NAME).read_text())
    record["format_version"] = 1  # which had no checksum
    del record["checksum"]
    for file in record["files"]:
        file["bytes"] = (copy / file["name"]).stat().st_size
    (copy / MANIFEST_NAME).write_text(json.dumps(record))
    return str(copy)


def test_a_small_model_is_compared_with_its_float32_form(models: Path) -> None:
    assert chosen(["toy-llama:gguf-q8_0"], models) == ["gguf-f32", None, "gguf-q8_0"]


def test_a_form_for_the_other_engine_brings_the_noise_floor(models: Path) -> None:
    assert chosen(["toy-llama"], models) == ["gguf-f32", "mlx-f32", "mlx-4bit", "gguf-q4_k_m"]
    assert chosen(["toy-llama"], models, floor=False) == ["gguf-f32", None, "mlx-4bit", "gguf-q4_k_m"]
    found = find_eval_forms(["toy-llama", "toy-llama:mlx-f32"], None, True, models)
    assert [form.recipe for form in found.compared] == ["mlx-f32", "mlx-4bit", "gguf-q4_k_m"]


def test_another_baseline_has_its_own_counterpart(models: Path) -> None:
    assert chosen(["toy-phi:gguf-q8_0"], models, "toy-phi:mlx-bf16") == ["mlx-bf16", "gguf-bf16", "gguf-q8_0"]


def test_a_quantized_baseline_leaves_the_noise_floor_unknown(models: Path) -> None:
    found = find_eval_forms(["toy-llama:mlx-4bit"], "toy-llama:gguf-q8_0", True, models)
    assert found.noise_floor is None
    assert len(found.warnings) == 1 and "the difference between the engines is not known" in found.warnings[0]
    assert find_eval_forms(["toy-llama:gguf-q4_k_m"], "toy-llama:gguf-q8_0", True, models).warnings == ()


@pytest.mark.parametrize(
    ("config", "recipe"),
    [({"torch_dtype": "bfloat16"}, "gguf-bf16"), ({"torch_dtype": None, "dtype": "float16"}, "gguf-f16")],
)
def test_a_large_model_is_compared_in_the_precision_it_was_published_in(
    config: dict[str, object], recipe: str, models: Path, tmp_path: Path
) -> None:
    (form,) = find_forms(["toy-llama:gguf-q8_0"], models)
    large = rewritten(form, tmp_path / "large", {"parameters": 10**9}, config)
    assert chosen([large], models) == [recipe, None, "gguf-q8_0"]
    small = rewritten(form, tmp_path / "small", {"parameters": 10**9 - 1}, config)
    assert chosen([small], models) == ["gguf-f32", None, "gguf-q8_0"]


def test_a_form_made_elsewhere_needs_a_baseline(models: Path, tmp_path: Path) -> None:
    (artifact,) = find_forms(["toy-llama:gguf-q8_0"], models)
    file = shutil.copy(next(artifact.path.glob("*.gguf")), tmp_path / "foreign.gguf")
    with pytest.raises(OptionError, match="foreign:gguf was not made by localq") as caught:
        find_eval_forms([str(file)], None, True, models)
    assert "--baseline" in caught.value.hint
    assert chosen([str(file)], models, "toy-llama:gguf-f32") == ["gguf-f32", None, "gguf"]


def test_forms_of_two_models_need_a_baseline(models: Path) -> None:
    names = ["toy-llama:gguf-q8_0", "toy-phi:gguf-q8_0"]
    with pytest.raises(OptionError, match="artifacts are of 2 models: toy-llama, toy-phi") as caught:
        find_eval_forms(names, None, True, models)
    assert "--baseline" in caught.value.hint


def test_a_baseline_without_a_format_is_refused_before_it_is_made(models: Path) -> None:
    with pytest.raises(OptionError, match="--baseline toy-llama does not name a format") as caught:
        find_eval_forms(["toy-llama:gguf-q8_0"], "toy-llama", True, models)
    assert "toy-llama:gguf-f32" in caught.value.hint


def test_forms_of_another_revision_of_the_checkpoint_are_refused(
    checkpoint_folder: Path, models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint_folder, tmp_path / "changed")
    (form,) = find_forms([f"{folder}:gguf-q8_0"], models)
    os.utime(folder / "config.json", (1, 1))
    with pytest.raises(OptionError, match="different revisions") as caught:
        find_eval_forms([str(form.path)], None, True, models)
    assert f"localq convert {folder} --to gguf-q8_0 --force" in caught.value.hint
    # Named by its checkpoint, it is made again.
    assert chosen([f"{folder}:gguf-q8_0"], models) == ["gguf-f32", None, "gguf-q8_0"]


def test_a_checkpoint_that_is_gone_is_not_needed_where_its_forms_are_there(
    checkpoint_folder: Path, models: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(checkpoint_folder, tmp_path / "gone")
    form, _ = find_forms([f"{folder}:gguf-q8_0", f"{folder}:gguf-f32"], models)
    shutil.rmtree(folder)
    assert chosen([str(form.path)], models) == ["gguf-f32", None, "gguf-q8_0"]


def test_the_longest_context_is_what_all_forms_have(checkpoint_folder: Path, models: Path, tmp_path: Path) -> None:
    toy, tiny = find_forms(["toy-llama:gguf-q8_0", f"{checkpoint_folder}:gguf-q8_0"], models)
    (mlx,) = find_forms(["toy-llama:mlx-4bit"], models)
    file = Path(shutil.copy(next(toy.path.glob("*.gguf")), tmp_path / "foreign.gguf"))
    (foreign,) = find_forms([str(file)], models)
    found = [EvalForms(form, None, ()).most_context_tokens for form in (toy, mlx, foreign, tiny)]
    assert found == [1024, 1024, 1024, 512]
    assert EvalForms(toy, None, (toy, tiny)).most_context_tokens == 512
    assert EvalForms(toy, tiny, (toy,)).most_context_tokens == 512
