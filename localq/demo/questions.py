"""The questions that the toys were trained to answer, and the text that they never saw."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).parent


def read_questions() -> list[tuple[str, str]]:
    """Every question with its only right answer."""
    entries = json.loads((_FOLDER / "questions.json").read_text(encoding="utf-8"))
    return [(entry["question"], entry["answer"]) for entry in entries]


def read_held_out_text() -> str:
    """A few thousand tokens of the kinds that the toys were trained on, kept aside to measure them by."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")
