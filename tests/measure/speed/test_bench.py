from __future__ import annotations

import dataclasses
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from localq.errors import EngineError, LocalqError, OptionError
from localq.measure.forms import Form
from localq.measure.process import WorkerProcess
from localq.measure.speed import bench as bench_module
from localq.measure.speed.bench import bench_forms
from localq.measure.speed.limits import bytes_per_token
from localq.measure.speed.results import BenchReport, BenchSettings
from localq.options import LoadOptions

_SETTINGS = BenchSettings(prompt_tokens=(24,), generated_tokens=(6,), depth_tokens=(0, 30), repetitions=2)
_SMALL = BenchSettings(prompt_tokens=(4,), generated_tokens=(2,), repetitions=1)
_CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def _little_memory_is_read() -> Iterator[None]:
    patch = pytest.MonkeyPatch()
    patch.setattr("localq.measure.bandwidth._BYTES", 1 << 20)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def steps_and_report(forms: list[Form]) -> tuple[list[str], BenchReport]:
    steps: list[str] = []
    return steps, bench_forms(forms, _SETTINGS, steps.append)


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "localq.measure.speed.worker" in child.cmdline()]


def test_forms_take_turns_test_by_test(steps_and_report: tuple[list[str], BenchReport], forms: list[Form]) -> None:
    steps, _ = steps_and_report
    mlx, gguf = (form.name for form in forms)
    rounds = [
        f"{form}: {what}, {repetition}"
        # Every second time the other way round.
        for repetition, turn in (("repetition 1", (mlx, gguf)), ("repetition 2", (gguf, mlx)))
        for what in ("load", "pp24", "tg6", "pp24 @ d30", "tg6 @ d30")
        for form in turn
    ]
    expected = ["memory bandwidth", *(f"{form}: load from disk" for form in (mlx, gguf)), *rounds, "memory bandwidth"]
    assert steps == [f"{number}/{len(expected)} {step}" for number, step in enumerate(expected, start=1)]


def test_the_json_has_the_keys_of_the_contract(steps_and_report: tuple[list[str], BenchReport]) -> None:
    value = json.loads(json.dumps(steps_and_report[1].to_json()))
    assert {"machine", "settings", "results"} <= set(value)
    for result in value["results"]:
        assert set(result) >= {
            "model",
            "recipe",
            "bits_per_weight",
            "artifact_bytes",
            "load_seconds",
            "time_to_first_token_seconds",
            "prompt_tokens_per_second",
            "generated_tokens_per_second",
            "peak_memory_bytes",
        }
        rates = [test["tokens_per_second"] for test in result["tests"]]
        assert [test["test"] for test in result["tests"]] == ["pp24", "tg6", "pp24 @ d30", "tg6 @ d30"]
        assert [result["prompt_tokens_per_second"], result["generated_tokens_per_second"]] == rates[:2]
        for rate in rates:
            assert set(rate) >= {"median", "stdev", "samples"}
            assert len(rate["samples"]) == 2
            assert all(sample > 0 for sample in rate["samples"])
            assert rate["stdev"] == statistics.stdev(rate["samples"])


def test_the_settings_are_complete(steps_and_report: tuple[list[str], BenchReport]) -> None:
    assert steps_and_report[1].to_json()["settings"] == {
        "prompt_tokens": (24,),
        "generated_tokens": (6,),
        "depth_tokens": (0, 30),
        "repetitions": 2,
        "delay_seconds": 0.0,
        "context_length": 55,
        "threads": None,
        "kv_cache_type": None,
        "flash_attention": None,
        "batch_tokens": 512,
        "decode_prompt_tokens": 1,
    }


def test_each_form_has_its_own_load_time_and_memory(
    steps_and_report: tuple[list[str], BenchReport], forms: list[Form]
) -> None:
    mlx, gguf = steps_and_report[1].results
    assert [mlx.form, gguf.form] == forms
    assert mlx.load_seconds != gguf.load_seconds
    assert mlx.peak_memory_bytes != gguf.peak_memory_bytes
    assert all(result.peak_memory_bytes > result.form.artifact_bytes for result in (mlx, gguf))
    # The rates and the time to the first token come from the same runs.
    for result in (mlx, gguf):
        shortest = min(24 / rate for rate in result.tests[0].tokens_per_second.samples)
        assert result.time_to_first_token_seconds is not None
        assert result.time_to_first_token_seconds > shortest


def test_every_repetition_has_processes_of_its_own(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Path] = []
    monkeypatch.setattr(bench_module, "drop_from_page_cache", lambda files: dropped.extend(files) or True)
    seen: list[set[int]] = []
    settings = dataclasses.replace(_SMALL, repetitions=2)
    (result,) = bench_forms([forms[1]], settings, lambda step: seen.append({w.pid for w in _workers()})).results
    # Before: bandwidth, load from disk; then, twice, load and two tests; then bandwidth.
    assert [len(processes) for processes in seen] == [0, 0, 0, 1, 1, 0, 1, 1, 0]
    assert seen[3] == seen[4] != seen[6] == seen[7]
    assert {file.name for file in dropped} == {file.name for file in forms[1].path.iterdir()}
    assert result.cold_load_seconds is not None and result.cold_load_seconds != result.load_seconds


def test_where_nothing_can_be_dropped_there_is_no_cold_load(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_module, "drop_from_page_cache", lambda files: False)
    (result,) = bench_forms([forms[1]], _SMALL).results
    assert result.cold_load_seconds is None and result.load_seconds > 0


def test_generation_has_a_limit_and_prompts_have_none(
    steps_and_report: tuple[list[str], BenchReport], forms: list[Form]
) -> None:
    report = steps_and_report[1]
    bandwidth = report.memory_bandwidth_bytes_per_second
    assert bandwidth > 0
    for form, result in zip(forms, report.results, strict=True):
        prompt, generation, _, deep_generation = result.tests
        assert prompt.limit is None
        for test, context in ((generation, 3), (deep_generation, 33)):
            assert test.limit is not None
            assert test.limit.bytes_per_token == bytes_per_token(form, LoadOptions(), context)
            assert test.limit.tokens_per_second == bandwidth / test.limit.bytes_per_token
            assert test.limit.share == pytest.approx(test.tokens_per_second.median / test.limit.tokens_per_second)


def test_every_two_forms_are_compared_in_every_test(
    steps_and_report: tuple[list[str], BenchReport], forms: list[Form]
) -> None:
    report = steps_and_report[1]
    assert [item.test for item in report.comparisons] == list(report.settings.tests)
    for index, item in enumerate(report.comparisons):
        assert {item.faster, item.slower} == {form.name for form in forms}
        samples = {result.form.name: result.tests[index].tokens_per_second.samples for result in report.results}
        ratios = [a / b for a, b in zip(samples[item.faster], samples[item.slower], strict=True)]
        assert item.ratio.estimate == pytest.approx(math.sqrt(ratios[0] * ratios[1]))


class _FakeWorker:
    """Answers at once, with rates that scatter by 1%; the form of the model `slowed` is 5% slower."""

    draw = random.Random(1)

    def __init__(self, name: str) -> None:
        self._rate = 95 if name.startswith("slowed") else 100

    def ask(self, command: str, **_: object) -> dict[str, Any]:
        rate = self._rate * self.draw.gauss(1, 0.01)
        return {
            "load": {"load_seconds": 2.0},
            "measure": {"tokens_per_second": rate, "time_to_first_token_seconds": 1, "joules_per_token": 10 / rate},
            "peak_memory": {"peak_memory_bytes": round(1e6 * rate)},
        }[command]

    def __enter__(self) -> _FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def test_a_form_that_is_slowed_down_by_5_percent_is_named_the_slower_one(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_module, "WorkerProcess", _FakeWorker)
    slowed, one, other = (dataclasses.replace(forms[1], model=name) for name in ("slowed", "one", "other"))
    report = bench_forms([slowed, one, other], BenchSettings(prompt_tokens=(4,), generated_tokens=(2,)))
    found = [(item.faster, item.slower, item.differs) for item in report.comparisons]
    assert found[:4] == [(one.name, slowed.name, True)] * 2 + [(other.name, slowed.name, True)] * 2
    assert [differs for _, _, differs in found[4:]] == [False] * 2
    for result in report.results:
        assert result.load_seconds == 2
        for test in result.tests:
            assert test.joules_per_token == pytest.approx(10 / test.tokens_per_second.median, rel=0.01)


def test_a_single_repetition_compares_nothing(forms: list[Form]) -> None:
    report = bench_forms(forms, _SMALL)
    assert report.comparisons == ()
    assert [result.tests[0].tokens_per_second.confidence_interval for result in report.results] == [None, None]


def test_the_start_is_told_in_utc(steps_and_report: tuple[list[str], BenchReport]) -> None:
    started = datetime.fromisoformat(steps_and_report[1].started)
    assert started.utcoffset() == timedelta(0)
    assert timedelta(0) < datetime.now(UTC) - started < timedelta(hours=1)


def test_there_is_a_pause_before_each_measurement(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("localq.measure.speed.bench.time.sleep", pauses.append)
    bench_forms([forms[1]], dataclasses.replace(_SMALL, delay_seconds=7.5))
    assert pauses.count(7.5) == 2  # of two tests


def test_no_process_is_left_over(steps_and_report: tuple[list[str], BenchReport]) -> None:
    assert steps_and_report
    assert _workers() == []


def test_a_worker_that_is_killed_is_reported_with_its_form(forms: list[Form]) -> None:
    def kill_when_measuring(step: str) -> None:
        if "repetition 1" in step:
            for worker in _workers():
                worker.kill()

    with pytest.raises(EngineError, match=r"local/tiny:gguf-q4_k_m was killed by SIGKILL") as caught:
        bench_forms([forms[1]], _SETTINGS, kill_when_measuring)
    assert "memory" in caught.value.hint
    assert _workers() == []


def test_a_worker_that_crashes_is_reported_with_its_last_words(forms: list[Form], tmp_path: Path) -> None:
    (tmp_path / "llama_cpp.py").write_text("raise RuntimeError('no such luck')")
    environment = pytest.MonkeyPatch()
    environment.setenv("PYTHONPATH", str(tmp_path))
    try:
        with pytest.raises(EngineError, match=r"gguf-q4_k_m ended with exit status 1: RuntimeError: no such luck"):
            bench_forms([forms[1]], _SETTINGS)
    finally:
        environment.undo()


def test_an_error_in_a_worker_comes_over_with_its_hint(forms: list[Form]) -> None:
    settings = BenchSettings(prompt_tokens=(600,), generated_tokens=(2,), repetitions=1)
    with pytest.raises(LocalqError, match=r"gguf-q4_k_m: a context of 601 tokens .* model's 512") as caught:
        bench_forms([forms[1]], settings)
    assert "-p" in caught.value.hint


def test_threads_and_flash_attention_are_for_gguf_forms(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, dict[str, object]] = {}
    ask = WorkerProcess.ask

    def recording_ask(worker: WorkerProcess, command: str, **arguments: object) -> dict[str, Any]:
        if command == "load":
            given[worker._name] = arguments
        return ask(worker, command, **arguments)

    monkeypatch.setattr(WorkerProcess, "ask", recording_ask)
    settings = dataclasses.replace(_SMALL, threads=2, flash_attention=True, kv_cache_type="q8_0", batch_tokens=8)
    report = bench_forms(forms, settings)
    shared = {"context_length": 5, "kv_cache_type": "q8_0", "batch_tokens": 8}
    mlx, gguf = forms
    assert given[mlx.name] == {"path": str(mlx.path), "threads": None, "flash_attention": None, **shared}
    assert given[gguf.name] == {"path": str(gguf.path), "threads": 2, "flash_attention": True, **shared}
    assert report.to_json()["settings"]["threads"] == 2


def test_forms_that_cannot_be_in_memory_together_are_refused(forms: list[Form]) -> None:
    huge = [dataclasses.replace(form, artifact_bytes=1 << 50) for form in forms]
    with pytest.raises(OptionError, match="2 forms have 2251799.8 GB together"):
        bench_forms(huge, _SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_tokens": (512, 0)}, "prompt_tokens is 0; expected at least 1"),
        ({"generated_tokens": (1,)}, "generated_tokens is 1; expected at least 2"),
        ({"depth_tokens": (-1,)}, "depth_tokens is -1; expected at least 0"),
        ({"repetitions": 0}, "repetitions is 0; expected at least 1"),
        ({"delay_seconds": -0.5}, "delay_seconds is -0.5; expected a number between 0 and 3600"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"prompt_tokens": (), "generated_tokens": ()}, "nothing to measure"),
        ({"depth_tokens": ()}, "nothing to measure"),
        ({"prompt_tokens": (64,), "generated_tokens": (8,), "context_length": 64}, "pp64 needs a context of 65 tokens"),
        ({"prompt_tokens": (8,), "generated_tokens": (64,), "context_length": 64}, "tg64 needs a context of 65 tokens"),
        ({"depth_tokens": (0, 100), "context_length": 600}, "pp512 @ d100 needs a context of 613 tokens; it has 600"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BenchSettings(**settings)


def test_every_size_is_measured_at_every_depth_once() -> None:
    settings = BenchSettings(prompt_tokens=(64, 512, 64), generated_tokens=(16,), depth_tokens=(0, 4096, 0))
    assert [test.name for test in settings.tests] == [
        "pp64",
        "pp512",
        "tg16",
        "pp64 @ d4096",
        "pp512 @ d4096",
        "tg16 @ d4096",
    ]
    assert settings.least_context_length == 4096 + 513


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_the_script_and_its_workers_quietly(
    forms: list[Form], checkpoint_folder: Path, models_dir: Path, number: signal.Signals, status: int
) -> None:
    assert forms  # converted already
    script = subprocess.Popen(
        [
            sys.executable,
            _CHECKOUT / "benchmarks" / "tokens_per_second.py",
            f"{checkpoint_folder}:gguf-q4_k_m",
            "--models-dir",
            models_dir,
            *("-p", "16", "-g", "4", "-r", "1000000"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert script.stderr is not None
    while "tg4, repetition" not in (line := script.stderr.readline()):
        assert line, "the script ended by itself"
    workers = psutil.Process(script.pid).children()
    script.send_signal(number)
    output, errors = script.communicate(timeout=30)
    assert script.returncode == status
    assert output == ""
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) == 1
    assert not workers[0].is_running()
