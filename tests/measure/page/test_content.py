"""What stands on a page: figures, sentences, machine, settings; and the same in Markdown."""

from __future__ import annotations

from dataclasses import replace

from localq.measure.page.content import Page, page_of
from localq.measure.page.figures import Table
from localq.measure.page.markdown import render_markdown
from localq.measure.page.measurements import join
from localq.measure.speed.results import BenchSettings
from tests.measure.page.pages import FAST, SLOW, measurements, qualities, speeds
from tests.measure.speed.bench_reports import MACHINE

A, B = "toy:gguf-a", "toy:mlx-b"


def both() -> Page:
    sizes = {A: 1_500_000_000, B: 1_000_000_000}
    return page_of(join(speeds({A: FAST, B: SLOW}, sizes), qualities({A: 0.0123, B: 0.0345}, sizes, 1e-6)), ["one", ""])


def cells(table: Table) -> dict[str, dict[str, str]]:
    """The texts of a table by row and column."""
    header = [cell.text for cell in table.header]
    return {row[0].text: dict(zip(header, map(str, row), strict=True)) for row in table.rows}


def test_the_main_table_has_every_figure_of_every_form() -> None:
    rows = cells(both().table)
    assert list(rows) == ["gguf-f32", "gguf-a", "mlx-b"]
    assert rows["mlx-b"] == {
        "form": "mlx-b",
        "size": "1.00 GB",
        "bits/weight": "4.50",
        "prompt t/s": "100.0 ± 1.0",
        "generation t/s": "10.00 ± 0.10",
        "of memory limit": "20% of 50.0",
        "first token": "1.50 s",
        "load": "250 ms (2.50 s cold)",
        "peak memory": "734.00 MB",
        "mean KL": "0.0345 ± 0.5",
        "same top": "50.00% ± 50.00%",
        "perplexity": "12.0000 (+20.00%)",
    }
    assert rows["gguf-f32"]["form"] == "gguf-f32 reference"
    assert rows["gguf-f32"]["perplexity"] == "10.0000"
    assert rows["gguf-f32"]["generation t/s"] == rows["gguf-f32"]["mean KL"] == "-"


def test_the_header_names_the_tests() -> None:
    header = {cell.text: cell.note for cell in both().table.header}
    assert (header["prompt t/s"], header["generation t/s"], header["first token"]) == ("pp64", "tg16", "pp64")


def test_columns_that_nothing_is_known_for_are_left_out() -> None:
    settings = BenchSettings((), (16,), (0,), repetitions=3, context_length=65)
    page = page_of(join(speeds({A: FAST}, settings=settings), None), [])
    header = [cell.text for cell in page.table.header]
    assert "prompt t/s" not in header and "mean KL" not in header and "generation t/s" in header
    assert "J/token" not in [cell.text for cell in page.details[0].header]


def test_every_test_has_its_interval() -> None:
    settings = BenchSettings((64, 128), (16,), (0, 8), repetitions=3, context_length=200)
    page = page_of(join(speeds({A: FAST, B: SLOW}, settings=settings), None), [])
    (table,) = page.details
    assert [str(row[1]) for row in table.rows][:6] == ["pp64", "pp128", "tg16", "pp64 @ d8", "pp128 @ d8", "tg16 @ d8"]
    assert [str(cell) for cell in table.rows[2][2:4]] == ["12.50 ± 0.10", "12.40 to 12.60"]


def test_the_noise_floor_has_a_row_and_a_sentence() -> None:
    page = both()
    assert list(cells(page.details[1])) == ["mlx-f32", "gguf-a", "mlx-b"]
    assert cells(page.details[1])["mlx-f32"]["form"] == "mlx-f32 noise floor"
    assert "mlx-f32 is not quantized and differs from gguf-f32 by a mean KL divergence of 1e-06" in page.noise_floor
    assert page_of(measurements({A: FAST}, {A: 0.1}), []).noise_floor == ""


def test_comparisons_are_told_in_words_with_their_intervals() -> None:
    assert both().comparisons == (
        "pp64: gguf-a is 1.25 times as fast as mlx-b (1.23 to 1.27)",
        "tg16: gguf-a is 1.25 times as fast as mlx-b (1.23 to 1.27)",
        "gguf-a is nearer to the reference than mlx-b: mean KL divergence 0.0123 against 0.0345 (0.0111 to 0.0444 "
        "apart, 95% interval over 4 windows)",
    )


def test_the_page_tells_machine_settings_versions_text_and_command() -> None:
    page = both()
    facts = dict(page.facts)
    assert facts["machine"] == "Test CPU, 4 cores, 17.18 GB, no Metal; TestOS 1"
    assert facts["versions"] == "localq 9.9, mlx 0.1, llama-cpp-python 0.3, Python 3.11.0"
    assert "3 repetitions, each in a warm process of its own; context of 65 tokens" in facts["speed"]
    assert "measured 21 November 2026, 04:05 UTC" in facts["speed"]
    assert facts["memory limit"].startswith("33.10 GB/s")
    assert f"text.txt (sha256 {'0f' * 32}); 4 windows of 512 tokens that begin with token 1" in facts["text"]
    assert "machine of quality" not in facts
    assert page.commands == ("one",)
    assert page.subtitle == "Test CPU, 21 November 2026, 04:05 UTC"


def test_another_machine_of_the_evaluation_is_told_with_its_versions() -> None:
    other = replace(MACHINE, cpu="Other CPU", python="3.12.1")
    found = join(speeds({A: FAST}), replace(qualities({A: 0.1}), machine=other))
    facts = dict(page_of(found, []).facts)
    assert facts["machine of quality"].startswith("Other CPU")
    assert facts["versions of quality"].endswith("Python 3.12.1")


def test_random_weights_are_told() -> None:
    found = measurements({A: FAST}, None)
    assert "random" in dict(page_of(found, ["localq bench --shape phi-4-mini"]).facts)["weights"]
    assert "weights" not in dict(page_of(found, ["localq bench phi-4-mini"]).facts)


def test_warnings_are_on_the_page_with_the_forms_called_as_in_the_table() -> None:
    bench = replace(speeds({A: FAST}), warnings=(f"{A} was slow",))
    page = page_of(join(bench, None), [])
    assert page.warnings == ("gguf-a was slow",)
    assert "> **Warning**: gguf-a was slow" in render_markdown(page)


def test_every_column_is_defined() -> None:
    page = both()
    names = {cell.text for table in (page.table, *page.details) for cell in table.header}
    assert names - {name for name, _ in page.definitions} == {"form", "test", "99% KL", "largest KL"}


def test_markdown_has_the_same_in_the_same_order() -> None:
    page = both()
    text = render_markdown(page)
    parts = [page.title, page.recommendation, "| mlx-b | 1.00 GB |", page.comparisons[0], "Speed in every test"]
    parts += ["Distance from the reference", page.noise_floor, "Test CPU, 4 cores", "    one", "8 × bytes of weights"]
    places = [text.find(part) for part in parts]
    assert -1 not in places and places == sorted(places)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in rows[:5]} == {13}


def test_markdown_shows_names_as_they_are() -> None:
    text = render_markdown(page_of(measurements({"a|b<i>_x_:gguf-q4_k_m": FAST, "c:gguf-a": SLOW}, None), []))
    assert r"| a\|b\<i\>\_x\_:gguf-q4_k_m |" in text
