"""`localq convert` under budgets and limits, and what a dry run predicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from tests.made_up_calibration import write_made_up_calibration
from tests.tiny_checkpoints import write_checkpoint

BUDGETS = ("3", "3.5", "4", "4.5", "5", "6")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_made_up_calibration("toy-llama", folder, slow_types=False)
    return folder


def localq(models: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--models-dir", str(models)])


def data(models: Path, *arguments: str) -> Any:
    result = localq(models, *arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_dry_run_predicts_budgets_beside_the_usual_formats(models: Path) -> None:
    (planned,) = data(models, "convert", "toy-llama", "--to", "gguf-4.5bpw", "--dry-run")
    assert planned["predicted_kl_divergence"] > 0
    predicted = {one["recipe"]: one for one in planned["predictions"]}
    assert {f"gguf-{bits}bpw" for bits in BUDGETS} < predicted.keys()
    assert {"gguf-q3_k_m", "gguf-q4_k_m", "gguf-q6_k"} < predicted.keys()
    assert [one["bytes"] for one in planned["predictions"]] == sorted(one["bytes"] for one in planned["predictions"])
    damages = [predicted[f"gguf-{bits}bpw"]["predicted_kl_divergence"] for bits in BUDGETS]
    assert damages == sorted(damages, reverse=True)
    assert predicted["gguf-4.5bpw"]["predicted_kl_divergence"] == planned["predicted_kl_divergence"]
    assert predicted["gguf-4.5bpw"]["bits_per_weight"] == planned["bits_per_weight"] <= 4.5
    better = predicted["gguf-5bpw"]
    assert better["predicted_kl_divergence"] < predicted["gguf-q4_k_m"]["predicted_kl_divergence"]
    assert not (models / "toy-llama" / "gguf-4.5bpw").exists()


def test_the_table_of_predictions_marks_what_was_asked_for(models: Path) -> None:
    result = localq(models, "convert", "toy-llama", "--to", "mlx-4bit", "--to", "mlx-3.25bpw", "--dry-run")
    table = result.stdout.partition("Predicted mean KL divergence")[2].splitlines()
    marked = [line.split()[0] for line in table if " * " in line]
    assert marked == ["mlx-3.25bpw", "mlx-4bit"]
    assert any(line.startswith("mlx-3.5bpw ") for line in table) and not any("gguf" in line for line in table)


def test_the_run_has_the_keys_and_the_prediction_of_the_dry_run(models: Path) -> None:
    command = ("convert", "toy-llama", "--to", "mlx-4.25bpw", "--to", "gguf-q8_0")
    planned = data(models, *command, "--dry-run")
    made, again = data(models, *command), data(models, *command)
    for plan, record, reused in zip(planned, made, again, strict=True):
        assert list(plan) == list(record) == list(reused)
        assert plan["predicted_kl_divergence"] == record["predicted_kl_divergence"] == reused["predicted_kl_divergence"]
        assert record["predictions"] is None
    assert made[0]["predicted_kl_divergence"] > made[1]["predicted_kl_divergence"] > 0


def test_without_a_calibration_a_dry_run_predicts_nothing(tmp_path: Path) -> None:
    (planned,) = data(tmp_path, "convert", "toy-phi", "--to", "gguf-q4_k_m", "--dry-run")
    assert planned["predicted_kl_divergence"] is None and planned["predictions"] == []
    assert "Predicted" not in localq(tmp_path, "convert", "toy-phi", "--to", "gguf-q4_k_m", "--dry-run").stdout


def test_fit_says_what_it_chose_and_makes_it(models: Path) -> None:
    command = ("convert", "toy-llama", "--fit", "0.75MB")
    result = localq(models, *command, "--dry-run")
    assert result.exit_code == 0
    chosen = [line.split()[0] for line in result.stderr.splitlines() if "is the largest that fits 0.75MB" in line]
    assert [name.partition("-")[0] for name in chosen] == ["mlx", "gguf"]
    made = data(models, *command)
    assert [record["recipe"] for record in made] == chosen
    sizes = [sum(file.stat().st_size for file in Path(made[0]["path"]).glob("*.safetensors"))]
    sizes.append(Path(made[1]["path"]).stat().st_size)
    assert all(740_000 < size <= 750_000 for size in sizes)


def test_a_budget_needs_a_calibration(tmp_path: Path) -> None:
    for arguments in (("convert", "toy-phi", "--to", "mlx-4.5bpw"), ("convert", "toy-phi", "--fit", "2MB")):
        result = localq(tmp_path, *arguments)
        assert result.exit_code == 1
        assert "toy-phi was not calibrated" in result.stderr
        assert "hint: measure it: localq calibrate toy-phi" in result.stderr


def test_a_budget_is_generated_with_like_any_format(models: Path) -> None:
    for recipe in ("gguf-4.75bpw", "mlx-4.75bpw"):
        result = localq(models, "generate", f"toy-llama:{recipe}", "What is the capital of France?", "--temp", "0")
        assert result.exit_code == 0, result.stderr
        assert "Paris" in result.stdout


def test_a_dry_run_needs_neither_calibration_nor_checkpoint_for_what_is_there(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    calibration = write_made_up_calibration(folder, tmp_path / "m", slow_types=False)
    command = ("convert", str(folder), "--to", "gguf-5bpw")
    (made,) = data(tmp_path / "m", *command)
    calibration.path.unlink()
    (planned,) = data(tmp_path / "m", *command, "--dry-run")
    assert planned["reused"] and planned["predictions"] == []
    assert planned["predicted_kl_divergence"] == made["predicted_kl_divergence"] > 0
