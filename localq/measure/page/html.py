"""A page as HTML: one file that needs no other, for screens and for paper."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from localq.measure.page.content import Page
from localq.measure.page.plots import Plot
from localq.version import __version__


def render_html(page: Page, plots: Sequence[Plot]) -> str:
    """An HTML5 document. Every text of the page is escaped; the plots' SVG is not."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(page=page, plots=plots, version=__version__)
