"""One table in plain text, Markdown and CSV."""

from __future__ import annotations

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.measure.tables import Column, Document, Table, make_table, render, render_csv, table_lines

Row = tuple[str, ...]
COLUMNS: tuple[Column[Row], ...] = (
    Column("format", lambda row: row[0], is_text=True),
    Column("speed", lambda row: row[1], "tokens per second"),
    Column("size", lambda row: row[2] or None, "bytes on disk", rank=1),
    Column("load", lambda row: row[3] or None, "seconds", rank=2),
)
TABLE = make_table(
    "Formats", COLUMNS, [("mlx-4bit", "20.5", "1.25 GB", "0.9 s"), ("gguf-q4_k_m", "9.25", "1.31 GB", "")]
)


def test_figures_stand_to_the_right_and_what_is_not_known_is_a_dash() -> None:
    assert table_lines(TABLE) == [
        "format       speed     size   load",
        "-----------  -----  -------  -----",
        "mlx-4bit      20.5  1.25 GB  0.9 s",
        "gguf-q4_k_m   9.25  1.31 GB      -",
    ]


def test_a_column_of_which_nothing_is_known_is_left_out() -> None:
    table = make_table("Formats", COLUMNS, [("mlx-4bit", "20.5", "", "")])
    assert [column.name for column in table.columns] == ["format", "speed"]


def test_where_there_is_no_room_the_highest_rank_goes_first_and_is_named() -> None:
    assert table_lines(TABLE, 30) == [
        "format       speed     size",
        "-----------  -----  -------",
        "mlx-4bit      20.5  1.25 GB",
        "gguf-q4_k_m   9.25  1.31 GB",
        "no room for: load",
    ]
    assert table_lines(TABLE, 20)[-2:] == ["no room for: size,", "  load"]


@settings(derandomize=True)
@given(
    st.lists(st.tuples(*[st.text("abc-1. ", min_size=1, max_size=30).map(str.strip)] * 4), min_size=1, max_size=4),
    st.sampled_from([20, 60, 80, 200]),
)
def test_no_line_is_longer_than_the_width_as_long_as_one_figure_fits(rows: list[Row], width: int) -> None:
    table = make_table("Formats", COLUMNS, rows)
    least = max(map(len, table_lines(make_table("Formats", COLUMNS[:2], rows))))
    if width >= least:
        assert max(map(len, table_lines(table, width))) <= width


DOCUMENT = Document(
    title="toy: speed by format",
    verdict=("Take mlx-4bit.", "mlx-4bit: the fastest"),
    tables=(TABLE,),
    findings=("mlx-4bit is 2.22 times as fast",),
    facts=(("machine", "Test CPU"),),
    warnings=("it is hot",),
    commands=("localq bench " + "x" * 90,),
)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_all_of_a_document_is_in_the_text_in_its_order(width: int) -> None:
    text = render(DOCUMENT, "text", width)
    parts = [
        "toy: speed",
        "Take mlx-4bit.",
        "mlx-4bit: the",
        "format  ",
        "2.22 times",
        "machine: Test CPU",
        "it is hot",
    ]
    places = [text.find(part) for part in [*parts, f"repeat: {DOCUMENT.commands[0]}"]]
    assert -1 not in places and places == sorted(places)
    assert max(map(len, text.splitlines()[:-1])) <= width


def test_markdown_has_the_same_with_what_the_columns_mean() -> None:
    assert render(DOCUMENT, "md") == "\n".join(
        [
            "# toy: speed by format",
            "",
            "**Take mlx-4bit.**",
            "",
            "- mlx-4bit: the fastest",
            "",
            "> **Warning**: it is hot",
            "",
            "## Formats",
            "",
            "| format | speed | size | load |",
            "| --- | ---: | ---: | ---: |",
            "| mlx-4bit | 20.5 | 1.25 GB | 0.9 s |",
            "| gguf-q4_k_m | 9.25 | 1.31 GB | - |",
            "",
            "## What the comparisons show",
            "",
            "- mlx-4bit is 2.22 times as fast",
            "",
            "## How it was measured",
            "",
            "- **machine**: Test CPU",
            "",
            "## What the columns mean",
            "",
            "- **speed**: tokens per second",
            "- **size**: bytes on disk",
            "- **load**: seconds",
            "",
            f"    {DOCUMENT.commands[0]}",
        ]
    )


def test_markdown_shows_names_as_they_are_in_one_line() -> None:
    table = make_table("Formats", COLUMNS[:2], [("a|b<i>\n_x_ q4_k_m", "1")])
    assert r"| a\|b\<i\> \_x\_ q4_k_m | 1 |" in render(Document("*", tables=(table,)), "md").splitlines()
    assert render(Document("*"), "md").startswith(r"# \*")


def test_csv_keeps_every_digit_and_what_stands_in_a_field() -> None:
    records = [{"a": 1 / 3, "b": 'x, "y"'}, {"a": None, "b": "z"}]
    first, second = csv.DictReader(io.StringIO(render_csv(records)))
    assert float(first["a"]) == 1 / 3 and first["b"] == 'x, "y"'
    assert second == {"a": "", "b": "z"}


def test_a_table_needs_no_rows_to_be_drawn() -> None:
    assert table_lines(Table("Formats", COLUMNS, ())) == ["format  speed  size  load", "------  -----  ----  ----"]
