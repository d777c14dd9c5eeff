"""Plain-text tables, and sizes, rates, ratios and times as people read them."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from html import escape

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_SIZE = re.compile(r"(\d{1,18})|(\d{1,18}(?:\.\d{1,9})?)\s*([kmgt]i?b?|b)", re.ASCII | re.IGNORECASE)


def format_bytes(count: float) -> str:
    """`1.23 GB`, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def parse_bytes(text: str) -> int | None:
    """Bytes of a text such as `20GB`, `1.5 GiB` or `4000000`; None for any other text."""
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        return None
    return int(Decimal(found[1] or found[2]) * _UNITS[(found[3] or "").lower().removesuffix("b")])


def format_rate(value: float | None, like: float | None = None) -> str:
    """Tokens per second: `31245`, `135.3`, `20.12`, `1.26`, `0.153`; a dash where there is none.

    Four significant digits, but two decimals at most, three below 1; with `like`, as many decimals as `like` has.
    """
    return "-" if value is None else f"{value:.{_decimals(value if like is None else like)}f}"


def format_spread(median: float, stdev: float | None) -> str:
    """`135.3 ± 5.8`; the median alone where the spread is not known."""
    return format_rate(median) if stdev is None else f"{format_rate(median)} ± {format_rate(stdev, like=median)}"


def format_range(low: float, high: float) -> str:
    """`129.1 to 141.4`."""
    return f"{format_rate(low, like=high)} to {format_rate(high)}"


def format_coarsely(value: float) -> str:
    """`1.25`, `13.2`, `135`: three significant digits of a ratio or a limit, two decimals at most."""
    return f"{value:.{max(0, 2 - _magnitude(value)) if value >= 1 else 2}f}"


def format_duration(seconds: float) -> str:
    """Three significant digits: `1.23 s`, `45.6 ms`, `59.1 µs`."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{format_coarsely(seconds / size)} {unit}"
    return f"{format_coarsely(seconds / 1e-6)} µs"


def format_table(
    header: list[str], rows: list[list[str]], left_columns: int = 1, *, ends_with_text: bool = False
) -> str:
    """Aligned plain text: the first columns to the left, figures to the right; the last one too may be text."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]
    texts = {*range(left_columns), *([len(header) - 1] if ends_with_text else [])}

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column in texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


def _decimals(value: float) -> int:
    return min(2 if value >= 1 else 3, max(0, 3 - _magnitude(value)))


def _magnitude(value: float) -> int:
    """Of 135: 2. A number without one, such as 0, counts as 1."""
    return math.floor(math.log10(value)) if value > 0 else 0


def format_html_table(header: list[str], rows: list[list[str]], left_columns: int = 1) -> str:
    """The same for a notebook, which brings the style."""

    def line(tag: str, cells: list[str]) -> str:
        sides = ["left" if column < left_columns else "right" for column in range(len(cells))]
        marked = [
            f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for side, cell in zip(sides, cells, strict=True)
        ]
        return f"<tr>{''.join(marked)}</tr>"

    body = "".join(line("td", row) for row in rows)
    return f"<table><thead>{line('th', header)}</thead><tbody>{body}</tbody></table>"
