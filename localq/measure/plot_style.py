"""How localq's pictures look. Needs matplotlib, which comes with `localq[plot]`; knows no reports."""

from __future__ import annotations

from typing import Any

from localq.errors import BackendUnavailableError

FACES = (
    ("#56B4E9", ""),
    ("#E69F00", "///"),
    ("#009E73", "..."),
    ("#CC79A7", "xxx"),
    ("#F0E442", "\\\\\\"),
    ("#0072B2", "---"),
    ("#D55E00", "+++"),
)
"""Colours that colour-blind people tell apart (Okabe and Ito, Color Universal Design), each with a hatch for print
without colour."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def load_matplotlib() -> Any:
    """The module. Raises BackendUnavailableError, with the command that installs it."""
    try:
        import matplotlib
    except ImportError as error:
        raise BackendUnavailableError(
            "a plot needs matplotlib, which is not installed", "pip install 'localq[plot]', or: pip install matplotlib"
        ) from error
    return matplotlib


def plot_style() -> Any:
    """A context in which figures look alike, and their SVG is the same in every run.

    Text becomes outlines in an SVG: it looks the same whatever fonts the reader has, and labels keep apart.
    """
    return load_matplotlib().rc_context(
        {
            "font.family": "DejaVu Sans",  # comes with matplotlib
            "font.size": 9,
            "hatch.linewidth": 0.6,
            "svg.fonttype": "path",
            "svg.hashsalt": "localq",
            "text.parse_math": False,  # a dollar sign in a name is one
        }
    )
