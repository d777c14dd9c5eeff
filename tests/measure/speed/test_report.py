from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest

from localq.measure.speed.report import render_table
from localq.measure.speed.results import BenchReport, BenchSettings
from tests.measure.speed.bench_reports import MACHINE, SETTINGS, form_result, report, summary

_COMMAND = "localq bench toy -p 64 -g 16 -r 3"
_REPORT = report([form_result("toy:mlx-4bit", [9.0, 10.0, 12.0]), form_result("toy:gguf-q4_k_m", [13.0, 14.0, 15.0])])


def _with_energy(whole: BenchReport) -> BenchReport:
    first, *others = whole.results
    tests = (replace(first.tests[0], joules_per_token=0.1234), *first.tests[1:])
    return replace(whole, results=(replace(first, tests=tests), *others))


def test_plain_text_has_a_row_for_each_form_and_test_and_says_all() -> None:
    assert render_table(_REPORT, "text", _COMMAND).splitlines() == [
        "model  form            size  bits/weight  test           t/s    95% interval  of memory limit",
        "-----  -----------  -------  -----------  ----  ------------  --------------  ---------------",
        "toy    mlx-4bit     1.61 GB         4.50  pp64  100.0 ± 15.3   90.0 to 120.0                -",
        "toy    mlx-4bit     1.61 GB         4.50  tg16  10.00 ± 1.53   9.00 to 12.00      20% of 50.0",
        "toy    gguf-q4_k_m  1.61 GB            -  pp64  140.0 ± 10.0  130.0 to 150.0                -",
        "toy    gguf-q4_k_m  1.61 GB            -  tg16  14.00 ± 1.00  13.00 to 15.00      28% of 50.0",
        "",
        "model  form           load  cold load  first token  peak memory",
        "-----  -----------  ------  ---------  -----------  -----------",
        "toy    mlx-4bit     250 ms     2.50 s       1.50 s    734.00 MB",
        "toy    gguf-q4_k_m  250 ms          -       1.50 s    734.00 MB",
        "",
        "pp64: toy:gguf-q4_k_m is 1.40 times as fast as toy:mlx-4bit (1.08 to 1.67)",
        "tg16: toy:gguf-q4_k_m is 1.40 times as fast as toy:mlx-4bit (1.08 to 1.67)",
        "",
        "machine: Test CPU, 4 cores, 17.18 GB, no Metal; TestOS 1; measured 2026-11-21T04:05:06+00:00",
        "memory limit: 33.10 GB/s, measured in this run, over the bytes that a token reads",
        "settings: median ± standard deviation of 3 repetitions, each in a warm process of its own; context of 65 "
        "tokens; keys",
        "  and values in full; at most 512 prompt tokens in a pass; llama.cpp on 4 threads, flash attention as it "
        "chooses",
        "versions: localq 9.9, mlx 0.1, llama-cpp-python 0.3, Python 3.11.0",
        "repeat: localq bench toy -p 64 -g 16 -r 3",
    ]


def test_a_single_repetition_has_neither_spread_nor_interval() -> None:
    line = render_table(report([form_result("toy:gguf-q8_0", [7.0])])).splitlines()[3]
    assert line.split() == ["toy", "gguf-q8_0", "1.61", "GB", "-", "tg16", "7.00", "-", "14%", "of", "50.0"]


def test_energy_has_a_column_where_the_machine_tells_it() -> None:
    header, _, first, second, *_ = render_table(_with_energy(_REPORT)).splitlines()
    assert header.endswith("J/token") and first.endswith("0.123") and second.endswith("-")
    assert "J/token" not in render_table(_REPORT)


def test_settings_that_were_chosen_are_told() -> None:
    chosen = BenchSettings((64,), (), (0,), 1, 2.5, 100, 1, "q8_0", False, 256)
    text = " ".join(render_table(report([form_result("toy:gguf-q8_0", [7.0], chosen)], chosen)).split())
    for words in (
        "of 1 repetition, each in a warm process",
        "context of 100 tokens",
        "keys and values in q8_0",
        "at most 256 prompt tokens",
        "llama.cpp on 1 thread, flash attention off",
        "a pause of 2.5 s",
    ):
        assert words in text


def test_warnings_come_last() -> None:
    warned = report(_REPORT.results, warnings="the clock fell by 12% while this ran")
    assert render_table(warned).splitlines()[-1] == "warning: the clock fell by 12% while this ran"
    assert "- **warning**: the clock fell" in render_table(warned, "md")


@pytest.mark.parametrize("model", ["toy-llama", "Phi-3.5-mini-instruct"])
def test_usual_names_fit_into_120_columns(model: str) -> None:
    settings = replace(
        SETTINGS, prompt_tokens=(512,), generated_tokens=(128,), depth_tokens=(4096,), context_length=4609
    )
    fast = [
        form_result(f"{model}:{recipe}", [1300.0, 1301.0, 1402.0], settings) for recipe in ("mlx-4bit", "gguf-q4_k_m")
    ]
    lines = render_table(report(fast, settings), "text", _COMMAND).splitlines()
    assert lines[0].startswith("model ")
    assert max(map(len, lines)) <= 120


@pytest.mark.parametrize("width", [60, 80, 100])
def test_a_narrow_terminal_gets_the_tests_under_their_forms(width: int) -> None:
    name = "microsoft/Phi-3.5-mini-instruct"
    forms = [form_result(f"{name}:{recipe}", [9.0, 10.0, 12.0]) for recipe in ("mlx-4bit", "gguf-q4_k_m")]
    whole = report(forms, machine=replace(MACHINE, os="Linux-6.1.0-28-cloud-amd64-x86_64-with-glibc2.36"))
    lines = render_table(whole, "text", "localq bench " + "x" * 100, width).splitlines()
    assert lines[0] == f"{name}:mlx-4bit"
    assert max(map(len, lines[:-1])) <= width
    assert lines[-1] == "repeat: localq bench " + "x" * 100  # in one piece, to be copied
    told, wide = (" ".join(render_table(whole, "text", "", columns).split()) for columns in (width, 200))
    for cell in ("1.61 GB", "4.50", "10.00 ± 1.53", "9.00 to 12.00", "20% of 50", "250 ms", "2.50 s", "734.00 MB"):
        assert cell in told and cell in wide
    assert told[told.index("pp64: no difference") :] == wide[wide.index("pp64: no difference") :]


def test_markdown_has_a_cell_for_every_column() -> None:
    first, second = (form_result(f"{name}:gguf-q8_0", [9.0, 10.0, 12.0]) for name in ("a|b", "c"))
    rates, forms, comparisons, caption, command = render_table(report([first, second]), "md", _COMMAND).split("\n\n")
    for table, columns, rows in ((rates, 8, 4), (forms, 6, 2)):
        header, rule, *others = table.splitlines()
        assert header.startswith("| model | form |") and len(others) == rows
        assert rule == "| --- | --- |" + " ---: |" * (columns - 2)
        assert {line.replace(r"\|", "").count("|") for line in (header, rule, *others)} == {columns + 1}
    assert r"| a\|b | gguf-q8_0 | 1.61 GB | - | tg16 | 10.00 ± 1.53 | 9.00 to 12.00 | 20% of 50.0 |" in rates
    assert all(line.startswith("- ") for line in (*comparisons.splitlines(), *caption.splitlines()))
    assert command == f"    {_COMMAND}"


def test_csv_has_a_row_for_each_form_and_test_in_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(render_table(_REPORT, "csv", _COMMAND))))
    assert [(row["recipe"], row["test"]) for row in rows] == [
        (recipe, test) for recipe in ("mlx-4bit", "gguf-q4_k_m") for test in ("pp64", "tg16")
    ]
    generation = rows[1]
    assert float(generation["tokens_per_second_stdev"]) == summary([9.0, 10.0, 12.0]).stdev
    assert [float(text) for text in generation["tokens_per_second_samples"].split("; ")] == [9.0, 10.0, 12.0]
    assert (generation["tokens_per_second_low"], generation["tokens_per_second_high"]) == ("9.0", "12.0")
    assert (generation["limit_bytes_per_token"], generation["limit_share"]) == ("660000000", "0.2")
    assert (generation["cold_load_seconds"], rows[3]["cold_load_seconds"]) == ("2.5", "")
    assert rows[0]["limit_share"] == rows[0]["joules_per_token"] == rows[0]["kv_cache_type"] == ""


def test_csv_says_what_is_needed_to_repeat_it() -> None:
    (row, *_) = csv.DictReader(io.StringIO(render_table(report(_REPORT.results, warnings="hot"), "csv", _COMMAND)))
    expected = {
        "prompt_tokens": "64",
        "generated_tokens": "0",
        "depth_tokens": "0",
        "repetitions": "3",
        "delay_seconds": "0.0",
        "context_length": "65",
        "threads": "4",
        "batch_tokens": "512",
        "machine_cpu": "Test CPU",
        "machine_memory_bytes": str(16 << 30),
        "machine_metal": "False",
        "machine_python": "3.11.0",
        "localq_version": "9.9",
        "mlx_version": "0.1",
        "mlx_lm_version": "",
        "llama_cpp_python_version": "0.3",
        "warnings": "hot",
        "started": "2026-11-21T04:05:06+00:00",
        "command": _COMMAND,
    }
    assert {name: row[name] for name in expected} == expected


def test_csv_has_the_same_columns_for_every_report() -> None:
    other = report(
        [form_result("toy:gguf-q8_0", [7.0], replace(SETTINGS, prompt_tokens=()), None)],
        replace(SETTINGS, prompt_tokens=(), threads=None),
        replace(MACHINE, versions={"localq": "9.9", "mlx": "1", "mlx-lm": "2", "llama-cpp-python": "3"}),
    )
    headers = {render_table(each, "csv").splitlines()[0] for each in (_REPORT, _with_energy(_REPORT), other)}
    assert len(headers) == 1
