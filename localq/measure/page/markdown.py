"""A page as Markdown, for notes and issues. Without its plots."""

from __future__ import annotations

import re

from localq.measure.page.content import Page
from localq.measure.page.figures import Table

_SPECIAL = re.compile(r"([\\`*\[\]<>|&]|(?<!\w)_|_(?!\w))")
"""What Markdown or the HTML in it could take for more than a character."""


def render_markdown(page: Page) -> str:
    """Markdown with tables as GitHub has them, without a newline at the end."""
    lines = [f"# {_plain(page.title)}", "", _plain(page.subtitle), "", f"**{_plain(page.recommendation)}**", ""]
    lines += [f"> **Warning**: {_plain(warning)}\n" for warning in page.warnings]
    lines += [*_table(page.table), ""]
    lines += _bullets("What the comparisons show", page.comparisons)
    for table in page.details:
        lines += [f"## {table.caption}", "", *_table(table), ""]
    if page.noise_floor:
        lines += [_plain(page.noise_floor), ""]
    lines += _pairs("How it was measured", page.facts)
    if page.commands:
        lines += ["To repeat it:", "", *(f"    {command}" for command in page.commands), ""]
    lines += _pairs("What the columns mean", page.definitions)
    return "\n".join(lines).rstrip()


def _table(table: Table) -> list[str]:
    header = [str(cell) for cell in table.header]
    rows = [[_plain(str(cell)) for cell in row] for row in table.rows]
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *rows)]


def _bullets(heading: str, texts: tuple[str, ...]) -> list[str]:
    return [f"## {heading}", "", *(f"- {_plain(text)}" for text in texts), ""] if texts else []


def _pairs(heading: str, pairs: tuple[tuple[str, str], ...]) -> list[str]:
    return [f"## {heading}", "", *(f"- **{name}**: {_plain(text)}" for name, text in pairs), ""]


def _plain(text: str) -> str:
    """A text that shows as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
