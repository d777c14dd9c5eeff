"""Progress bars for people in IPython and Jupyter, where a call that takes minutes should not be silent."""

from __future__ import annotations

import sys
import warnings
from typing import Any


def in_notebook() -> bool:
    """Whether this is a session of IPython or Jupyter."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


class Bars:
    """A bar by tqdm for each title: a widget where the notebook has them, else a line of text."""

    def __init__(self, *, counts_bytes: bool = True) -> None:
        self._format: dict[str, Any] = {"unit": "B", "unit_scale": True} if counts_bytes else {"unit": "step"}
        self._title = ""
        self._bar: Any = None

    def update(self, title: str, done: int, total: int) -> None:
        """Show a state; a new title begins a new bar. A bar is closed when all is done."""
        if title != self._title:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of tqdm's, where the notebook has no widgets: a line of text is fine
                from tqdm.auto import tqdm

            self._title = title
            self._bar = tqdm(desc=title, total=total, **self._format)
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
