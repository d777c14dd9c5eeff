from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path

from localq.measure.bench import BenchReport, BenchSettings, FormResult, summarize
from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.measure.report import render_table

_MACHINE = Machine(
    cpu="Test CPU",
    physical_cores=4,
    logical_cores=8,
    memory_bytes=16 << 30,
    os="TestOS 1",
    python="3.11.0",
    versions={"localq": "9.9", "mlx": "0.1"},
    metal=False,
    busy_cores=0.5,
    busy=False,
)


def _result(model: str, recipe: str, bits: float | None, rates: list[float]) -> FormResult:
    return FormResult(
        form=Form(model, recipe, Path("models"), 3 << 29, bits),
        load_seconds=0.25,
        time_to_first_token_seconds=1.5,
        prompt_tokens_per_second=summarize([10 * rate for rate in rates]),
        generated_tokens_per_second=summarize(rates),
        peak_memory_bytes=700 << 20,
    )


_REPORT = BenchReport(
    _MACHINE,
    BenchSettings(64, 16, 3, 65, 4),
    (_result("toy", "mlx-4bit", 4.5, [9.0, 10.0, 12.0]), _result("a|b", "gguf", None, [7.0])),
)


def test_plain_text_is_aligned_and_says_all() -> None:
    assert render_table(_REPORT).splitlines() == [
        "model  form      bits/weight     size    load  first token        pp64 t/s      tg16 t/s  peak memory",
        "-----  --------  -----------  -------  ------  -----------  --------------  ------------  -----------",
        "toy    mlx-4bit         4.50  1.61 GB  250 ms       1.50 s  100.00 ± 15.28  10.00 ± 1.53    734.00 MB",
        "a|b    gguf                -  1.61 GB  250 ms       1.50 s           70.00          7.00    734.00 MB",
        "",
        "Test CPU, 4 cores, 17.18 GB, no Metal; TestOS 1, Python 3.11.0; localq 9.9, mlx 0.1.",
        "Median ± standard deviation; repetitions after a warm-up: 3; llama.cpp on 4 threads.",
    ]


def test_markdown_has_a_cell_for_every_column() -> None:
    header, rule, first, second, *_ = render_table(_REPORT, "md").splitlines()
    assert header.startswith("| model | form | bits/weight |")
    assert rule == "| --- | --- |" + " ---: |" * 7
    assert "| 10.00 ± 1.53 |" in first
    assert second.startswith(r"| a\|b | gguf | - |")
    assert {line.replace(r"\|", "").count("|") for line in (header, rule, first, second)} == {10}


def test_csv_has_full_precision_and_empty_fields_for_the_unknown() -> None:
    first, second = csv.DictReader(io.StringIO(render_table(_REPORT, "csv")))
    assert float(first["generated_tokens_per_second_stdev"]) == summarize([9.0, 10.0, 12.0]).stdev
    assert (first["artifact_bytes"], first["peak_memory_bytes"]) == (str(3 << 29), str(700 << 20))
    assert (first["prompt_tokens"], first["generated_tokens"], first["threads"]) == ("64", "16", "4")
    assert (second["model"], second["bits_per_weight"]) == ("a|b", "")
    assert second["prompt_tokens_per_second_stdev"] == ""


def test_a_busy_machine_is_mentioned() -> None:
    busy = replace(_REPORT, machine=replace(_MACHINE, busy_cores=3.2, busy=True))
    assert "3.2 cores busy" in render_table(busy)
    assert "busy" not in render_table(_REPORT)
