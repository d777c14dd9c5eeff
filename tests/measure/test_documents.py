"""Reports as text, Markdown and CSV; the history as text."""

from __future__ import annotations

import csv
import io
import itertools
import math
from datetime import datetime, timedelta, timezone

import pytest

from localq.measure.documents import render_history, render_report
from localq.measure.reports import BenchReport, EvalReport
from tests.measure.report_examples import FAST, MACHINE, SETTINGS, SLOW, bench_report, eval_report, form_quality, rate

COMMAND = "localq bench toy -p 64 -g 16 -r 3"
BENCH = bench_report({"toy:mlx-4bit": (9.0, 10.0, 12.0), "toy:gguf-q4_k_m": (13.0, 14.0, 15.0)})
EVAL = eval_report(
    {"org/model:mlx-4bit": 0.034, "org/model:gguf-q4_k_m": 0.0123}, floor=2.5e-5, warnings=("it is warm",)
)
EVAL_COMMAND = "localq eval toy --window 512"


def test_plain_text_has_a_row_for_each_format_and_test_and_says_all() -> None:
    assert render_report(BENCH, "text", 80).splitlines() == [
        "toy: speed by format",
        "",
        "format       test           t/s    75% interval  of memory limit",
        "-----------  ----  ------------  --------------  ---------------",
        "mlx-4bit     pp64  100.0 ± 15.3   90.0 to 120.0                -",
        "mlx-4bit     tg16  10.00 ± 1.53   9.00 to 12.00      20% of 50.0",
        "gguf-q4_k_m  pp64  140.0 ± 10.0  130.0 to 150.0                -",
        "gguf-q4_k_m  tg16  14.00 ± 1.00  13.00 to 15.00      28% of 50.0",
        "",
        "format          size  bits/weight    load  cold load  first token  peak memory",
        "-----------  -------  -----------  ------  ---------  -----------  -----------",
        "mlx-4bit     1.61 GB         4.50  250 ms     2.50 s       1.50 s    734.00 MB",
        "gguf-q4_k_m  1.61 GB            -  250 ms          -       1.50 s    734.00 MB",
        "",
        "pp64: gguf-q4_k_m is 1.40 times as fast as mlx-4bit (1.08 to 1.67, 95% interval)",
        "tg16: gguf-q4_k_m is 1.40 times as fast as mlx-4bit (1.08 to 1.67, 95% interval)",
        "",
        "machine: Test CPU, 4 cores, 17.18 GB, no Metal; TestOS 1",
        "versions: localq 9.9, mlx 0.1, llama-cpp-python 0.3, Python 3.11.0",
        "measured: 2026-11-21 04:05 UTC",
        "speed: 3 repetitions by turns, each in a warm process of its own; context of 65",
        "  tokens; keys and values in full; at most 512 prompt tokens in a pass;",
        "  llama.cpp on 4 threads; flash attention as it chooses",
        "memory limit: 33.10 GB/s, measured in the same run, / bytes that a token reads",
        "columns: --md says what they mean",
        f"repeat: {COMMAND}",
    ]


def test_a_single_repetition_has_neither_spread_nor_interval() -> None:
    text = render_report(
        bench_report({"toy:gguf-q8_0": (7.0,)}, settings=SETTINGS.model_copy(update={"repetitions": 1}))
    )
    assert text.splitlines()[2].split() == ["format", "test", "t/s", "of", "memory", "limit"]
    assert text.splitlines()[5].split() == ["gguf-q8_0", "tg16", "7.00", "14%", "of", "50.0"]
    assert "1 repetition by turns" in text


@pytest.mark.parametrize("level", [0.75, 0.95])
def test_the_interval_has_its_true_level(level: float) -> None:
    value = BENCH.model_dump()
    for item in (item for result in value["results"] for item in result["tests"]):
        item["tokens_per_second"]["confidence_level"] = level
    assert f" {level:.0%} interval  of" in render_report(BenchReport.model_validate(value))


def test_settings_that_were_chosen_are_said() -> None:
    chosen = {
        "threads": 1,
        "kv_cache_type": "q8_0",
        "flash_attention": False,
        "batch_tokens": 256,
        "delay_seconds": 2.5,
    }
    text = " ".join(render_report(BENCH.model_copy(update={"settings": SETTINGS.model_copy(update=chosen)})).split())
    for words in (
        *("keys and values in q8_0", "at most 256 prompt tokens", "llama.cpp on 1 thread; flash attention off"),
        "a pause of 2.5 s",
    ):
        assert words in text


@pytest.mark.parametrize("style", ["text", "md"])
def test_warnings_random_weights_and_a_run_that_was_stopped_are_said(style: str) -> None:
    settings = SETTINGS.model_copy(update={"repetitions": 10})
    stopped = {"partial": True, "warnings": ("it is hot",), "settings": settings, "command": "localq bench --shape x"}
    text = render_report(BENCH.model_copy(update=stopped), style)  # type: ignore[arg-type]
    assert "toy: speed by format (partial)" in text
    for words in (
        "stopped before the last repetition",
        "3 of 10 repetitions",
        "it is hot",
        "random, in the shape of the model",
    ):
        assert words in text


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_longer_than_the_width_except_the_command(width: int) -> None:
    name = "microsoft/Phi-3.5-mini-instruct"
    machine = MACHINE.model_copy(update={"os": "Linux-6.1.0-28-cloud-amd64-x86_64-with-glibc2.36"})
    report = bench_report({f"{name}:mlx-4bit": SLOW, "toy:gguf-q4_k_m": FAST}, machine=machine, command="x" * 300)
    *lines, command = render_report(report, "text", width).splitlines()
    assert max(map(len, lines)) <= width
    assert command == f"repeat: {'x' * 300}"
    assert ("no room for" in "\n".join(lines)) == (width < 100)
    text = render_report(EVAL, "text", width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.0123 ± 0.00061" in text and "91.23 ± 0.46%" in text
    assert ("no room for" in text) == (width < 150)


def test_csv_has_a_row_for_each_format_and_test_in_full_precision() -> None:
    rows = list(csv.DictReader(io.StringIO(render_report(BENCH, "csv"))))
    assert [(row["recipe"], row["test"]) for row in rows] == [
        (recipe, test) for recipe in ("mlx-4bit", "gguf-q4_k_m") for test in ("pp64", "tg16")
    ]
    generation, expected = rows[1], rate((9.0, 10.0, 12.0))
    assert float(generation["tokens_per_second_stdev"]) == expected.stdev
    assert [float(text) for text in generation["tokens_per_second_samples"].split("; ")] == [9.0, 10.0, 12.0]
    assert (generation["tokens_per_second_low"], generation["tokens_per_second_high"]) == ("9.0", "12.0")
    assert generation["tokens_per_second_level"] == "0.75"
    assert (generation["limit_bytes_per_token"], generation["limit_share"]) == ("660000000", "0.2")
    assert (generation["cold_load_seconds"], rows[3]["cold_load_seconds"]) == ("2.5", "")
    assert rows[0]["limit_share"] == rows[0]["kv_cache_type"] == ""


def test_csv_has_what_is_needed_to_repeat_it() -> None:
    (row, *_) = csv.DictReader(io.StringIO(render_report(BENCH.model_copy(update={"warnings": ("hot",)}), "csv")))
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
        "partial": "False",
        "started": "2026-11-21T04:05:06+00:00",
        "command": COMMAND,
    }
    assert {name: row[name] for name in expected} == expected


def test_csv_has_the_same_columns_for_every_report() -> None:
    settings = SETTINGS.model_copy(update={"prompt_tokens": (), "threads": None, "repetitions": 1})
    other = bench_report({"toy:gguf-q8_0": (7.0,)}, settings=settings)
    assert len({render_report(each, "csv").splitlines()[0] for each in (BENCH, other)}) == 1


def run(day: int, median: float, name: str = "toy:gguf-q8_0", busy: bool = False, **chosen: object) -> BenchReport:
    """At two hours past UTC."""
    versions = {"localq": "9.9" if day < 3 else "10.0", "mlx": "0.1"}
    settings = SETTINGS.model_copy(update={"prompt_tokens": (), "threads": None, "repetitions": 6, **chosen})
    return bench_report(
        {name: 2 * (median - 1, median, median + 1)},
        settings=settings,
        machine=MACHINE.model_copy(update={"versions": versions, "busy": busy}),
        started=datetime(2026, 11, day, 6, 5, 6, tzinfo=timezone(timedelta(hours=2))),
    )


HISTORY = [
    run(4, 9, busy=True),
    *(run(1, 21), run(2, 21.5), run(3, 25)),
    run(1, 20, "toy:mlx-4bit", busy=True, threads=1, kv_cache_type="q8_0", batch_tokens=64),
]


def test_the_history_names_a_change_where_it_is_shown_and_a_busy_machine() -> None:
    assert render_history(HISTORY).splitlines() == [
        "toy:gguf-q8_0; Test CPU, 4 cores, 16 GiB",
        "test  started (UTC)     localq           t/s  change",
        "----  ----------------  ------  ------------  ----------------------------",
        "tg16  2026-11-01 04:05  9.9     21.00 ± 0.89",
        "tg16  2026-11-02 04:05  9.9     21.50 ± 0.89  ~",
        "tg16  2026-11-03 04:05  10.0    25.00 ± 0.89  +16.3% faster",
        "tg16  2026-11-04 04:05  10.0     9.00 ± 0.89  -64.0% slower (machine busy)",
        "",
        "toy:mlx-4bit; Test CPU, 4 cores, 16 GiB; threads 1, kv_cache_type q8_0, batch_tokens 64",
        "test  started (UTC)     localq  mlx           t/s  change",
        "----  ----------------  ------  ---  ------------  --------------",
        "tg16  2026-11-01 04:05  9.9     0.1  20.00 ± 0.89  (machine busy)",
    ]


@pytest.mark.parametrize("width", [60, 80])
def test_the_history_fits_the_width_and_keeps_the_change(width: int) -> None:
    text = render_history(HISTORY, width)
    assert max(map(len, text.splitlines())) <= width
    assert "-64.0% slower (machine busy)" in text and ("no room for: " in text) == (width < 75)


def test_a_row_shows_each_figure_with_its_error() -> None:
    lines = render_report(EVAL).splitlines()
    (quality,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "±" in line]
    for cell in ("0.0123 ± 0.00061", "0.123", "0.984", "91.23 ± 0.46%", "6.5432 ± 0.0389", "5.52 ± 0.05%"):
        assert cell in quality
    assert "+0.0000 ± 0.0012" in quality  # and no negative nothing
    (cost,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "GB" in line]
    for cell in ("1.61 GB", "26.8%", "4.50", "805.31 MB", "12.3 ms", "45.6 ms", "2.00 GB"):
        assert cell in cost


def test_the_baseline_comes_first_and_the_noise_floor_is_marked() -> None:
    names = ["gguf-f32 (baseline)", "mlx-f32 (noise floor)", "mlx-4bit", "gguf-q4_k_m"]
    lines = render_report(EVAL).splitlines()
    assert [line.partition("  ")[0] for line in lines[4:8]] == names
    assert [line.partition("  ")[0] for line in lines[11:15]] == names
    assert "6.4000 ± 0.0389" in lines[4] and "100.0%" in lines[11]
    assert "noise floor" not in render_report(EVAL.model_copy(update={"noise_floor": None}))
    chosen = EVAL.model_copy(update={"results": (*EVAL.results, EVAL.noise_floor)})
    assert render_report(chosen).count("mlx-f32 (noise floor)") == 2  # one in each table


def test_formats_of_several_models_have_their_whole_names() -> None:
    text = render_report(bench_report({"toy:gguf-q8_0": SLOW, "other:gguf-q8_0": FAST}))
    assert "toy, other: speed by format" in text and "\nother:gguf-q8_0  tg16" in text
    foreign = form_quality("other:gguf", 0.02).model_copy(update={"bits_per_weight": None})
    text = render_report(EVAL.model_copy(update={"results": (*EVAL.results, foreign)}))
    assert "org/model:gguf-q4_k_m" in text
    (row,) = [line for line in text.splitlines() if line.startswith("other:gguf") and "GB" in line]
    assert row.split()[4] == "-"  # nobody knows its bits


def test_what_repeats_it_is_said() -> None:
    for style in ("text", "md"):
        said = " ".join(render_report(EVAL, style).split())  # type: ignore[arg-type]
        for words in (
            *("text.txt", "0f0f0f0f0f0f0f0f", "8 windows of 512 tokens", "token 1", "position 256", "2,040 positions"),
            *(
                "Test CPU",
                "localq 9.9",
                "2026-11-21 05:06 UTC",
                "it is warm",
                EVAL_COMMAND,
                "compared with gguf-f32 (6.00 GB)",
            ),
            "its mean KL of 2.5e-05 is the engines' arithmetic",
            "gguf-q4_k_m is nearer to gguf-f32 than mlx-4bit: mean KL 0.0123 against 0.034",
        ):
            assert words in said, (style, words)


@pytest.mark.parametrize(("report", "row_count"), [(BENCH, 4 + 2), (EVAL, 4 + 4)], ids=["bench", "eval"])
def test_markdown_has_two_tables_and_defines_the_columns(report: BenchReport | EvalReport, row_count: int) -> None:
    lines = render_report(report, "md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    headers = [row for row, below in itertools.pairwise(rows) if below.startswith("| ---")]
    assert len(rows) == 2 * 2 + row_count
    for name in (name.strip() for header in headers for name in header.split("|")[2:-1]):
        assert any(line.startswith(f"- **{name}**: ") for line in lines), name
    assert lines[-1] == f"    {report.command}"
    assert ("> **Warning**: it is warm" in lines) == (report is EVAL)


def test_csv_has_every_figure_in_full_precision() -> None:
    unknown = form_quality("org/model:gguf", 0.02).model_copy(update={"bits_per_weight": None})
    report = EVAL.model_copy(update={"results": (*EVAL.results, unknown)})
    rows = list(csv.DictReader(io.StringIO(render_report(report, "csv"))))
    assert [row["role"] for row in rows] == ["reference", "noise_floor", "form", "form", "form"]
    assert [row["recipe"] for row in rows] == ["gguf-f32", "mlx-f32", "mlx-4bit", "gguf-q4_k_m", "gguf"]
    assert rows[0]["mean_kl_divergence"] == "" and float(rows[0]["perplexity"]) == 6.4
    assert rows[4]["bits_per_weight"] == ""
    for row, found in zip(rows[2:], report.results, strict=True):
        for name, value in found.model_dump().items():
            if isinstance(value, float):
                assert math.isclose(float(row[name]), value, rel_tol=0), name
    assert {row["positions"] for row in rows} == {"2040"}
    assert {row["text"] for row in rows} == {"text.txt"}
    assert {row["command"] for row in rows} == {EVAL_COMMAND}
