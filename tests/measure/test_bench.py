from __future__ import annotations

import dataclasses
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from localq.errors import EngineError, LocalqError, OptionError
from localq.measure.bench import BenchReport, BenchSettings, bench_forms, summarize
from localq.measure.forms import Form
from localq.measure.process import WorkerProcess

_SETTINGS = BenchSettings(prompt_tokens=24, generated_tokens=6, repetitions=2)
_CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps_and_report(forms: list[Form]) -> tuple[list[str], BenchReport]:
    steps: list[str] = []
    return steps, bench_forms(forms, _SETTINGS, steps.append)


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if "localq.measure.worker" in child.cmdline()]


def test_a_summary_has_the_median_and_the_sample_standard_deviation() -> None:
    draw = random.Random(5)
    for count in range(2, 9):
        samples = [draw.uniform(1, 100) for _ in range(count)]
        summary = summarize(samples)
        assert summary.median == statistics.median(samples)
        assert summary.stdev == statistics.stdev(samples)
        assert summary.samples == tuple(samples)


def test_the_spread_of_a_single_sample_is_not_known() -> None:
    assert summarize([3.5]).stdev is None
    assert summarize([3.5]).median == 3.5


def test_forms_take_turns(steps_and_report: tuple[list[str], BenchReport], forms: list[Form]) -> None:
    steps, _ = steps_and_report
    mlx, gguf = (form.name for form in forms)
    assert steps == [
        f"1/8 {mlx}: load",
        f"2/8 {gguf}: load",
        f"3/8 {mlx}: warm up",
        f"4/8 {gguf}: warm up",
        f"5/8 {mlx}: repetition 1",
        f"6/8 {gguf}: repetition 1",
        f"7/8 {mlx}: repetition 2",
        f"8/8 {gguf}: repetition 2",
    ]


def test_the_json_has_the_keys_of_the_contract(steps_and_report: tuple[list[str], BenchReport]) -> None:
    value = steps_and_report[1].to_json()
    assert list(value) == ["machine", "settings", "results"]
    for result in value["results"]:
        assert list(result) == [
            "model",
            "recipe",
            "bits_per_weight",
            "artifact_bytes",
            "load_seconds",
            "time_to_first_token_seconds",
            "prompt_tokens_per_second",
            "generated_tokens_per_second",
            "peak_memory_bytes",
        ]
        for rate in (result["prompt_tokens_per_second"], result["generated_tokens_per_second"]):
            assert list(rate) == ["median", "stdev", "samples"]
            assert len(rate["samples"]) == 2
            assert all(sample > 0 for sample in rate["samples"])
            assert rate["stdev"] == statistics.stdev(rate["samples"])


def test_the_settings_are_complete(steps_and_report: tuple[list[str], BenchReport]) -> None:
    assert steps_and_report[1].to_json()["settings"] == {
        "prompt_tokens": 24,
        "generated_tokens": 6,
        "repetitions": 2,
        "context_length": 25,
        "threads": None,
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
        shortest = min(24 / rate for rate in result.prompt_tokens_per_second.samples)
        assert result.time_to_first_token_seconds > shortest


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
    settings = BenchSettings(prompt_tokens=600, generated_tokens=2, repetitions=1)
    with pytest.raises(LocalqError, match=r"gguf-q4_k_m: a context of 601 tokens .* model's 512") as caught:
        bench_forms([forms[1]], settings)
    assert "-p" in caught.value.hint


def test_a_number_of_threads_is_for_gguf_forms(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, object] = {}
    ask = WorkerProcess.ask

    def recording_ask(worker: WorkerProcess, command: str, **arguments: object) -> dict[str, Any]:
        if command == "load":
            given[worker._name] = arguments["threads"]
        return ask(worker, command, **arguments)

    monkeypatch.setattr(WorkerProcess, "ask", recording_ask)
    settings = BenchSettings(prompt_tokens=4, generated_tokens=2, repetitions=1, threads=2)
    report = bench_forms(forms, settings)
    assert list(given.values()) == [None, 2]
    assert report.to_json()["settings"]["threads"] == 2


def test_forms_that_cannot_be_in_memory_together_are_refused(forms: list[Form]) -> None:
    huge = [dataclasses.replace(form, artifact_bytes=1 << 50) for form in forms]
    with pytest.raises(OptionError, match="2 forms have 2251799.8 GB together"):
        bench_forms(huge, _SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_tokens": 0}, "prompt_tokens is 0; expected at least 1"),
        ({"generated_tokens": 1}, "generated_tokens is 1; expected at least 2"),
        ({"repetitions": 0}, "repetitions is 0; expected at least 1"),
        ({"threads": 0}, "threads is 0; expected at least 1"),
        ({"prompt_tokens": 64, "generated_tokens": 8, "context_length": 64}, "need a context of 65 tokens; it has 64"),
        ({"prompt_tokens": 8, "generated_tokens": 64, "context_length": 64}, "need a context of 65 tokens"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        BenchSettings(**settings)


def test_ctrl_c_ends_the_script_and_its_workers_quietly(
    forms: list[Form], checkpoint_folder: Path, models_dir: Path
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
    while "repetition" not in (line := script.stderr.readline()):
        assert line, "the script ended by itself"
    workers = psutil.Process(script.pid).children()
    script.send_signal(signal.SIGINT)
    output, errors = script.communicate(timeout=30)
    assert script.returncode == 130
    assert output == ""
    assert "Traceback" not in errors
    deadline = time.monotonic() + 5
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) == 1
    assert not workers[0].is_running()
