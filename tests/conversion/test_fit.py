"""The largest format under a limit: a file size, or free memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from localq.checkpoint.source import cached_checkpoint
from localq.conversion import fit as fitting
from localq.conversion.convert import convert
from localq.conversion.fit import Limit, file_bytes, fitting_recipes
from localq.conversion.plan import Request, plan_conversion
from localq.errors import CalibrationError, ConversionError, OptionError
from localq.gguf_file import read_model_header
from localq.memory import gguf_file_memory
from localq.recipes import Recipe
from localq.store.manifest import Artifact
from tests.made_up_calibration import write_made_up_calibration


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("models")
    write_made_up_calibration("toy-llama", folder, slow_types=False)
    yield folder


def fitted(models: Path, limit: str, *families: str) -> list[Recipe]:
    request = Request("toy-llama", list(families) or None, models)
    return fitting_recipes(request, Limit.parse(limit), cached_checkpoint)


def weight_file_bytes(artifact: Artifact) -> int:
    if artifact.path.suffix == ".gguf":
        return artifact.path.stat().st_size
    return sum(file.stat().st_size for file in artifact.path.glob("*.safetensors"))


@pytest.mark.parametrize(("family", "limit_kilobytes"), [("gguf", 650), ("gguf", 900), ("mlx", 600), ("mlx", 1200)])
def test_the_file_is_within_the_size_and_a_hundredth_of_a_bit_more_is_not(
    models: Path, family: str, limit_kilobytes: int
) -> None:
    (recipe,) = fitted(models, f"{limit_kilobytes}KB", family)
    assert re.fullmatch(rf"{family}-\d+(\.\d\d?)?bpw", recipe.name)
    assert recipe.budget is not None
    (made,) = convert("toy-llama", recipe.name, models_dir=models)
    assert 0.99 * limit_kilobytes * 1000 < weight_file_bytes(made) <= limit_kilobytes * 1000
    plan = plan_conversion(Request("toy-llama", recipe.name, models, force=True), cached_checkpoint)
    metadata = plan.gguf_metadata() if family == "gguf" else None
    assert file_bytes(plan.plans[recipe.name], metadata) == weight_file_bytes(made)
    (more,) = fitted(models, f"{limit_kilobytes * 1.05}KB", family)
    assert more.budget is not None and more.budget > recipe.budget


def test_both_families_are_fitted_unless_one_is_named(models: Path) -> None:
    assert [recipe.format for recipe in fitted(models, "0.8MB")] == ["mlx", "gguf"]
    assert [recipe.format for recipe in fitted(models, "0.8MB", "mlx")] == ["mlx"]


def test_where_the_whole_model_fits_it_is_not_quantized(models: Path) -> None:
    assert [recipe.name for recipe in fitted(models, "1GiB")] == ["mlx-bf16", "gguf-bf16"]


def test_a_limit_below_the_smallest_file_is_refused_with_the_sizes_that_are_possible(models: Path) -> None:
    with pytest.raises(
        ConversionError, match=r"toy-llama does not fit in 300.00 kB as GGUF: \d+.* to .* are"
    ) as caught:
        fitted(models, "300KB", "gguf")
    advised = re.search(r"--fit (\S+) or more", caught.value.hint)
    assert advised is not None
    assert fitted(models, advised[1], "gguf")


@dataclass(frozen=True)
class Memory:
    available: int


def test_memory_holds_the_weights_beside_the_context(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free_bytes = 303_400_000
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(free_bytes))
    monkeypatch.setattr(fitting, "computes_in_other_memory", lambda form: False)
    sizes = []
    for tokens in (256, 1024):
        (recipe,) = fitted(models, f"memory={tokens}", "gguf")
        (made,) = convert("toy-llama", recipe.name, models_dir=models)
        needed = gguf_file_memory(read_model_header(made.path)).needed_bytes(tokens)
        assert free_bytes * 0.999 < needed <= free_bytes
        sizes.append(made.manifest.weight_bytes)
    assert sizes[0] > sizes[1]
    (default,) = fitted(models, "memory", "gguf")
    assert default == recipe  # the whole context of the model


def test_memory_of_a_graphics_card_is_not_guessed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "computes_in_other_memory", lambda form: True)
    with pytest.raises(OptionError, match="graphics card"):
        fitted(models, "memory", "gguf")


def test_a_context_beyond_the_models_is_refused(models: Path) -> None:
    with pytest.raises(OptionError, match="--fit memory=5000: the model has a context of 1,024 tokens"):
        fitted(models, "memory=5000")


def test_a_size_is_a_limit() -> None:
    assert Limit.parse("2.2GB") == Limit(2_200_000_000)


def test_memory_is_read_with_and_without_a_context() -> None:
    assert Limit.parse("memory") == Limit(None, None)
    assert Limit.parse("memory=4096") == Limit(None, 4096)


@pytest.mark.parametrize("text", ["", "2.2", "2.2GBs", "-1GB", "memory=", "memory=many", "GB"])
def test_other_limits_are_refused(text: str) -> None:
    with pytest.raises(OptionError, match=f"--fit is {re.escape(repr(text))}"):
        Limit.parse(text)


def test_a_format_beside_a_limit_is_refused(models: Path) -> None:
    with pytest.raises(OptionError, match="--fit chooses the format itself; --to is gguf-q8_0"):
        fitted(models, "1MB", "gguf-q8_0")


def test_a_model_that_was_not_calibrated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="toy-llama was not calibrated"):
        fitted(tmp_path, "1MB")
