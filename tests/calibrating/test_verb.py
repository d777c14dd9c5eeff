"""`localq calibrate` as a command and in Python, and what other verbs make of its result."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

import localq
from localq.cli.main import app

pytestmark = pytest.mark.usefixtures("few_sampled_rows")


def run(*arguments: str | Path) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(map(str, arguments)), prog_name="localq")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("calibrated")


@pytest.fixture(scope="module")
def tiny(few_sampled_rows: None, folder_of: Callable[[str], Path], models: Path, text_file: Path) -> Path:
    """A checkpoint that is calibrated in `models`."""
    folder = folder_of("phi-3-4k")
    localq.calibrate(folder, models_dir=models, texts=text_file, tokens=1024, sensitivity_tokens=64)
    return folder


def test_it_says_what_it_does_and_shows_the_most_and_least_sensitive_tensors(
    folder_of: Callable[[str], Path], tmp_path: Path, text_file: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text(text_file.read_text(encoding="utf-8")[:2500], encoding="utf-8")
    code, out, err = run("calibrate", folder_of("phi-3-4k"), "--text", short, "--models-dir", tmp_path / "models")
    assert code == 0, err
    assert [line for line in err.splitlines() if line.startswith("measuring")] == [
        "measuring the importance of the columns",
        "measuring the sensitivity of the tensors",
        "measuring the errors of the types",
    ]
    assert "making gguf-bf16" in err
    ranked = [line.split() for line in out.splitlines() if line.endswith(("most", "least"))]
    assert [row[2] for row in ranked] == ["most"] * 5 + ["least"] * 5
    divergences = [float(row[1]) for row in ranked]
    assert divergences == sorted(divergences, reverse=True)


def test_json_has_the_provenance_and_a_second_call_finds_it(tiny: Path, models: Path, text_file: Path) -> None:
    code, out, err = run("calibrate", tiny, "--models-dir", models, "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["reused"] is True
    assert record["texts"][0]["name"] == str(text_file) and len(record["texts"][0]["sha256"]) == 64
    assert record["measured_as"] == "gguf-bf16" and record["source"] == str(tiny)
    assert record["sensitivity"].keys() == record["divergence"].keys()
    assert Path(record["path"]).is_file() and Path(record["importance_path"]).is_file()
    assert record["bytes"] == sum(file.stat().st_size for file in Path(record["path"]).parent.iterdir())


def test_show_tells_it_with_and_without_artifacts_and_not_beside_a_format(tiny: Path, models: Path) -> None:
    code, out, _ = run("show", tiny, "--models-dir", models)
    assert code == 0 and "calibration" in out and "least" in out
    localq.convert(tiny, "gguf-q8_0", models_dir=models)
    records = json.loads(run("show", tiny, "--models-dir", models, "--json")[1])
    assert [record["recipe"] for record in records] == ["gguf-q8_0", "calibration"]
    assert "least" not in run("show", f"{tiny}:gguf-q8_0", "--models-dir", models)[1]


def test_eval_warns_where_the_text_is_that_of_the_calibration(tiny: Path, models: Path, text_file: Path) -> None:
    forms = [f"{tiny}:gguf-4.5bpw", f"{tiny}:gguf-q8_0"]
    small = {"models_dir": models, "window_tokens": 64, "most_windows": 2}
    report = localq.evaluate(forms, text_file=text_file, **small)
    (warning,) = [warning for warning in report.warnings if "calibrated on this very text" in warning]
    assert "4.5bpw" in warning and "q8_0" not in warning
    other = text_file.with_name("other.txt")
    other.write_text(text_file.read_text(encoding="utf-8")[1:], encoding="utf-8")
    report = localq.evaluate(forms, text_file=other, **small)
    assert not [warning for warning in report.warnings if "calibrated on this very text" in warning]
    for recipe in ("gguf-4.5bpw", "gguf-f32", "gguf-bf16", "gguf-q8_0"):
        run("rm", f"{tiny}:{recipe}", "--models-dir", models)


def test_ls_verify_and_prune_leave_it_alone_and_rm_removes_it(tiny: Path, models: Path) -> None:
    localq.convert(tiny, "gguf-q8_0", models_dir=models)
    assert [row["recipe"] for row in json.loads(run("ls", "--models-dir", models, "--json")[1])] == ["gguf-q8_0"]
    assert run("verify", "--models-dir", models)[0] == 0
    assert run("prune", "--models-dir", models)[0] == 0
    (folder,) = models.glob("*/calibration")
    assert run("rm", f"{tiny}:gguf-q8_0", "--models-dir", models)[0] == 0
    assert (folder / "calibration.json").is_file()
    code, out, _ = run("rm", tiny, "--yes", "--models-dir", models)
    assert code == 0 and ":calibration" in out
    assert not folder.parent.exists()
    assert run("show", tiny, "--models-dir", models)[0] == 1


def test_errors_name_the_thing_and_what_helps(tmp_path: Path) -> None:
    code, _, err = run("calibrate", "toy-llama", "--text", tmp_path / "none.txt", "--models-dir", tmp_path)
    assert code == 1 and "none.txt" in err and "--text" in err
    code, _, err = run("calibrate", "toy-llama:gguf-q4_k_m", "--models-dir", tmp_path)
    assert code == 1 and "localq calibrate toy-llama" in err
    code, _, err = run("calibrate", "toy-llama", "--tokens", "3", "--models-dir", tmp_path)
    assert code == 1 and "tokens is 3" in err
