"""What results are shown in: tables and what stands around them, as text, Markdown and CSV. Measures nothing."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Generic, Literal, TypeVar

from localq.measure.reports import FormFacts, Machine
from localq.tables import format_bytes, format_html_table, format_table

TableStyle = Literal["text", "md", "csv"]

_SENTENCE_WIDTH = 120
"""Of sentences where the width of the output is not known; tables may be wider there."""
_SPECIAL = re.compile(r"([\\`*\[\]<>|&]|(?<!\w)_|_(?!\w))")
"""What Markdown, or HTML in it, could take for more than a character."""

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Column(Generic[_Item]):
    """A column of a table whose rows are made from items."""

    name: str
    cell: Callable[[_Item], str | None]
    """None where nothing is known."""
    definition: str = ""
    """One line."""
    rank: int = 0
    """Where there is no room, the columns of the highest rank are left out first."""
    is_text: bool = False
    """Aligned to the left; only the first columns and the last one may be."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of cells; the first column names what a row is about, and is never left out."""

    caption: str
    columns: tuple[Column[Any], ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Document:
    """All that is shown of a report, in the order in which it is shown."""

    title: str
    verdict: tuple[str, ...] = ()
    """Lines; the first one is the headline."""
    tables: tuple[Table, ...] = ()
    findings: tuple[str, ...] = ()
    """What the comparisons show, a sentence each."""
    facts: tuple[tuple[str, str], ...] = ()
    """What was measured, where and how: name and text."""
    warnings: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    """Lines that repeat it."""

    @property
    def definitions(self) -> tuple[tuple[str, str], ...]:
        """Name and meaning of each column, once."""
        columns = [column for table in self.tables for column in table.columns if column.definition]
        return tuple({column.name: column.definition for column in columns}.items())


def make_table(caption: str, columns: Sequence[Column[_Item]], items: Iterable[_Item]) -> Table:
    """A row for each item, without the columns of which nothing is known; `-` where a cell is not known."""
    rows = [[column.cell(item) for column in columns] for item in items]
    kept = [at for at in range(len(columns)) if any(row[at] is not None for row in rows)]
    return Table(
        caption,
        tuple(columns[at] for at in kept),
        tuple(tuple("-" if row[at] is None else str(row[at]) for at in kept) for row in rows),
    )


def figure(
    name: str, form: str | Callable[[float], str], error_of: str = "", error_form: str = ""
) -> Callable[[object], str | None]:
    """Cells with the attribute of that name, and the standard error of another one; None for an item without it."""

    def cell(item: object) -> str | None:
        value, error = getattr(item, name, None), getattr(item, f"{error_of}_standard_error", None)
        if value is None:
            return None
        text = form(value) if callable(form) else f"{value:{form}}"
        return text if error is None else f"{text} ± {error:{error_form}}".replace("% ±", " ±")

    return cell


def render(document: Document, style: Literal["text", "md"], width: int | None = None) -> str:
    """Text or Markdown, without a newline at the end. In text no line but a command is longer than `width`."""
    return _text(document, width) if style == "text" else _markdown(document)


def render_notebook(document: Document) -> str:
    """The tables, findings and warnings, for a notebook, which brings the style."""
    parts = [f"<h4>{escape(document.title)}</h4>"]
    for table in document.tables:
        texts = [column.is_text for column in table.columns]
        left = texts.index(False) if False in texts else len(texts)
        header = [column.name for column in table.columns]
        parts.append(format_html_table(header, [list(row) for row in table.rows], left))
    warnings = [f"warning: {warning}" for warning in document.warnings]
    return "".join([*parts, *(f"<p>{escape(text)}</p>" for text in (*document.findings, *warnings))])


def render_csv(records: Sequence[Mapping[str, object]]) -> str:
    """Header and rows with the same keys, without a newline at the end; None is an empty field."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(records[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return stream.getvalue().removesuffix("\n")


def table_lines(table: Table, width: int | None = None) -> list[str]:
    """A table in plain text; a last line names the columns for which `width` has no room."""
    kept = list(range(len(table.columns)))
    while width and _line_length(table, kept) > width and len(kept) > 2:
        kept.remove(max(kept[1:], key=lambda at: (table.columns[at].rank, at)))
    columns = [table.columns[at] for at in kept]
    rows = [[row[at] for at in kept] for row in table.rows]
    texts = [column.is_text for column in columns]
    left = texts.index(False) if False in texts else len(texts)
    lines = format_table([column.name for column in columns], rows, left, ends_with_text=texts[-1]).splitlines()
    left_out = [column.name for at, column in enumerate(table.columns) if at not in kept]
    note = f"no room for: {', '.join(left_out)}"
    return [*lines, *(wrapped(note, width) if left_out else [])]


def labels(forms: Iterable[FormFacts]) -> dict[str, str]:
    """What each format is called, by its name: by its recipe alone where all are of one model."""
    known = {form.name: form for form in forms}
    one_model = len({form.model for form in known.values()}) == 1
    return {name: form.recipe if one_model else name for name, form in known.items()}


def title(forms: Iterable[FormFacts], what: str) -> str:
    """`toy-phi: speed by format`."""
    return f"{', '.join(dict.fromkeys(form.model for form in forms))}: {what} by format"


def machine_facts(machine: Machine) -> list[tuple[str, str]]:
    """What a stranger must know of a machine to compare results with their own."""
    metal = "Metal" if machine.metal else "no Metal"
    memory = format_bytes(machine.memory_bytes)
    versions = [f"{name} {version}" for name, version in machine.versions.items()]
    return [
        ("machine", f"{machine.cpu}, {machine.physical_cores} cores, {memory}, {metal}; {machine.os}"),
        ("versions", ", ".join([*versions, f"Python {machine.python}"])),
    ]


def wrapped(paragraph: str, width: int | None) -> list[str]:
    """Lines of a paragraph, the later ones indented; without a width they are as long as is easy to read."""
    return textwrap.wrap(paragraph, width or _SENTENCE_WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def format_time(time: datetime) -> str:
    """`2026-11-21 04:05 UTC`."""
    return f"{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC"


def _text(document: Document, width: int | None) -> str:
    def paragraphs(texts: Iterable[str]) -> list[str]:
        return [line for text in texts for line in wrapped(text, width)]

    notes = [f"{name}: {text}" for name, text in (*document.facts, ("columns", "--md says what they mean"))]
    notes += [f"warning: {warning}" for warning in document.warnings]
    parts = [
        wrapped(document.title, width),
        paragraphs(document.verdict),
        *(table_lines(table, width) for table in document.tables),
        paragraphs(document.findings),
        # A command stays one line, to be copied.
        [*paragraphs(notes), *(f"repeat: {command}" for command in document.commands)],
    ]
    return "\n\n".join("\n".join(lines) for lines in parts if lines)


def _markdown(document: Document) -> str:
    lines = [f"# {_plain(document.title)}", ""]
    if document.verdict:
        headline, *others = map(_plain, document.verdict)
        lines += [f"**{headline}**", "", *(f"- {line}" for line in others), ""]
    lines += [f"> **Warning**: {_plain(warning)}\n" for warning in document.warnings]
    for table in document.tables:
        header = [_plain(column.name) for column in table.columns]
        rule = ["---" if column.is_text else "---:" for column in table.columns]
        rows = [[_plain(cell) for cell in row] for row in table.rows]
        lines += [f"## {table.caption}", "", *(f"| {' | '.join(row)} |" for row in (header, rule, *rows)), ""]
    if document.findings:
        lines += ["## What the comparisons show", "", *(f"- {_plain(text)}" for text in document.findings), ""]
    sections = {"How it was measured": document.facts, "What the columns mean": document.definitions}
    for heading, pairs in sections.items():
        lines += [f"## {heading}", "", *(f"- **{_plain(name)}**: {_plain(text)}" for name, text in pairs), ""]
    return "\n".join([*lines, *(f"    {command}" for command in document.commands)]).rstrip()


def _plain(text: str) -> str:
    """Markdown that shows a text as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _line_length(table: Table, kept: Sequence[int]) -> int:
    rows = [[column.name for column in table.columns], *table.rows]
    return sum(max(len(row[at]) for row in rows) + 2 for at in kept) - 2
