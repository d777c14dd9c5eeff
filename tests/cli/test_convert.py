"""`convert --dry-run`, what `convert` prints beside its table, and `show` and `rm` with the paths that it prints."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from localq.recipes import RECIPES
from tests.tiny_checkpoints import write_checkpoint

FORMS = ("--to", "mlx-8bit", "--to", "gguf-q8_0")


def localq(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def data(*arguments: str) -> Any:
    result = localq(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def test_a_dry_run_has_the_keys_of_the_run_and_its_figures(tmp_path: Path) -> None:
    command = ("convert", "toy-phi", *FORMS, "--models-dir", str(tmp_path / "m"))
    planned = data(*command, "--dry-run")
    assert not (tmp_path / "m").exists()
    made = data(*command)
    same = ("model", "recipe", "path", "parameters", "bits_per_weight", "reused")
    for plan, record in zip(planned, made, strict=True):
        assert list(plan) == list(record)
        assert [plan[key] for key in same] == [record[key] for key in same]
        assert plan["bytes"] * 8 / plan["parameters"] == plan["bits_per_weight"]
        assert plan["seconds"] is None
    again = data(*command, "--dry-run")
    assert [(plan["reused"], plan["seconds"]) for plan in again] == [(True, 0), (True, 0)]
    assert [plan["reused"] for plan in data(*command, "--dry-run", "--force")] == [False, False]


def test_a_dry_run_says_what_is_there_already(tmp_path: Path) -> None:
    command = ("convert", "toy-phi", "--models-dir", str(tmp_path))
    localq(*command, "--to", "gguf-q8_0")
    mlx, gguf = localq(*command, *FORMS, "--dry-run").stdout.splitlines()[-2:]
    assert mlx.startswith("toy-phi:mlx-8bit") and "to be made" in mlx
    assert gguf.startswith("toy-phi:gguf-q8_0") and "there already" in gguf


@pytest.mark.parametrize("recipe", ["mlx-8bit", "gguf-q8_0"])
def test_show_and_rm_take_the_path_that_convert_prints(tmp_path: Path, recipe: str) -> None:
    models = ("--models-dir", str(tmp_path))
    made = {record["recipe"]: record["path"] for record in data("convert", "toy-phi", *FORMS, *models)}
    (shown,) = data("show", made[recipe], *models)
    assert (shown["recipe"], shown["path"]) == (recipe, made[recipe])
    (removed,) = data("rm", made[recipe], *models)
    assert (removed["model"], removed["recipe"]) == ("toy-phi", recipe)
    assert [record["recipe"] for record in data("ls", *models)] == [name for name in made if name != recipe]


def test_fallbacks_are_in_every_output(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-2")  # rows of 320 weights fit no block of 256
    command = ("convert", str(folder), "--to", "gguf-q4_k_m", "--models-dir", str(tmp_path / "m"))
    (planned,) = data(*command, "--dry-run")
    assert planned["fallbacks"] and set(planned["fallbacks"][0]) == {"tensor", "wanted", "used"}
    count = len(planned["fallbacks"])
    line = f"note: local/model:gguf-q4_k_m: {count} tensors with rows that fit no block fall back to other types: "
    assert localq(*command, "--dry-run").stderr.startswith(line)
    made = localq(*command)
    assert line in made.stderr and "fall back" not in made.stdout
    (again,) = data(*command)
    (shown,) = data("show", str(folder), "--models-dir", str(tmp_path / "m"))
    assert planned["fallbacks"] == again["fallbacks"] == shown["fallbacks"]
    assert data(*command, "--dry-run")[0]["fallbacks"] == planned["fallbacks"]
    described = localq("show", str(folder), "--models-dir", str(tmp_path / "m")).stdout
    assert f"{count} tensors with rows that fit no block" in described


def test_nothing_is_printed_without_fallbacks(tmp_path: Path) -> None:
    command = ("convert", "toy-phi", "--to", "gguf-q8_0", "--models-dir", str(tmp_path))
    assert data(*command, "--dry-run")[0]["fallbacks"] == []
    assert "fall back" not in localq(*command).stderr
    assert "fall back" not in localq("show", "toy-phi", "--models-dir", str(tmp_path)).stdout


def test_differences_of_a_runtime_are_printed_once_when_artifacts_are_made(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "phi-3.5-moe")
    command = ("convert", str(folder), *FORMS, "--models-dir", str(tmp_path / "m"))
    assert localq(*command).stderr.count("softmax routing") == 1
    assert "softmax routing" not in localq(*command).stderr


def test_help_lists_every_format() -> None:
    names = set(re.findall(r"(?<!\S)(?:mlx|gguf)-[a-z0-9_-]+(?!\S)", localq("convert", "--help").stdout))
    grouped = {name for name in RECIPES if re.search(r"-g\d+$", name)}
    assert names == set(RECIPES) - grouped
    assert {name.rpartition("-")[2] for name in grouped} == {"g32", "g128"}
