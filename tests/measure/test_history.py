from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from localq.errors import LocalqError
from localq.measure.history import (
    HistoryRun,
    append_report,
    history_file,
    history_runs,
    read_history,
    select_forms,
)
from localq.measure.reports import BenchReport, BenchSettings
from localq.measure.statistics import summarize
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from tests.measure.report_examples import MACHINE, SETTINGS, bench_report

_REPORT = bench_report({"toy:mlx-4bit": [9.0, 10.0, 12.0], "toy:gguf-q4_k_m": [7.0, 7.1, 7.2]})
_ONE_TEST = SETTINGS.model_copy(update={"prompt_tokens": (), "threads": None})


def test_a_run_leaves_its_report_on_a_line(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "history.jsonl"
    append_report(_REPORT, file)
    append_report(_REPORT, file)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [_REPORT.model_dump(mode="json")] * 2
    assert json.loads(lines[0])["command"] == _REPORT.command != ""
    assert read_history(file) == ([_REPORT, _REPORT], [])


def test_a_line_that_a_crash_left_unfinished_does_not_damage_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    for kept_bytes in (-40, None):
        append_report(_REPORT, file)
        file.write_bytes(file.read_bytes()[:kept_bytes])
    assert read_history(file) == ([_REPORT], [1])


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"started": ' + b"9" * 5000 + b"}",
        # As older versions wrote it, a line for each form and test.
        b'{"started": "2026-11-21T04:05:06+00:00", "model": "toy", "recipe": "mlx-4bit", "test": "tg16"}',
        _REPORT.model_dump_json(exclude={"started"}).encode(),
    ],
)
def test_a_line_that_is_no_report_is_numbered_and_skipped(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append_report(_REPORT, file)
    with file.open("ab") as stream:
        stream.write(b"\n" + line + b"\n")
    append_report(_REPORT, file)
    assert read_history(file) == ([_REPORT, _REPORT], [3])


def test_runs_at_the_same_time_do_not_mix_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    code = (
        "import sys; from pathlib import Path; from localq.measure.history import append_report\n"
        "from localq.measure.reports import BenchReport\n"
        "report = BenchReport.model_validate_json(sys.argv[1])\n"
        "for number in range(40): append_report(report, Path(sys.argv[2]))"
    )
    reports = [_REPORT.model_copy(update={"command": name * 9000}) for name in "abc"]
    writers = [subprocess.Popen([sys.executable, "-c", code, each.model_dump_json(), file]) for each in reports]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    found, skipped = read_history(file)
    assert skipped == []
    assert sorted(report.command[0] for report in found) == sorted("abc" * 40)


def test_a_name_that_is_no_utf_8_loses_no_run(tmp_path: Path) -> None:
    for name in ("café", b"caf\xe9".decode(errors="surrogateescape")):
        form = _REPORT.results[0].model_copy(update={"model": name})
        append_report(_REPORT.model_copy(update={"results": (form,), "comparisons": ()}), tmp_path / "history.jsonl")
    reports, skipped = read_history(tmp_path / "history.jsonl")
    assert [report.results[0].model for report in reports] == ["café", "caf?"] and skipped == []


def test_a_full_disk_is_an_error() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(LocalqError, match=r"can't write /dev/full: No space left on device"):
        append_report(_REPORT, full)


def test_a_file_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalqError, match="can't read"):
        read_history(tmp_path)


def test_models_and_forms_are_found_by_their_names() -> None:
    assert select_forms([_REPORT], []) == select_forms([_REPORT], ["toy"]) == [_REPORT]
    (one,) = select_forms([_REPORT], ["toy:mlx-4bit", "other"])
    assert [result.name for result in one.results] == ["toy:mlx-4bit"] and one.comparisons == ()
    assert select_forms([_REPORT], ["to"]) == []


def test_the_history_lies_in_the_models_folder_and_disturbs_nothing_there(tmp_path: Path) -> None:
    file = history_file(tmp_path)
    append_report(_REPORT, file)
    store = Store(tmp_path)
    assert file.parent == store.folder
    assert (store.artifacts(), store.damaged(), remove_leftovers(store)) == ([], [], [])
    assert read_history(file) == ([_REPORT], [])


def _run(
    day: int,
    rates: Sequence[float],
    name: str = "toy:gguf-q8_0",
    settings: BenchSettings = _ONE_TEST,
    **machine: Any,
) -> BenchReport:
    """With the intervals that `localq bench` gives such rates."""
    report = bench_report({name: rates}, settings=settings, machine=MACHINE.model_copy(update=machine))
    (form,) = report.results
    tests = tuple(
        test.model_copy(update={"tokens_per_second": summarize(test.tokens_per_second.samples)}) for test in form.tests
    )
    started = datetime(2026, 11, day, 4, 5, 6, tzinfo=UTC)
    return report.model_copy(update={"results": (form.model_copy(update={"tests": tests}),), "started": started})


def _only_runs(reports: Sequence[BenchReport]) -> list[HistoryRun]:
    (runs,) = history_runs(reports).values()
    return runs


def test_runs_are_ordered_by_date_and_a_change_is_given_where_it_is_shown() -> None:
    newer: dict[str, Any] = {"versions": {"localq": "10.0", "llama-cpp-python": "0.4"}}
    reports = [
        _run(4, 2 * [8.0, 9.0, 10.0], **newer),
        _run(1, 2 * [20.0, 21.0, 22.0]),
        _run(2, 2 * [20.5, 21.5, 22.5]),
        _run(3, 2 * [23.0, 23.65, 24.0], **newer, busy=True),
        _run(5, [7.0], **newer),
    ]
    runs = _only_runs(reports)
    assert [run.report.started.day for run in runs] == [1, 2, 3, 4, 5]
    assert [run.test.tokens_per_second.median for run in runs] == [21.0, 21.5, 23.65, 9.0, 7.0]
    assert [run.change for run in runs] == [None, None, pytest.approx(0.1), pytest.approx(9 / 23.65 - 1), None]
    assert [run.before and run.before.median for run in runs] == [None, 21.0, 21.5, 23.65, 9.0]


@pytest.mark.parametrize("samples", [2 * [20.2, 20.2, 20.3], [30.0, 30.1, 30.2]])
def test_small_differences_and_few_repetitions_show_no_change(samples: list[float]) -> None:
    """A hundredth is too little to matter; the intervals of three repetitions hold the median too seldom."""
    assert [run.change for run in _only_runs([_run(1, 2 * [20.0, 20.0, 20.1]), _run(2, samples)])] == [None, None]


def test_tests_are_compared_with_themselves_and_machines_kept_apart() -> None:
    both = SETTINGS.model_copy(update={"threads": None})
    groups = history_runs(
        [
            _run(1, [20.0], settings=both),
            _run(2, [20.0], "toy:mlx-4bit", both),
            _run(3, [20.0], cpu="Other CPU"),
            _run(4, [20.0], memory_bytes=32 << 30),
            _run(5, [20.0], memory_bytes=(16 << 30) - 5_000_000, os="TestOS 2"),
        ]
    )
    assert {heading: [run.test.test for run in runs] for heading, runs in groups.items()} == {
        "toy:gguf-q8_0; Test CPU, 4 cores, 16 GiB": ["pp64", "tg16", "tg16"],
        "toy:gguf-q8_0; Other CPU, 4 cores, 16 GiB": ["tg16"],
        "toy:gguf-q8_0; Test CPU, 4 cores, 32 GiB": ["tg16"],
        "toy:mlx-4bit; Test CPU, 4 cores, 16 GiB": ["pp64", "tg16"],
    }
    first, *_ = groups.values()
    assert [run.before is None for run in first] == [True, True, False]


def test_a_chosen_setting_is_no_change_of_speed() -> None:
    rates = 2 * [10.0, 11.0, 12.0]
    groups = history_runs(
        [
            _run(1, 2 * [20.0, 21.0, 22.0]),
            _run(2, rates, settings=_ONE_TEST.model_copy(update={"threads": 1})),
            _run(3, rates, settings=_ONE_TEST.model_copy(update={"kv_cache_type": "q8_0", "flash_attention": True})),
        ]
    )
    assert [heading.partition("16 GiB")[2] for heading in groups] == [
        *("", "; threads 1", "; kv_cache_type q8_0, flash_attention True")
    ]
    assert all(run.before is None for runs in groups.values() for run in runs)
