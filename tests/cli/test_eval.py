"""`localq eval` as its users run it."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from localq.demo.questions import read_held_out_text

_FORM = "toy-llama:gguf-q8_0"
_QUICK = ("--window", "64", "--windows", "3")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return "--models-dir", str(tmp_path_factory.mktemp("models"))


def localq(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def figures(result: dict[str, Any]) -> dict[str, Any]:
    """What does not vary from run to run."""
    return {
        name: value for name, value in result.items() if not name.endswith(("_seconds", "_per_token", "memory_bytes"))
    }


def test_json_has_the_keys_of_the_contract_and_the_command_that_repeats_it(models: tuple[str, str]) -> None:
    report = data(localq("eval", _FORM, *_QUICK, *models, "--json"))
    assert set(report) == {
        *("machine", "settings", "started", "reference", "noise_floor", "results", "comparisons", "warnings"),
        "command",
    }
    (result,) = report["results"]
    assert (result["model"], result["recipe"], result["positions"]) == ("toy-llama", "gguf-q8_0", 3 * 31)
    assert 0 < result["mean_kl_divergence"] < 1e-3 < result["same_top_fraction"]
    command, *arguments = shlex.split(report["command"])
    assert command == "localq"
    again = data(localq(*arguments, "--json"))
    assert figures(again["results"][0]) == figures(result)
    assert again["command"] == report["command"]


def test_a_table_goes_to_stdout_and_progress_to_stderr(models: tuple[str, str]) -> None:
    result = localq("eval", _FORM, *_QUICK, *models)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("format "))
    assert lines[header + 2].startswith("gguf-f32 (baseline)") and lines[header + 3].startswith("gguf-q8_0")
    assert lines[-1] == f"repeat: localq eval {_FORM} --window 64 --score-from 32 --windows 3 {' '.join(models)}"
    assert "1/6 toy-llama:gguf-f32\n4/6 toy-llama:gguf-q8_0\n" in result.stderr


def test_a_text_may_be_a_file_or_piped(models: tuple[str, str], tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(read_held_out_text(), encoding="utf-8")
    rows = csv.DictReader(
        io.StringIO(localq("eval", _FORM, *_QUICK, *models, "--csv", "--text", "-", stdin=read_held_out_text()).stdout)
    )
    _, piped = rows
    named = localq("eval", _FORM, *_QUICK, *models, "--md", "--text", str(file)).stdout
    assert "\n| format | mean KL |" in named
    assert f"{float(piped['mean_kl_divergence']):.3g} ± " in named
    assert f"--text {file}" in named and piped["text"] == "standard input"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--json", "--csv"], ["--json", "--csv"]),
        (["--window", "1"], ["--window", "1", "at least 2"]),
        (["--window", "2000"], ["--window", "2000", "1024"]),
        (["--score-from", "511"], ["--score-from", "511", "510"]),
        (["--windows", "0"], ["--windows", "0"]),
        (["--threads", "0"], ["threads", "0"]),
        (["--baseline", "toy-llama"], ["--baseline", "toy-llama:gguf-f32"]),
        (["--reference", "toy-phi:gguf-q8_0"], ["tokenize", "differently", "token 0 of window 1"]),
        (["--text", "./nowhere"], ["nowhere", "No such file", "--text"]),
    ],
)
def test_bad_input_is_named_with_what_helps(arguments: list[str], words: list[str], models: tuple[str, str]) -> None:
    result = localq("eval", _FORM, *models, *arguments)
    assert_fails(result, *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"too short", ["tokens", "one window needs 512", "--text"]), (b"\xff\xfe", ["UTF-8", "0xff"]), (b"", ["tokens"])],
)
def test_a_text_that_can_not_be_used_is_named(
    content: bytes, words: list[str], models: tuple[str, str], tmp_path: Path
) -> None:
    file = tmp_path / "text.txt"
    file.write_bytes(content)
    assert_fails(localq("eval", _FORM, *models, "--text", str(file)), str(file), *words)


def assert_fails(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert ("error: " in result.stderr or '"error": ' in result.stderr) and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
