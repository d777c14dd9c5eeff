"""Which family converts which architecture. A new family is one file and one line here."""

from __future__ import annotations

from importlib import import_module
from typing import cast

from localq.errors import UnsupportedModelError
from localq.families.base import Family

FAMILIES = {
    "LlamaForCausalLM": "localq.families.llama",
    "Phi3ForCausalLM": "localq.families.phi3",
}
"""Class name in `config.json` -> module that holds its `FAMILY`."""


def find_family(architecture: str) -> Family:
    """The family of a class name; raises UnsupportedModelError that lists the supported ones."""
    module = FAMILIES.get(architecture)
    if module is None:
        supported = ", ".join(sorted(FAMILIES))
        raise UnsupportedModelError(f"architecture {architecture!r} is not supported", f"supported: {supported}")
    return cast(Family, import_module(module).FAMILY)
