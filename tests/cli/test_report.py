"""`localq report` as its users run it: once for real, else on what was measured before or on measurements by hand."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from localq.errors import LocalqError
from localq.measure.quality import EvalSettings
from localq.measure.report import ReportRequest
from localq.measure.reports import BenchReport, BenchSettings, EvalReport
from tests.measure.report_examples import FAST, SLOW, bench_report, eval_report
from tests.measure.test_page import Document

A, B = "toy-llama:gguf-a", "toy-llama:mlx-b"


def report(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["report", *map(str, arguments)])


def assert_fails(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.stdout
    assert "error: " in result.stderr and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.fixture
def bench_file(tmp_path: Path) -> Path:
    file = tmp_path / "bench.json"
    file.write_text(bench_report({A: FAST, B: SLOW}, command="localq bench toy-llama -r 3").model_dump_json())
    return file


@pytest.fixture
def eval_file(tmp_path: Path) -> Path:
    file = tmp_path / "eval.json"
    file.write_text(eval_report({A: 0.01, B: 0.04}, command="").model_dump_json())
    return file


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[ReportRequest]:
    """What is asked for; measured in no time."""
    monkeypatch.chdir(tmp_path)
    asked: list[ReportRequest] = []

    def measure(
        request: ReportRequest, on_bench: Callable[[BenchReport], None], *others: object
    ) -> tuple[BenchReport, EvalReport | None]:
        asked.append(request)
        bench, evaluation = request.bench, request.evaluation
        if isinstance(bench, BenchSettings):
            bench = bench_report({A: FAST, B: SLOW}, settings=bench)
            on_bench(bench)
        if isinstance(evaluation, EvalSettings):
            found = eval_report({A: 0.01, B: 0.04})
            used = found.settings.model_copy(update={"window_tokens": evaluation.window_tokens or 512})
            evaluation = found.model_copy(update={"settings": used})
        return bench, evaluation

    monkeypatch.setattr("localq.measure.report.measure", measure)
    return asked


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be measured."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("localq.measure.report.bench_forms", never)
    monkeypatch.setattr("localq.measure.report.evaluate", never)


def test_a_real_run_gives_a_whole_page_and_goes_into_the_history(tmp_path: Path, models_dir: Path) -> None:
    page = tmp_path / "toy.html"
    result = report("toy-llama", "-p", "8", "-g", "4", "-r", "2", "--window", "64", "--windows", "3", "--html", page)
    assert result.exit_code == 0, result.stderr
    document = Document(page.read_text(encoding="utf-8"))
    headline = next(text for text in document.texts["p"] if text.strip() == result.stdout.splitlines()[0])
    assert headline and f"wrote {page}" in result.stderr
    assert document.faults == []
    rows = {text.strip() for text in document.texts["th"]}
    assert {"gguf-f32 (baseline)", "gguf-q4_k_m", "mlx-4bit", "mlx-f32 (noise floor)"} <= rows
    assert "localq report toy-llama -p 8 -g 4 -r 2 --window 64 --windows 3" in document.texts["code"]
    kept = [json.loads(line) for line in (models_dir / "bench-history.jsonl").read_text(encoding="utf-8").splitlines()]
    assert kept[-1]["command"] == "localq bench toy-llama -p 8 -g 4 -r 2"


def test_the_verdict_and_the_tables_are_shown_in_the_terminal(bench_file: Path, eval_file: Path) -> None:
    result = report("--bench", bench_file, "--eval", eval_file)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(
        "toy-llama: speed and quality by format\n\nTake gguf-a: it beats every other format.\n"
    )
    assert " 0.01 ± 0.0005 " in result.stdout and "12.50 ± 0.10" in result.stdout
    assert result.stdout.endswith("\nrepeat: localq bench toy-llama -r 3\n")


@pytest.mark.parametrize("columns", [60, 80])
def test_piped_output_keeps_columns(columns: int, bench_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = report("--bench", bench_file, "--no-eval").stdout.splitlines()
    assert max(map(len, lines)) <= columns


def test_markdown_goes_to_stdout(bench_file: Path, eval_file: Path) -> None:
    shown = report("--bench", bench_file, "--eval", eval_file, "--md").stdout
    assert shown.startswith("# toy-llama: speed and quality by format\n\n**Take gguf-a: it beats every other format.**")


def test_markdown_and_html_can_be_had_at_once(bench_file: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    result = report("--bench", bench_file, "--no-eval", "--html", page, "--md")
    assert result.stdout.startswith("# toy-llama: speed by format\n")
    assert Document(page.read_text(encoding="utf-8")).faults == []


def test_a_bench_that_is_stopped_is_shown_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bench = bench_report({A: FAST, B: SLOW}, partial=True)
    monkeypatch.setattr("localq.measure.report.bench_forms", lambda *_: bench)
    monkeypatch.setattr("localq.measure.report.find_forms", lambda *_: [])
    result = report("toy-llama", "--no-eval", "--models-dir", tmp_path)
    assert result.exit_code == 130
    assert "(partial)" in result.stdout and "The run was stopped early" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["-p", "8,16", "-g", "4", "-d", "0,32", "-r", "2", "--threads", "2"],
        ["--no-eval", "-r", "3"],
        ["--text", "my text.txt", "--window", "64", "--windows", "7", "--baseline", "toy-llama:gguf-q8_0"],
        ["--models-dir", "some models"],
    ],
)
def test_the_line_that_repeats_it_asks_for_the_same(arguments: list[str], requests: list[ReportRequest]) -> None:
    def command(result: Result) -> str:
        return next(
            line for line in result.stdout.splitlines() if line.startswith("repeat: localq report")
        ).removeprefix("repeat: ")

    again = shlex.split(command(report("toy-llama", *arguments)))
    repeated = command(report(*again[2:]))
    assert shlex.split(repeated) == again
    assert requests[0].references == requests[1].references and requests[0].bench == requests[1].bench
    first, second = (request.evaluation for request in requests)
    if isinstance(first, EvalSettings) and first.window_tokens is None:
        assert isinstance(second, EvalSettings) and second.window_tokens == 512  # as used
    else:
        assert first == second


def test_a_half_that_was_measured_before_is_repeated_by_its_own_line(
    bench_file: Path, eval_file: Path, requests: list[ReportRequest]
) -> None:
    shown = report("toy-llama", "--bench", bench_file, "--windows", "4").stdout
    assert "repeat: localq bench toy-llama -r 3\nrepeat: localq eval toy-llama --window 512 --windows 4\n" in shown
    shown = report("toy-llama", "--eval", eval_file, "-g", "8", "-r", "3").stdout
    assert "repeat: localq bench toy-llama -p 512 -g 8 -r 3\n" in shown
    assert [isinstance(request.bench, BenchSettings) for request in requests] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no model to measure", "localq report toy-llama --html"]),
        (["--bench", "BENCH"], ["no model to evaluate", "--no-eval"]),
        (["--eval", "EVAL", "--no-eval"], ["--eval and --no-eval exclude each other"]),
        (
            ["toy-llama", "--no-eval", "--text", "x", "--windows", "2"],
            ["--text, --windows can't be used with --no-eval"],
        ),
        (["toy-llama", "--bench", "BENCH", "-p", "8", "-r", "2"], ["-p, -r can't be used with --bench"]),
        (["toy-llama", "--eval", "EVAL", "--baseline", "x"], ["--baseline can't be used with --eval"]),
        (["toy-llama", "--bench", "BENCH", "--eval", "EVAL"], ["all was measured before", "leave out REF"]),
        (["--bench", "EVAL", "--no-eval"], ["eval.json is no report", "localq bench REF... --json"]),
        (["--bench", "none.json", "--no-eval"], ["can't read none.json"]),
        (["toy-llama", "--html", "page.txt"], ["--html is 'page.txt'", ".html"]),
        (["toy-llama", "--html", "none/page.html"], ["--html is 'none/page.html'", "no folder"]),
        (["toy-llama", "-p", "x"], ["-p has 'x'"]),
        (["toy-llama", "-r", "0"], ["repetitions is 0"]),
        (["toy-llama", "--windows", "0"], ["--windows is 0"]),
        (["toy-llama", "--text", "-"], ["--text is standard input"]),
        (["toy-llama", "--text", "none.txt"], ["none.txt"]),
        (["./folder"], ["folder"]),
        (["toy-llama", "--window", "99999"], ["--window is 99999", "1024"]),
        (["toy-phi:gguf-q4_k_m", "--eval", "EVAL"], ["no artifact was measured in both speed and quality"]),
        (["toy-phi:gguf-q4_k_m", "--bench", "BENCH"], ["no artifact was measured in both speed and quality"]),
    ],
)
def test_what_can_be_refused_is_refused_before_anything_is_measured(
    arguments: Sequence[str], words: list[str], bench_file: Path, eval_file: Path, unmeasured: None
) -> None:
    files = {"BENCH": str(bench_file), "EVAL": str(eval_file)}
    assert_fails(report(*[files.get(argument, argument) for argument in arguments]), *words)


def test_a_model_without_a_text_is_refused_with_what_helps(tmp_path: Path, unmeasured: None) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert_fails(report(folder), "there is no text to evaluate on", "--text FILE", "--no-eval")


def test_artifacts_of_one_name_are_refused_before(tmp_path: Path, unmeasured: None) -> None:
    files = [tmp_path / folder / "toy.gguf" for folder in "ab"]
    for file in files:
        file.parent.mkdir()
        file.touch()
    assert_fails(report(*files, "--no-eval"), "2 artifacts have the name toy:gguf")


def test_what_was_measured_is_shown_where_the_page_can_not_be_written(
    bench_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, text: str) -> None:
        raise LocalqError(f"can't write {file}: No space left on device")

    monkeypatch.setattr("localq.disk.write_text", full)
    result = report("--bench", bench_file, "--no-eval", "--html", tmp_path / "page.html")
    assert_fails(result, "No space left on device")
    assert "toy-llama: speed by format" in result.stdout
