"""Words of the command line as values of plain types, without pydantic.

typer 0.29 import pydantic for it, which takes longer than the rest of `localq ls`.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer

_PLAIN_TYPES: dict[Any, Any] = {
    **{kind: kind for kind in (str, int, float, bool, Path)},
    **{list[kind]: kind for kind in (str, Path)},  # type: ignore[valid-type]
}
"""From annotation to what makes a value of one word."""


def convert_plainly(parameters: Iterable[Any]) -> None:
    """Let parameters of plain types do without pydantic; a typer that does not use it stays as it is."""
    for parameter in parameters:
        annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", None)
        if annotation in _PLAIN_TYPES and getattr(parameter, "_runtime_param", ...) is None:
            parameter._runtime_param = _PlainConversion(_PLAIN_TYPES[annotation])


class _PlainConversion:
    def __init__(self, kind: Any) -> None:
        self._kind = kind

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value of a parameter. Raises typer's usage error."""
        try:
            if param.multiple or param.nargs == -1:
                return [self._kind(word) for word in value or ()]
            return None if value is None else self._kind(value)
        except ValueError as error:
            expected = "a whole number" if self._kind is int else "a number"
            raise typer.BadParameter(f"{value!r} is not {expected}", ctx, param) from error
