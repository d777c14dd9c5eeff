"""The shapes of public Llama and Phi models: what their `config.json` says, kept in `shapes.json` beside this file.

Facts of the repositories that `_name_or_path` names; a shape stands for every fine-tune of the same model.
"""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from localq.errors import OptionError
from localq.families.config import parse_config

Shape = dict[str, Any]
"""A `config.json` as transformers writes it."""


def shape_config(name: str) -> Shape:
    """The `config.json` of a shape, named in any letter case.

    LongRoPE's two lists of factors are made up, of the right length: all ones, which cost what any others do. Raises
    OptionError that lists the names, the nearest one first.
    """
    known = _table().get(name.lower())
    if known is None:
        nearest_first = difflib.get_close_matches(name.lower(), _table(), len(_table()), 0.0)
        raise OptionError(f"localq knows no shape {name!r}", f"it knows: {', '.join(nearest_first)}")
    scaling = known.get("rope_scaling") or {}
    if scaling.get("type") != "longrope":
        return dict(known)
    ones = [1.0] * (parse_config(known).rotated_width // 2)
    return {**known, "rope_scaling": {**scaling, "short_factor": ones, "long_factor": ones}}


def shape_names() -> list[str]:
    """The names that `shape_config` knows."""
    return list(_table())


@cache
def _table() -> dict[str, Shape]:
    table: dict[str, Shape] = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))
    return table
