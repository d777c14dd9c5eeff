"""Plain-text tables, and the sizes that stand in them."""

from __future__ import annotations


def format_bytes(count: float) -> str:
    """`1.23 GB`, in powers of ten as disks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1000
    return f"{count:.2f} TB"


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
