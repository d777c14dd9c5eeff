"""Where the command line writes: answers and data on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from typing import Any


def emit(text: str, end: str = "\n") -> None:
    """Write answer or data to stdout, at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def emit_json(value: Any) -> None:
    """Write one JSON value to stdout."""
    emit(json.dumps(value, indent=2, ensure_ascii=False))


def say(text: str) -> None:
    """Tell the user something on stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def stderr_is_terminal() -> bool:
    """Whether progress bars make sense."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def format_bytes(count: float) -> str:
    """`1.23 GB`, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


def format_rate(value: float | None) -> str:
    """Tokens per second to three significant digits; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def format_table(header: list[str], rows: list[list[str]], left_columns: int = 1) -> str:
    """Aligned plain text: the first columns to the left, figures to the right."""
    widths = [max(len(row[column]) for row in [header, *rows]) for column in range(len(header))]

    def line(cells: list[str]) -> str:
        padded = [
            cell.ljust(width) if column < left_columns else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return "  ".join(padded).rstrip()

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])
