from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from localq.measure.speed.history import Entry, history_entries
from localq.measure.speed.history_table import render_history
from localq.measure.speed.results import BenchSettings
from tests.measure.speed.bench_reports import MACHINE, SETTINGS, form_result, report

_ONE_TEST = replace(SETTINGS, prompt_tokens=(), threads=None)


def _entries(
    day: int,
    rates: Sequence[float],
    name: str = "toy:gguf-q8_0",
    settings: BenchSettings = _ONE_TEST,
    **machine: Any,
) -> list[Entry]:
    made = report([form_result(name, rates, settings)], settings, replace(MACHINE, **machine))
    return history_entries(replace(made, started=f"2026-11-{day:02}T04:05:06+00:00"), "")


def test_rows_stand_by_date_and_a_change_is_named_where_it_is_shown() -> None:
    newer: dict[str, Any] = {"versions": {"localq": "10.0", "llama-cpp-python": "0.4"}}
    runs = [
        *_entries(4, 2 * [8.0, 9.0, 10.0], **newer),
        *_entries(1, 2 * [20.0, 21.0, 22.0]),
        *_entries(2, 2 * [20.5, 21.5, 22.5]),
        *_entries(3, 2 * [23.0, 23.65, 24.0], **newer),
        *_entries(5, [7.0], **newer),
    ]
    assert render_history(runs).splitlines() == [
        "toy:gguf-q8_0; Test CPU, 4 cores, 17.18 GB",
        "test  started (UTC)     localq  llama-cpp-python           t/s  change",
        "----  ----------------  ------  ----------------  ------------  -------------",
        "tg16  2026-11-01 04:05  9.9     0.3               21.00 ± 0.89",
        "tg16  2026-11-02 04:05  9.9     0.3               21.50 ± 0.89  ~",
        "tg16  2026-11-03 04:05  10.0    0.4               23.65 ± 0.45  +10.0% faster",
        "tg16  2026-11-04 04:05  10.0    0.4                9.00 ± 0.89  -61.9% slower",
        "tg16  2026-11-05 04:05  10.0    0.4                       7.00  ~",
    ]


@pytest.mark.parametrize("samples", [2 * [20.2, 20.2, 20.3], [30.0, 30.1, 30.2]])
def test_small_differences_and_few_repetitions_show_no_change(samples: list[float]) -> None:
    """A hundredth is too little to matter; of three repetitions nobody knows."""
    runs = [*_entries(1, 2 * [20.0, 20.0, 20.1]), *_entries(2, samples)]
    assert render_history(runs).splitlines()[-1].endswith("~")


def test_tests_are_compared_with_themselves_and_machines_kept_apart() -> None:
    both = replace(SETTINGS, threads=None)
    runs = [
        *_entries(1, [20.0], settings=both),
        *_entries(2, [20.0], "toy:mlx-4bit", both),
        *_entries(3, [20.0], cpu="Other CPU"),
        *_entries(4, [20.0], memory_bytes=32 << 30),
        *_entries(5, [20.0], memory_bytes=(16 << 30) - 5_000_000, os="TestOS 2"),
    ]
    tables = [table.splitlines() for table in render_history(runs).split("\n\n")]
    assert [(table[0], [row.split()[0] for row in table[3:]]) for table in tables] == [
        ("toy:gguf-q8_0; Test CPU, 4 cores, 17.17 GB", ["pp64", "tg16", "tg16"]),
        ("toy:gguf-q8_0; Other CPU, 4 cores, 17.18 GB", ["tg16"]),
        ("toy:gguf-q8_0; Test CPU, 4 cores, 34.36 GB", ["tg16"]),
        ("toy:mlx-4bit; Test CPU, 4 cores, 17.18 GB", ["pp64", "tg16"]),
    ]
    assert [row.endswith("~") for row in tables[0][3:]] == [False, False, True]
    assert tables[-1][1].split() == ["test", "started", "(UTC)", "localq", "mlx", "mlx-lm", "t/s", "change"]


def test_a_chosen_setting_is_no_change_of_speed() -> None:
    runs = [
        *_entries(1, [20.0, 21.0, 22.0]),
        *_entries(2, [10.0, 11.0, 12.0], settings=replace(_ONE_TEST, threads=1)),
        *_entries(3, [10.0, 11.0, 12.0], settings=replace(_ONE_TEST, kv_cache_type="q8_0", flash_attention=True)),
    ]
    text = render_history(runs)
    assert [line for line in text.splitlines() if line.startswith("toy")] == [
        "toy:gguf-q8_0; Test CPU, 4 cores, 17.18 GB",
        "toy:gguf-q8_0; Test CPU, 4 cores, 17.18 GB; threads 1",
        "toy:gguf-q8_0; Test CPU, 4 cores, 17.18 GB; kv_cache_type q8_0; flash_attention True",
    ]
    assert "slower" not in text


def test_lines_fit_into_a_narrow_terminal() -> None:
    machine: dict[str, Any] = {
        "versions": {"localq": "0.1.0", "mlx": "0.32.4", "mlx-lm": "0.32.2", "llama-cpp-python": "0.3.36"}
    }
    for name in ("toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit"):
        runs = [*_entries(1, [2000.0, 2100.0, 2200.0], name, **machine), *_entries(2, [900.0] * 3, name, **machine)]
        assert max(map(len, render_history(runs).splitlines())) <= 80
