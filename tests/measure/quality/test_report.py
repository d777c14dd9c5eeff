from __future__ import annotations

import csv
import io
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from localq.measure.forms import Form
from localq.measure.machine import Machine
from localq.measure.quality.divergence import Divergence, Estimate
from localq.measure.quality.report import nearness_lines, render_evaluation
from localq.measure.quality.results import Cost, EvalReport, EvalResult, Nearness, ReferenceResult, UsedText
from localq.measure.speed.results import Interval

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
_COST = Cost(1.5, 0.0123, 0.0456, 2_000_000_000)
_DIVERGENCE = replace(
    Divergence(2040, *[0.5] * (len(fields(Divergence)) - 1)),
    mean_kl_divergence=0.01234567,
    kl_divergence_standard_error=0.0005678,
    p99_kl_divergence=0.1234,
    max_kl_divergence=1.5,
    same_top_fraction=0.91234,
    same_top_standard_error=0.00456,
    perplexity=6.54321,
    perplexity_standard_error=0.0389,
    log_perplexity_ratio=-0.00001,
    log_perplexity_ratio_standard_error=0.00123,
    rms_probability_change=0.05519,
    rms_probability_change_standard_error=0.0005,
    max_log_probability_change=2.346,
    mean_log_probability_change=0.3751,
)


def form(recipe: str, size: int, bits: float | None = 4.5, model: str = "org/model") -> Form:
    return Form(model, recipe, Path(recipe), size, bits)


def result(recipe: str, mean: float, model: str = "org/model", bits: float | None = 4.5) -> EvalResult:
    divergence = replace(_DIVERGENCE, mean_kl_divergence=mean)
    return EvalResult(form(recipe, 600_000_000, bits, model), divergence, _COST, 580_000_000)


REFERENCE = ReferenceResult(form("gguf-bf16", 2_400_000_000, 16.0), Estimate(6.4, 0.038), _COST, 2_390_000_000)
NEARER = Nearness("org/model:gguf-q4_k_m", "org/model:mlx-4bit", Interval(0.0217, 0.0151, 0.0283), True)


@pytest.fixture
def report() -> EvalReport:
    return EvalReport(
        machine=_MACHINE,
        text=UsedText("wiki.test.raw", "ab" * 32, 512, 256, 8, 128000),
        threads=None,
        reference=REFERENCE,
        noise_floor=result("mlx-bf16", 2.5e-5, bits=16.0),
        results=(result("mlx-4bit", 0.034), result("gguf-q4_k_m", 0.0123)),
        comparisons=(NEARER,),
        warnings=("it is warm",),
        started="2026-01-02T03:04:05+00:00",
    )


def test_a_row_shows_each_figure_with_its_error(report: EvalReport) -> None:
    lines = render_evaluation(report).splitlines()
    (quality,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "±" in line]
    assert quality.split("  ") != quality
    for cell in ("4.50", "0.0123 ± 0.00057", "0.123", "1.5", "91.23 ± 0.46%", "6.5432 ± 0.0389", "5.52 ± 0.05%"):
        assert cell in quality
    assert "+0.0000 ± 0.0012" in quality  # and no negative nothing
    (cost,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "GB" in line]
    for cell in ("600.00 MB", "25.0%", "580.00 MB", "12.3 ms", "45.6 ms", "2.00 GB", "2.35", "0.375"):
        assert cell in cost


def test_the_reference_comes_first_and_the_noise_floor_is_called_so(report: EvalReport) -> None:
    lines = render_evaluation(report).splitlines()
    labels = ["gguf-bf16 (reference)", "mlx-bf16 (noise floor)", "mlx-4bit", "gguf-q4_k_m"]
    for first in (2, 9):
        assert [
            next(label for label in labels if line.startswith(label)) for line in lines[first : first + 4]
        ] == labels
    assert "6.4000 ± 0.0380" in lines[2] and "100.0%" in lines[9]
    without = render_evaluation(replace(report, noise_floor=None))
    assert "noise floor" not in without


def test_a_noise_floor_that_was_asked_for_has_one_row(report: EvalReport) -> None:
    assert report.noise_floor is not None
    asked = replace(report, results=(*report.results, report.noise_floor))
    text = render_evaluation(asked)
    assert text.count("mlx-bf16 (noise floor)") == 2  # one in each table


def test_forms_of_several_models_are_shown_by_their_full_names(report: EvalReport) -> None:
    several = replace(report, results=(result("gguf-q4_k_m", 0.01), result("gguf", 0.02, model="other", bits=None)))
    text = render_evaluation(several)
    assert "org/model:gguf-q4_k_m" in text and "other:gguf" in text
    (row,) = [line for line in text.splitlines() if line.startswith("other:gguf") and "±" in line]
    assert row.split()[1] == "-"  # nobody knows its bits


def test_a_form_is_called_nearer_only_where_the_windows_show_it(report: EvalReport) -> None:
    (line,) = nearness_lines(report)
    assert line == (
        "org/model:gguf-q4_k_m is nearer to the reference than org/model:mlx-4bit: mean KL divergence 0.0123 against "
        "0.034 (0.0151 to 0.0283 apart, 95% interval over 8 windows)"
    )
    (line,) = nearness_lines(replace(report, comparisons=(replace(NEARER, differs=False),)))
    assert line.startswith("no difference shown between org/model:gguf-q4_k_m and org/model:mlx-4bit (0.0151 to")
    assert nearness_lines(replace(report, comparisons=())) == []


def test_each_form_is_compared_with_the_next_one_alone(report: EvalReport) -> None:
    names = ("gguf-q8_0", "mlx-6bit", "gguf-q4_k_m")
    results = tuple(result(name, mean) for name, mean in zip(names, (0.001, 0.005, 0.02), strict=True))
    pairs = ((0, 1), (0, 2), (1, 2))
    comparisons = tuple(
        Nearness(f"org/model:{names[one]}", f"org/model:{names[two]}", Interval(0.01, 0.005, 0.015), True)
        for one, two in pairs
    )
    lines = nearness_lines(replace(report, results=results[::-1], comparisons=comparisons))
    assert [line.partition(" is nearer")[0] for line in lines] == ["org/model:gguf-q8_0", "org/model:mlx-6bit"]


def test_what_repeats_it_is_said(report: EvalReport) -> None:
    for style in ("text", "md"):
        said = " ".join(render_evaluation(report, style, "localq eval org/model").split())
        for words in (
            *("wiki.test.raw", "abababababababab", "8 windows of 512 tokens", "token 128000", "position 256"),
            *("2,040 positions", "Test CPU", "localq 9.9", "2026-01-02", "it is warm", "localq eval org/model"),
        ):
            assert words in said, (style, words)


@pytest.mark.parametrize("width", [60, 100, 200])
def test_lines_fit_the_width_and_say_the_same(report: EvalReport, width: int) -> None:
    command = "localq eval " + "x" * 300
    text = render_evaluation(report, "text", command, width)
    assert max(len(line) for line in text.splitlines() if "localq eval x" not in line) <= width
    assert command in text  # in one line, to be copied
    said = " ".join(text.split())
    for words in ("0.0123 ± 0.00057", "91.23 ± 0.46%", "12.3 ms", "mlx-bf16 (noise floor)", "it is warm"):
        assert words in said
    assert ("bits/weight 4.50, KL divergence 0.0123" in said) == (width < 150)


def test_markdown_has_two_tables_with_the_same_rows(report: EvalReport) -> None:
    lines = render_evaluation(report, "md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 * (2 + 4)
    assert len({line.count("|") for line in rows[:6]}) == len({line.count("|") for line in rows[6:]}) == 1
    assert rows[1].startswith("| --- | ---: |")
    assert "- **warning**: it is warm" in lines


def test_csv_has_every_figure_in_full_precision(report: EvalReport) -> None:
    unknown = replace(report, results=(*report.results, result("gguf", 0.02, bits=None)))
    rows = list(csv.DictReader(io.StringIO(render_evaluation(unknown, "csv", "localq eval org/model"))))
    assert [row["role"] for row in rows] == ["reference", "noise_floor", "form", "form", "form"]
    assert [row["recipe"] for row in rows] == ["gguf-bf16", "mlx-bf16", "mlx-4bit", "gguf-q4_k_m", "gguf"]
    assert rows[0]["mean_kl_divergence"] == "" and float(rows[0]["perplexity"]) == 6.4
    assert rows[4]["bits_per_weight"] == ""
    for row, found in zip(rows[2:], unknown.results, strict=True):
        for name, value in found.to_json().items():
            if isinstance(value, float):
                assert math.isclose(float(row[name]), value, rel_tol=0), name
    assert {row["text"] for row in rows} == {"wiki.test.raw"}
    assert {row["command"] for row in rows} == {"localq eval org/model"}
