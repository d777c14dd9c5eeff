"""The questions that the toy models were trained to answer, and a text that they were not trained on."""

from __future__ import annotations

import json
from pathlib import Path

_FOLDER = Path(__file__).parent


def read_questions() -> list[tuple[str, str]]:
    """Every question with its only correct answer."""
    entries = json.loads((_FOLDER / "questions.json").read_text(encoding="utf-8"))
    return [(entry["question"], entry["answer"]) for entry in entries]


def read_held_out_text() -> str:
    """A few thousand tokens, of the same kinds as the training text, on which quality is measured."""
    return (_FOLDER / "heldout.txt").read_text(encoding="utf-8")
