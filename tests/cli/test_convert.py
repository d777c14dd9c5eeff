"""`convert --dry-run`, and `show` and `rm` by the paths that `convert` prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app

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
