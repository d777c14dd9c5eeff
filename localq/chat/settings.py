"""The options that `/set` shows and changes, with the values that the command line takes for them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from difflib import get_close_matches
from typing import Any

from localq.errors import OptionError
from localq.options import GenerationOptions

NAMES = {
    "temp": "temperature",
    "top-p": "top_p",
    "top-k": "top_k",
    "min-p": "min_p",
    "max-tokens": "max_tokens",
    "repeat-penalty": "repeat_penalty",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "seed": "seed",
    "stop": "stop",
}
"""Of the command line, with the fields of `GenerationOptions`."""

_WHOLE_NUMBERS = {"top_k", "max_tokens", "seed"}


def describe(options: GenerationOptions) -> Iterator[str]:
    """A line for each option: name and value; those that differ from the default are marked."""
    defaults = GenerationOptions()
    for name, field in NAMES.items():
        value = getattr(options, field)
        shown = " ".join(map(repr, value)) if field == "stop" else "" if value is None else f"{value:g}"
        yield f"{name:<18} {shown or 'none'}{'' if value == getattr(defaults, field) else '  *'}"


def changed(options: GenerationOptions, name: str, text: str) -> GenerationOptions:
    """The options with another value for one; `none` and `default` take the default. Raises OptionError."""
    field = NAMES.get(name) or NAMES.get(name.replace("_", "-"), name)
    if field not in NAMES.values():
        near = get_close_matches(name, NAMES, 1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise OptionError(f"there is no option {name!r}", f"{hint}/set lists them")
    default = next(known.default for known in fields(GenerationOptions) if known.name == field)
    if text in ("none", "default"):
        value: Any = default
    elif field == "stop":
        value = (*options.stop, text)
    else:
        try:
            value = int(text) if field in _WHOLE_NUMBERS else float(text)
        except ValueError:
            kind = "a whole number" if field in _WHOLE_NUMBERS else "a number"
            raise OptionError(f"{name} is {text!r}; expected {kind}") from None
    return replace(options, **{field: value})
