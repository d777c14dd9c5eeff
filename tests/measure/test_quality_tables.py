"""An eval report as text, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import math

import pytest

from localq.measure.documents import render_eval
from tests.measure.report_examples import eval_report, form_quality

REPORT = eval_report(
    {"org/model:mlx-4bit": 0.034, "org/model:gguf-q4_k_m": 0.0123}, floor=2.5e-5, warnings=("it is warm",)
)
COMMAND = "localq eval toy --window 512"


def test_a_row_shows_each_figure_with_its_error() -> None:
    lines = render_eval(REPORT).splitlines()
    (quality,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "±" in line]
    for cell in ("0.0123 ± 0.00061", "0.123", "0.984", "91.23 ± 0.46%", "6.5432 ± 0.0389", "5.52 ± 0.05%"):
        assert cell in quality
    assert "+0.0000 ± 0.0012" in quality  # and no negative nothing
    (cost,) = [line for line in lines if line.startswith("gguf-q4_k_m") and "GB" in line]
    for cell in ("1.61 GB", "26.8%", "4.50", "805.31 MB", "12.3 ms", "45.6 ms", "2.00 GB"):
        assert cell in cost


def test_the_baseline_comes_first_and_the_noise_floor_is_marked() -> None:
    names = ["gguf-f32 (baseline)", "mlx-f32 (noise floor)", "mlx-4bit", "gguf-q4_k_m"]
    lines = render_eval(REPORT).splitlines()
    assert [line.partition("  ")[0] for line in lines[4:8]] == names
    assert [line.partition("  ")[0] for line in lines[11:15]] == names
    assert "6.4000 ± 0.0389" in lines[4] and "100.0%" in lines[11]
    assert "noise floor" not in render_eval(REPORT.model_copy(update={"noise_floor": None}))


def test_a_noise_floor_that_was_asked_for_has_one_row() -> None:
    asked = REPORT.model_copy(update={"results": (*REPORT.results, REPORT.noise_floor)})
    assert render_eval(asked).count("mlx-f32 (noise floor)") == 2  # one in each table


def test_formats_of_several_models_have_their_whole_names() -> None:
    foreign = form_quality("other:gguf", 0.02).model_copy(update={"bits_per_weight": None})
    text = render_eval(REPORT.model_copy(update={"results": (*REPORT.results, foreign)}))
    assert "org/model:gguf-q4_k_m" in text
    (row,) = [line for line in text.splitlines() if line.startswith("other:gguf") and "GB" in line]
    assert row.split()[4] == "-"  # nobody knows its bits


def test_what_repeats_it_is_said() -> None:
    for style in ("text", "md"):
        said = " ".join(render_eval(REPORT, style).split())  # type: ignore[arg-type]
        for words in (
            *("text.txt", "0f0f0f0f0f0f0f0f", "8 windows of 512 tokens", "token 1", "position 256", "2,040 positions"),
            *(
                "Test CPU",
                "localq 9.9",
                "2026-11-21 05:06 UTC",
                "it is warm",
                COMMAND,
                "compared with gguf-f32 (6.00 GB)",
            ),
            "its mean KL of 2.5e-05 is the engines' arithmetic",
            "gguf-q4_k_m is nearer to gguf-f32 than mlx-4bit: mean KL 0.0123 against 0.034",
        ):
            assert words in said, (style, words)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_line_is_longer_than_the_width_and_the_divergence_stays(width: int) -> None:
    text = render_eval(REPORT, "text", width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.0123 ± 0.00061" in text and "91.23 ± 0.46%" in text
    assert ("no room for" in text) == (width < 150)


def test_markdown_has_two_tables_with_the_same_rows_and_defines_the_columns() -> None:
    lines = render_eval(REPORT, "md").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 * (2 + 4)
    assert len({line.count("|") for line in rows[:6]}) == len({line.count("|") for line in rows[6:]}) == 1
    assert rows[1].startswith("| --- | ---: |")
    assert "> **Warning**: it is warm" in lines
    for name in rows[0].split("|")[2:-1]:
        assert any(line.startswith(f"- **{name.strip()}**: ") for line in lines), name


def test_csv_has_every_figure_in_full_precision() -> None:
    unknown = form_quality("org/model:gguf", 0.02).model_copy(update={"bits_per_weight": None})
    report = REPORT.model_copy(update={"results": (*REPORT.results, unknown)})
    rows = list(csv.DictReader(io.StringIO(render_eval(report, "csv"))))
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
    assert {row["command"] for row in rows} == {COMMAND}
