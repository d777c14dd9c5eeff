"""`localq bench` as its users run it: once for real, else on a report made by hand."""

from __future__ import annotations

import csv
import io
import json
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli import measuring
from localq.cli.main import app
from localq.cli.progress import ByteBar
from localq.errors import EngineError
from localq.measure.forms import Form
from localq.measure.reports import BenchReport, BenchSettings
from localq.measure.worker import Step
from tests.measure.report_examples import bench_report

_HISTORY = "bench-history.jsonl"


def bench(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def assert_fails(result: Result, *words: str) -> None:
    assert result.exit_code == 1, result.stdout
    assert ("error: " in result.stderr or '"error": ' in result.stderr) and "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


def form(name: str) -> Form:
    model, _, recipe = name.rpartition(":")
    return Form(model=model or recipe, recipe=recipe, path=Path(), artifact_bytes=1, bits_per_weight=None)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[BenchSettings]:
    """Forms are found and measured in no time; the settings of the runs."""
    runs: list[BenchSettings] = []

    def find_forms(references: Sequence[str], *_: object) -> list[Form]:
        return [form(name) for name in references]

    def bench_forms(forms: Sequence[Form], settings: BenchSettings, on_step: Callable[[Step], None]) -> BenchReport:
        runs.append(settings)
        on_step(Step("repetition 1 of 1", "measure", 1, 1))
        return bench_report({form.name: [9.0, 10.0, 12.0] for form in forms}, settings=settings)

    monkeypatch.setattr("localq.measure.forms.find_forms", find_forms)
    monkeypatch.setattr("localq.measure.speed.bench_forms", bench_forms)
    return runs


@pytest.fixture
def unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be converted or measured."""

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("too late")

    monkeypatch.setattr("localq.measure.forms.find_forms", never)
    monkeypatch.setattr("localq.measure.speed.bench_forms", never)


def test_a_real_run_is_measured_kept_and_shown_again(tmp_path: Path) -> None:
    jsonl = tmp_path / "runs.jsonl"
    ask = ("toy-llama:gguf-q4_k_m", "-p", "8,16", "-g", "4", "-d", "0,4", "-r", "2", "--json")
    result = bench(*ask, "--jsonl", jsonl)
    assert result.exit_code == 0, result.stderr
    value = json.loads(result.stdout)
    (form,) = value["results"]
    tests = ["pp8", "pp16", "tg4", "pp8 @ d4", "pp16 @ d4", "tg4 @ d4"]
    assert [test["test"] for test in form["tests"]] == tests
    assert value["command"] == "localq bench toy-llama:gguf-q4_k_m -p 8,16 -g 4 -d 0,4 -r 2"
    assert value["settings"]["prompt_tokens"] == [8, 16]
    assert form["prompt_tokens_per_second"]["median"] > 0
    assert [json.loads(line) for line in jsonl.read_text(encoding="utf-8").splitlines()] == [value]
    shown = bench("--history", "toy-llama", "--jsonl", jsonl)
    assert all(test in shown.stdout for test in tests)


@pytest.mark.parametrize("style", ["text", "md", "csv", "json"])
def test_every_output_has_the_line_that_repeats_it(style: str, measured: list[BenchSettings], tmp_path: Path) -> None:
    models = tmp_path / "my models"
    flags = [] if style == "text" else [f"--{style}"]
    first = bench(
        "some/model:gguf-q8_0", "-p", "64", "-g", "16", "-r", "5", "--delay", "0.5", "--models-dir", models, *flags
    )
    command = f"localq bench some/model:gguf-q8_0 -p 64 -g 16 -r 5 --delay 0.5 --models-dir '{models}'"
    told: dict[str, Callable[[str], str]] = {
        "text": lambda text: text.splitlines()[-1].removeprefix("repeat: "),
        "md": lambda text: text.splitlines()[-1].strip(),
        "csv": lambda text: next(csv.DictReader(io.StringIO(text)))["command"],
        "json": lambda text: json.loads(text)["command"],
    }
    assert told[style](first.stdout) == command
    bench(*shlex.split(command)[2:])
    assert measured[0] == measured[1]


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["-p", "8,16", "-p", "32", "-g", "0", "-d", "0,4096"],
        ["-p", "0", "-g", "2,2,4"],
        ["-r", "1", "-c", "9999", "--threads", "3", "--kv-cache-type", "q8_0", "--batch-tokens", "64"],
        ["--flash-attention", "--delay", "0.25"],
        ["--no-flash-attention"],
    ],
)
def test_the_line_that_repeats_a_run_gives_the_same_settings(flags: list[str], measured: list[BenchSettings]) -> None:
    command = json.loads(bench("toy", *flags, "--json").stdout)["command"]
    bench(*shlex.split(command)[2:])
    assert measured[0] == measured[1]


def test_sizes_may_be_listed_and_repeated_and_0_is_none(measured: list[BenchSettings]) -> None:
    bench("toy", "-p", "8, 16", "-p", "8", "-p", "32", "-g", "0", "-d", "0,4096")
    bench("toy", "-p", "0", "-g", "4")
    bench("toy")
    assert [(run.prompt_tokens, run.generated_tokens, run.depth_tokens) for run in measured] == [
        ((8, 16, 32), (), (0, 4096)),
        ((), (4,), (0,)),
        ((512,), (128,), (0,)),
    ]


def test_help_tells_the_defaults() -> None:
    text, defaults = " ".join(bench("--help").stdout.split()), BenchSettings()
    for (default, *_), what in (
        (defaults.prompt_tokens, "Prompt lengths; 0: none"),
        (defaults.generated_tokens, "Reply lengths; 0: none"),
        (defaults.depth_tokens, "Tokens in the cache before each"),
        ((defaults.repetitions,), "Counted runs"),
        ((int(defaults.delay_seconds),), "to cool down"),
        (("what the tests need",), "Of each artifact"),
        ((defaults.batch_tokens,), "Prompt tokens in one pass"),
    ):
        assert f"{what} (default: {default})." in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no model", "localq bench toy-llama", "--shape"]),
        (["toy-llama", "--to", "mlx-4bit"], ["--to mlx-4bit", "--shape"]),
        (["toy-llama", "-p", "many"], ["-p", "'many'"]),
        (["toy-llama", "-p", "512,-1"], ["-p", "'-1'"]),
        (["toy-llama", "-g", "1"], ["generated_tokens is 1"]),
        (["toy-llama", "-d", "4,"], ["-d", "''"]),
        (["toy-llama", "-p", "0", "-g", "0"], ["nothing to measure", "-p", "-g"]),
        (["toy-llama", "-r", "0"], ["repetitions is 0"]),
        (["toy-llama", "--delay", "nan"], ["--delay", "nan"]),
        (["toy-llama", "--delay", "-1"], ["delay_seconds", "-1"]),
        (["toy-llama", "--threads", "0"], ["threads is 0"]),
        (["toy-llama", "--kv-cache-type", "q5_1"], ["kv_cache_type", "q5_1", "q8_0"]),
        (["toy-llama", "--batch-tokens", "0"], ["batch_tokens is 0"]),
        (["toy-llama", "-c", "100"], ["pp512 needs a context of 513", "-c"]),
        (["toy-llama", "--json", "--csv"], ["--json", "--csv"]),
        (["toy-llama", "--jsonl", "no/such/folder/runs"], ["--jsonl", "no folder"]),
        (["toy-llama", "--jsonl", "."], ["--jsonl", "a folder"]),
        (["--shape", "gpt-2"], ["gpt-2", "phi-4-mini"]),
        (["--history", "-p", "8", "-c", "9", "--md"], ["--history", "-p", "-c", "--md"]),
        (["--history", "--batch-tokens", "512"], ["--history", "--batch-tokens"]),
        (["--history", "--jsonl", "no/such/file"], ["no/such/file"]),
    ],
)
@pytest.mark.usefixtures("unmeasured")
def test_bad_input_is_named_before_anything_is_made(arguments: list[str], words: list[str]) -> None:
    result = bench(*arguments)
    assert_fails(result, *words)
    assert result.stdout == ""


@pytest.mark.usefixtures("measured")
def test_a_run_goes_into_the_history_of_its_models_folder(tmp_path: Path) -> None:
    assert "no history" in bench("--history", "--models-dir", tmp_path).stderr
    assert json.loads(bench("--history", "--json", "--models-dir", tmp_path).stdout) == []
    for _ in range(2):
        bench("toy:mlx-4bit", "other:mlx-4bit", "--models-dir", tmp_path)
    runs = json.loads(bench("--history", "--json", "--models-dir", tmp_path).stdout)
    assert [[result["model"] for result in run["results"]] for run in runs] == [["toy", "other"]] * 2
    shown = bench("--history", "toy:mlx-4bit", "--models-dir", tmp_path).stdout
    assert shown.count("2026-11-21") == 4 and "other" not in shown
    assert_fails(bench("--history", "third", "--models-dir", tmp_path), "third", "toy:mlx-4bit", "other:mlx-4bit")


@pytest.mark.usefixtures("measured")
def test_a_chosen_file_takes_the_place_of_that_history(tmp_path: Path) -> None:
    models, file = tmp_path / "models", tmp_path / "runs.jsonl"
    bench("toy:mlx-4bit", "--models-dir", models, "--jsonl", file)
    assert not (models / _HISTORY).exists()
    assert len(json.loads(bench("--history", "--json", "--jsonl", file).stdout)) == 1


@pytest.mark.usefixtures("measured")
def test_lines_of_a_history_that_are_no_reports_are_numbered_and_the_others_shown(tmp_path: Path) -> None:
    """Such as the entries of older versions, without or with samples."""
    file = tmp_path / "runs.jsonl"
    file.write_text('{"model": "toy", "test": "tg128", "tokens_per_second": {"median": 1.0}}\nnonsense\n' * 6)
    bench("toy:mlx-4bit", "--jsonl", file)
    shown = bench("--history", "--jsonl", file)
    assert shown.exit_code == 0
    assert f"{file}: skipped what is damaged or of an older version, line 1, 2, 3, 4, 5, 6, 7, 8 ..." in shown.stderr
    assert "tg128" in shown.stdout


@pytest.mark.usefixtures("measured")
def test_a_history_that_cannot_be_written_costs_a_warning_and_no_measurement(tmp_path: Path) -> None:
    (tmp_path / _HISTORY).mkdir()
    result = bench("toy:mlx-4bit", "--models-dir", tmp_path)
    assert result.exit_code == 0
    assert "10.00 ± 1.53" in result.stdout
    assert "warning: this run is not in the history" in result.stderr and _HISTORY in result.stderr


@pytest.mark.usefixtures("measured")
def test_a_chosen_file_on_a_full_disk_is_an_error_after_the_measurement_is_shown(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    (tmp_path / "full").symlink_to("/dev/full")
    result = bench("toy:mlx-4bit", "--jsonl", tmp_path / "full")
    assert_fails(result, "full", "No space left")
    assert "10.00 ± 1.53" in result.stdout


def test_a_run_that_fails_leaves_nothing(
    measured: list[BenchSettings], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for error, status in ((EngineError("it ended"), 1), (KeyboardInterrupt(), 130)):

        def fail(*args: object, error: BaseException = error, **kwargs: object) -> None:
            raise error

        monkeypatch.setattr("localq.measure.speed.bench_forms", fail)
        result = bench("toy", "--models-dir", tmp_path, "--jsonl", tmp_path / "runs")
        assert (result.exit_code, result.stdout) == (status, "")
    assert measured == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("measured")
def test_a_partial_run_is_shown_and_marked_and_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    partial = bench_report({"toy:mlx-4bit": [9.0, 10.0, 12.0]}, partial=True)
    monkeypatch.setattr("localq.measure.speed.bench_forms", lambda *_: partial)
    for flag, marked in (("--json", '"partial": true'), ("--md", "partial"), ("--models-dir", "partial")):
        result = bench("toy:mlx-4bit", "--models-dir", tmp_path, *([flag] if flag != "--models-dir" else []))
        assert result.exit_code == 130
        assert marked in result.stdout and "10.0" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_shapes_are_measured_beside_models_and_gone_at_the_end(
    measured: list[BenchSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    there: list[str] = []
    asked: list[Any] = []

    @contextmanager
    def shape_forms(name: str, recipes: Any, options: Any, **others: object) -> Iterator[list[Form]]:
        asked.append((name, recipes, options.context_length))
        there.append(name)
        yield [form(f"{name}:{recipe}") for recipe in recipes or ["default"]]
        there.remove(name)

    monkeypatch.setattr("localq.measure.shapes.shape_forms", shape_forms)
    shapes = ("--shape", "phi-4-mini", "--shape", "llama-3.2-1b")
    value = json.loads(bench("toy:mlx-4bit", *shapes, "--to", "mlx-4bit", "--to", "gguf-q8_0", "--json").stdout)
    assert [f"{result['model']}:{result['recipe']}" for result in value["results"]] == [
        "toy:mlx-4bit",
        *(f"{name}:{recipe}" for name in ("phi-4-mini", "llama-3.2-1b") for recipe in ("mlx-4bit", "gguf-q8_0")),
    ]
    assert value["command"] == (
        "localq bench toy:mlx-4bit --shape phi-4-mini --shape llama-3.2-1b --to mlx-4bit --to gguf-q8_0 "
        f"-p 512 -g 128 -r {BenchSettings().repetitions}"
    )
    assert asked == [(name, ["mlx-4bit", "gguf-q8_0"], 513) for name in ("phi-4-mini", "llama-3.2-1b")]
    bench("--shape", "phi-4-mini", "-c", "600")
    assert asked[-1] == ("phi-4-mini", None, 600)
    assert there == [] and len(measured) == 2


@pytest.mark.usefixtures("measured")
def test_progress_goes_to_stderr_and_data_to_stdout(tmp_path: Path) -> None:
    result = bench("toy:mlx-4bit", "--csv", "--models-dir", tmp_path)
    assert "1/1 repetition 1 of 1" in result.stderr
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["test"] for row in rows] == ["pp512", "tg128"]


def test_on_a_terminal_one_line_says_what_runs_and_how_long_it_will_take(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    monkeypatch.setattr(measuring, "stderr_is_terminal", lambda: True)
    times = iter([40.0, 100.0, 104.0, 1000.0])
    monkeypatch.setattr(measuring.time, "monotonic", lambda: next(times))
    monkeypatch.setenv("COLUMNS", "60")
    with ByteBar() as bar, measuring.StepLine(bar) as line:
        for number, what in (
            (1, "memory bandwidth"),
            (2, "load"),
            (4, "tg128"),
            (301, "a name that is longer than what the terminal has room for"),
        ):
            line.show(Step("repetition 1 of 9", what, number, 2000))
    assert written.getvalue().split("\r\x1b[K") == [
        "",
        "1/2000 repetition 1 of 9: memory bandwidth",
        "2/2000 repetition 1 of 9: load",
        "67 min left, 4/2000 repetition 1 of 9: tg128",
        "85 min left, 301/2000 repetition 1 of 9: a name that is lon",
        "",
    ]


def test_a_reader_that_has_enough_is_no_error_and_the_run_is_kept(tmp_path: Path) -> None:
    ask = f"toy-llama:gguf-q4_k_m -p 4 -g 2 -r 1 --jsonl {shlex.quote(str(tmp_path / 'runs'))}"
    program = "import localq.hardware; localq.hardware._BYTES_READ = 1 << 20; from localq.cli.main import main; main()"
    command = f"{sys.executable} -c {shlex.quote(program)} bench {ask} | true"
    ran = subprocess.run(command, shell=True, capture_output=True, check=True, timeout=120)
    assert b"error" not in ran.stderr and b"Traceback" not in ran.stderr
    assert len((tmp_path / "runs").read_text().splitlines()) == 1
