from __future__ import annotations

import itertools
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

from localq.errors import EngineError, OptionError
from localq.measure import speed
from localq.measure.forms import Form
from localq.measure.limits import bytes_per_token
from localq.measure.reports import BenchReport, BenchSettings
from localq.measure.speed import bench_forms, bench_tests, complete_settings
from localq.measure.worker import _PROGRAM, Loaded, Step
from localq.options import LoadOptions
from tests.measure.report_examples import MACHINE, form_speed

_SETTINGS = BenchSettings(prompt_tokens=(24,), generated_tokens=(6,), depth_tokens=(0, 30), repetitions=2)
_SMALL = BenchSettings(prompt_tokens=(4,), generated_tokens=(2,), repetitions=1)
_CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def steps_and_report(forms: list[Form]) -> tuple[list[Step], BenchReport]:
    steps: list[Step] = []
    return steps, bench_forms(forms, _SETTINGS, steps.append)


def _workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if _PROGRAM in child.cmdline()]


def test_forms_take_turns_test_by_test(steps_and_report: tuple[list[Step], BenchReport], forms: list[Form]) -> None:
    steps, _ = steps_and_report
    assert _workers() == []  # none is left
    mlx, gguf = (form.name for form in forms)
    rounds = [
        (part, f"{form}, {what}")
        # Every second time in reverse.
        for part, turn in (("repetition 1 of 2", (mlx, gguf)), ("repetition 2 of 2", (gguf, mlx)))
        for what in ("load", "pp24", "tg6", "pp24 @ d30", "tg6 @ d30")
        for form in turn
    ]
    before = ["memory bandwidth", *(f"{form}, load from disk" for form in (mlx, gguf))]
    expected = [
        *(("before the repetitions", what) for what in before),
        *rounds,
        ("after the repetitions", "memory bandwidth"),
    ]
    assert [(step.part, step.what) for step in steps] == expected
    assert [(step.number, step.of) for step in steps] == [(number + 1, len(steps)) for number in range(len(steps))]


def test_the_json_has_the_keys_of_the_contract(steps_and_report: tuple[list[Step], BenchReport]) -> None:
    value = steps_and_report[1].model_dump(mode="json")
    assert {"machine", "settings", "results"} <= set(value)
    for result in value["results"]:
        assert set(result) >= {
            *("model", "recipe", "bits_per_weight", "artifact_bytes", "load_seconds", "time_to_first_token_seconds"),
            *("prompt_tokens_per_second", "generated_tokens_per_second", "peak_memory_bytes"),
        }
        rates = [test["tokens_per_second"] for test in result["tests"]]
        assert [test["test"] for test in result["tests"]] == ["pp24", "tg6", "pp24 @ d30", "tg6 @ d30"]
        assert [result["prompt_tokens_per_second"], result["generated_tokens_per_second"]] == rates[:2]
        for rate in rates:
            assert set(rate) >= {"median", "stdev", "samples"}
            assert len(rate["samples"]) == 2
            assert all(sample > 0 for sample in rate["samples"])
            assert rate["stdev"] == pytest.approx(statistics.stdev(rate["samples"]))


def test_the_settings_are_complete(steps_and_report: tuple[list[Step], BenchReport]) -> None:
    used = steps_and_report[1].settings
    assert used == _SETTINGS.model_copy(update={"context_length": 55})
    assert (used.threads, used.batch_tokens, used.decode_prompt_tokens) == (None, 512, 1)


def test_each_form_has_its_own_load_time_and_memory(
    steps_and_report: tuple[list[Step], BenchReport], forms: list[Form]
) -> None:
    mlx, gguf = steps_and_report[1].results
    assert [result.facts() for result in (mlx, gguf)] == [form.facts() for form in forms]
    assert mlx.load_seconds != gguf.load_seconds
    assert mlx.peak_memory_bytes != gguf.peak_memory_bytes
    assert all(result.peak_memory_bytes > result.artifact_bytes for result in (mlx, gguf))
    # The rates and the time to the first token come from the same runs.
    for result in (mlx, gguf):
        shortest = min(24 / rate for rate in result.tests[0].tokens_per_second.samples)
        assert result.time_to_first_token_seconds is not None
        assert result.time_to_first_token_seconds > shortest


def test_every_repetition_has_processes_of_its_own(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    dropped: list[Path] = []
    monkeypatch.setattr(speed, "drop_from_cache", lambda files: dropped.extend(files) or True)
    seen: list[set[int]] = []
    settings = _SMALL.model_copy(update={"repetitions": 2})
    (result,) = bench_forms([forms[1]], settings, lambda step: seen.append({w.pid for w in _workers()})).results
    # Before: bandwidth, load from disk; then, twice, load and two tests; then bandwidth.
    assert [len(processes) for processes in seen] == [0, 0, 0, 1, 1, 0, 1, 1, 0]
    assert seen[3] == seen[4] != seen[6] == seen[7]
    assert {file.name for file in dropped} == {file.name for file in forms[1].path.iterdir()}
    assert result.cold_load_seconds is not None and result.cold_load_seconds != result.load_seconds


@pytest.mark.usefixtures("fake_worker")
def test_where_files_stay_in_the_cache_there_is_no_cold_load(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speed, "drop_from_cache", lambda files: False)
    (result,) = bench_forms([forms[1]], _SMALL).results
    assert result.cold_load_seconds is None and result.load_seconds > 0


def test_generation_has_a_limit_and_prompts_have_none(
    steps_and_report: tuple[list[Step], BenchReport], forms: list[Form]
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


def test_every_two_forms_are_compared_by_the_medians_of_the_table(
    steps_and_report: tuple[list[Step], BenchReport], forms: list[Form]
) -> None:
    report = steps_and_report[1]
    assert [item.test for item in report.comparisons] == [test.test for test in bench_tests(report.settings)]
    for index, item in enumerate(report.comparisons):
        medians = {result.name: result.tests[index].tokens_per_second.median for result in report.results}
        assert {item.faster, item.slower} == {form.name for form in forms}
        assert (
            item.ratio.estimate == pytest.approx(medians[item.faster] / medians[item.slower])
            and item.ratio.level == 0.5
        )
        assert item.ratio.estimate >= 1


class _FakeWorker:
    """Answers at once, with rates that vary by 1%; the form of the model `slowed` is 5% slower."""

    draw = random.Random(1)
    runs = itertools.count(1)
    interrupted_at: int | None = None

    def __init__(self, form: Form, options: LoadOptions) -> None:
        self._rate = 95 if form.model == "slowed" else 100
        self.peak_memory_bytes = 1_000_000

    def load(self) -> Loaded:
        return Loaded(2.0, 768)

    def run(self, *_: object) -> tuple[float, float]:
        if next(self.runs) == self.interrupted_at:
            raise KeyboardInterrupt
        return self._rate * self.draw.gauss(1, 0.01), 1.0

    def __enter__(self) -> _FakeWorker:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def fake_worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_FakeWorker]]:
    monkeypatch.setattr(speed, "WorkerProcess", _FakeWorker)
    _FakeWorker.draw, _FakeWorker.runs = random.Random(1), itertools.count(1)
    yield _FakeWorker
    _FakeWorker.interrupted_at = None


@pytest.mark.usefixtures("fake_worker")
def test_a_form_that_is_slowed_down_by_5_percent_is_named_the_slower_one(forms: list[Form]) -> None:
    slowed, one, other = (forms[1].model_copy(update={"model": name}) for name in ("slowed", "one", "other"))
    report = bench_forms([slowed, one, other], BenchSettings(prompt_tokens=(4,), generated_tokens=(2,)))
    found = [(item.faster, item.slower, item.differs) for item in report.comparisons]
    assert found[:4] == [(one.name, slowed.name, True)] * 2 + [(other.name, slowed.name, True)] * 2
    assert [differs for _, _, differs in found[4:]] == [False] * 2
    assert [result.load_seconds for result in report.results] == [2.0] * 3
    assert {item.ratio.level for item in report.comparisons} == {0.95}


def test_after_ctrl_c_complete_repetitions_are_there_and_marked(
    forms: list[Form], fake_worker: type[_FakeWorker]
) -> None:
    fake_worker.interrupted_at = 3 * 4 + 2  # of two forms in two tests, in the fourth repetition
    settings = BenchSettings(prompt_tokens=(4,), generated_tokens=(2,), repetitions=10)
    report = bench_forms(forms, settings)
    assert report.partial and report.settings.repetitions == 10
    assert {len(test.tokens_per_second.samples) for form in report.results for test in form.tests} == {3}
    assert len(report.comparisons) == 2 and report.memory_bandwidth_bytes_per_second > 0
    assert BenchReport.model_validate_json(report.model_dump_json()) == report


def test_ctrl_c_in_the_first_repetition_leaves_nothing(forms: list[Form], fake_worker: type[_FakeWorker]) -> None:
    fake_worker.interrupted_at = 2
    with pytest.raises(KeyboardInterrupt):
        bench_forms(forms, _SETTINGS)


@pytest.mark.usefixtures("fake_worker")
def test_a_single_repetition_compares_nothing(forms: list[Form]) -> None:
    report = bench_forms(forms, _SMALL)
    assert report.comparisons == () and not report.partial
    assert [result.tests[0].tokens_per_second.confidence_interval for result in report.results] == [None, None]


def test_the_start_is_in_utc(steps_and_report: tuple[list[Step], BenchReport]) -> None:
    started = steps_and_report[1].started
    assert started.utcoffset() == timedelta(0)
    assert timedelta(0) < datetime.now(UTC) - started < timedelta(hours=1)


@pytest.mark.usefixtures("fake_worker")
def test_there_is_a_pause_before_each_measurement(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr("localq.measure.speed.time.sleep", pauses.append)
    bench_forms([forms[1]], _SMALL.model_copy(update={"delay_seconds": 7.5}))
    assert pauses.count(7.5) == 2  # of two tests


def test_a_worker_that_is_killed_ends_all_of_them(forms: list[Form]) -> None:
    def kill_when_measuring(step: Step) -> None:
        if "tg6" in step.what:
            _workers()[0].kill()

    with pytest.raises(EngineError, match=r"local/tiny:[\w-]+ was killed by SIGKILL"):
        bench_forms(forms, _SETTINGS, kill_when_measuring)
    assert _workers() == []


def test_tests_beyond_the_longest_context_are_refused_before_the_first_measurement(forms: list[Form]) -> None:
    """The first form has room, which is no reason to measure it first."""
    roomy = forms[1].model_copy(update={"path": Path("localq/demo/toy-llama")})
    steps: list[Step] = []
    settings = BenchSettings(prompt_tokens=(300,), generated_tokens=(2,), depth_tokens=(300,), repetitions=1)
    for order in ([roomy, forms[0]], [roomy, forms[1]]):
        with pytest.raises(
            OptionError, match=r"local/tiny:.*: a context of 601 tokens is more than the .* 512"
        ) as caught:
            bench_forms(order, settings, steps.append)
        assert "-p" in caught.value.hint
    assert steps == []


def test_threads_and_flash_attention_are_for_gguf_forms(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, LoadOptions] = {}

    class RecordingWorker(_FakeWorker):
        def __init__(self, form: Form, options: LoadOptions) -> None:
            given[form.name] = options
            super().__init__(form, options)

    monkeypatch.setattr(speed, "WorkerProcess", RecordingWorker)
    chosen = {"threads": 2, "flash_attention": True, "kv_cache_type": "q8_0", "batch_tokens": 8}
    report = bench_forms(forms, _SMALL.model_copy(update=chosen))
    assert given == {
        forms[0].name: LoadOptions(5, None, "q8_0", None, 8),
        forms[1].name: LoadOptions(5, 2, "q8_0", True, 8),
    }
    assert report.settings.threads == 2


def test_forms_that_cannot_be_in_memory_together_are_refused(forms: list[Form]) -> None:
    huge = [form.model_copy(update={"artifact_bytes": 1 << 50}) for form in forms]
    with pytest.raises(OptionError, match="2 artifacts have 2251799.8 GB together"):
        bench_forms(huge, _SETTINGS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_tokens": (512, 0)}, "prompt_tokens is 0; expected at least 1"),
        ({"generated_tokens": (1,)}, "generated_tokens is 1; expected at least 2"),
        ({"depth_tokens": (-1,)}, "depth_tokens is -1; expected at least 0"),
        ({"repetitions": 0}, "repetitions is 0; expected at least 1"),
        ({"delay_seconds": -0.5}, "delay_seconds is -0.5; expected a number between 0 and 3600"),
        ({"prompt_tokens": (), "generated_tokens": ()}, "nothing to measure"),
        ({"depth_tokens": ()}, "nothing to measure"),
        ({"prompt_tokens": (64,), "generated_tokens": (8,), "context_length": 64}, "pp64 needs a context of 65 tokens"),
        ({"prompt_tokens": (8,), "generated_tokens": (64,), "context_length": 64}, "tg64 needs a context of 65 tokens"),
        ({"depth_tokens": (0, 100), "context_length": 600}, "pp512 @ d100 needs a context of 613 tokens; it has 600"),
    ],
)
def test_settings_that_measure_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        complete_settings(BenchSettings(**settings))


def test_every_size_is_measured_at_every_depth_once() -> None:
    settings = BenchSettings(prompt_tokens=(64, 512, 64), generated_tokens=(16,), depth_tokens=(0, 4096, 0))
    sizes = ["pp64", "pp512", "tg16"]
    assert [test.test for test in bench_tests(settings)] == [*sizes, *(f"{size} @ d4096" for size in sizes)]
    assert complete_settings(settings).context_length == 4096 + 513


def _warnings(rates: list[float], busy: bool = False) -> list[str]:
    machine = MACHINE.model_copy(update={"busy_cores": 1.26, "busy": busy})
    return list(speed._warnings(machine, [form_speed("toy:mlx-4bit", rates)]))


def test_other_work_is_warned_of_where_there_was_any() -> None:
    (warning,) = _warnings([10.0] * 3, busy=True)
    assert "1.3 cores busy" in warning
    assert _warnings([10.0] * 3) == []


def test_rates_that_vary_much_are_warned_of() -> None:
    (warning,) = _warnings([10.0, 13.0, 10.0, 7.0])
    assert warning.startswith("2 of 2 rates") and "20%" in warning
    assert _warnings([10.0, 10.1, 9.9, 10.0]) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_ends_the_script_and_its_workers_quietly(
    forms: list[Form], checkpoint_folder: Path, models_dir: Path, number: signal.Signals, status: int
) -> None:
    assert forms  # converted already
    program = _CHECKOUT / "benchmarks" / "tokens_per_second.py"
    asked = [f"{checkpoint_folder}:gguf-q4_k_m", "--models-dir", models_dir, "-p", "16", "-g", "4", "-r", "1000000"]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    script = subprocess.Popen([sys.executable, program, *asked], **pipes, text=True, env=environment)
    assert script.stderr is not None
    while "repetition 2 of" not in (line := script.stderr.readline()):
        assert line, "the script ended by itself"
    deadline = time.monotonic() + 30
    while not (workers := psutil.Process(script.pid).children()) and time.monotonic() < deadline:
        time.sleep(0.02)
    script.send_signal(number)
    output, errors = script.communicate(timeout=30)
    assert script.returncode == status
    assert ("partial" in output) == (number is signal.SIGINT)
    assert "Traceback" not in errors
    assert not (models_dir / "bench-history.jsonl").exists()
    deadline = time.monotonic() + 5
    while any(worker.is_running() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(workers) == 1
    assert not workers[0].is_running()
