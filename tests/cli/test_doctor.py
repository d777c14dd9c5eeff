"""`localq doctor` as its users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from localq.conversion.convert import convert
from localq.recipes import RECIPES
from tests.tiny_checkpoints import write_checkpoint


def doctor(*arguments: object, columns: int | None = None) -> Result:
    environment = {} if columns is None else {"COLUMNS": str(columns)}
    return CliRunner().invoke(app, ["doctor", *map(str, arguments)], env=environment)


def record(*arguments: object, status: int = 0) -> Any:
    result = doctor(*arguments, "--json")
    assert (result.exit_code, result.stderr) == (status, "")
    return json.loads(result.stdout)


def test_a_checkpoint_without_fault_has_status_0() -> None:
    result = doctor("toy-llama")
    assert result.exit_code == 0
    assert "no fault found" in result.stdout and "--deep" in result.stdout
    assert "gguf-q4_k_m" in result.stdout and "mlx-4bit" in result.stdout
    assert "no weight is NaN" in doctor("toy-llama", "--deep", "--to", "mlx-bf16").stdout


def test_json_has_units_in_its_keys() -> None:
    found = record("toy-phi", "--to", "gguf-q8_0")
    assert set(found) == {
        *("model", "path", "revision", "family", "architecture", "parameters", "weight_bytes_by_dtype", "stored_as"),
        *("context_length_tokens", "original_context_length_tokens", "kv_cache_bytes_per_token", "vocabulary_size"),
        *("chat_template", "weights_read", "forms", "refused", "notes", "faults"),
    }
    (form,) = found["forms"]
    assert set(form) == {
        *("recipe", "weight_bytes", "bits_per_weight", "fallbacks", "memory_bytes", "longest_context_tokens"),
        "runs_here",
    }
    assert form["recipe"] == "gguf-q8_0"
    assert found["weight_bytes_by_dtype"] == {"BF16": 2 * found["parameters"]}


def test_all_plans_every_recipe() -> None:
    found = record("toy-llama", "--all")
    planned = {form["recipe"] for form in found["forms"]} | {entry["recipe"] for entry in found["refused"]}
    assert planned == set(RECIPES)


def test_faults_are_numbered_with_their_fix_and_status_1(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (folder / "config.json").write_text("{")
    (folder / "tokenizer.json").unlink()
    result = doctor(folder)
    assert result.exit_code == 1 and result.stderr == ""
    assert "2 faults:" in result.stdout and "  2. " in result.stdout
    assert result.stdout.count("fix: ") == 2
    found = record(folder, status=1)
    assert [set(fault) for fault in found["faults"]] == [{"message", "hint"}] * 2
    assert found["weight_bytes_by_dtype"].keys() == {"BF16"}


def test_faults_with_one_fix_share_it(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 512}))
    assert doctor(folder).stdout.count("fix: ") == 1


@pytest.mark.parametrize(("columns", "widest"), [(None, 100), (200, 100), (80, 80)])
def test_text_fits_the_terminal_and_a_hundred_columns(tmp_path: Path, columns: int | None, widest: int) -> None:
    folder = write_checkpoint(tmp_path / "m", "phi-3-small")
    (folder / "tokenizer_config.json").write_text("{")
    lines = doctor(folder, columns=columns).stdout.splitlines()
    assert any(line.startswith("not possible: gguf-q4_0, ") for line in lines)
    long = [line for line in lines if len(line) > widest]
    assert all(str(folder) in line for line in long)  # a path is not broken


def test_tensors_that_fall_back_are_listed_by_format(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-2")
    text = doctor(folder, "--to", "gguf-q4_k_m", "--to", "gguf-q8_0").stdout
    assert "gguf-q4_k_m: " in text and "fall back to" in text and "gguf-q8_0: " not in text
    (form,) = record(folder, "--to", "gguf-q4_k_m")["forms"]
    assert set(form["fallbacks"][0]) == {"tensor", "wanted", "used"}


def test_a_format_is_refused_in_the_source() -> None:
    result = doctor("toy-llama:gguf-q8_0")
    assert result.exit_code == 1 and "--to gguf-q8_0" in result.stderr


@pytest.mark.parametrize("arguments", [["--deep"], ["--all"], ["--to", "mlx-4bit"]])
def test_flags_for_a_checkpoint_need_one(arguments: list[str]) -> None:
    assert doctor(*arguments).exit_code == 2


def test_the_machine_is_described_without_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    found = record()
    assert found["free_memory_bytes"] <= found["memory_bytes"]
    assert found["memory_bandwidth_bytes_per_second"] > 0 and found["free_disk_bytes"] > 0
    assert found["backends"] == {"mlx": True, "gguf": True}
    assert found["default_recipe"] in RECIPES
    assert found["quantizer"].startswith(("localq (", "ggml: "))
    assert found["mlx_search"].startswith(("compiled (", "numpy, "))
    monkeypatch.setenv("LOCALQ_QUANTIZER", "ggml")
    monkeypatch.setattr("localq.conversion.mlx_search._compiled", lambda: None)
    text = doctor().stdout
    assert found["cpu"] in " ".join(text.split()) and found["models_folder"] in text
    assert "quantizer   ggml, because LOCALQ_QUANTIZER says so" in text
    assert "mlx search  numpy, for calibrated formats: slow" in text


def test_the_models_folder_can_be_chosen(tmp_path: Path) -> None:
    models = tmp_path / "models"
    assert record("--models-dir", models)["models_folder"] == str(models)
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    convert(folder, "mlx-bf16", models_dir=models)
    assert record("local/model", "--models-dir", models)["path"] == str(folder)
    assert doctor("local/model").exit_code == 1
