"""Options by name: functions whose signatures list every option, and errors that name the nearest one."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from localq.errors import OptionError

_Parameters = ParamSpec("_Parameters")
_Result = TypeVar("_Result")


def named_options(*kinds: type) -> Callable[[Callable[_Parameters, _Result]], Callable[_Parameters, _Result]]:
    """A decorator for functions that take the fields of `kinds`, classes whose fields all have defaults, by name.

    `help()`, `inspect.signature` and the completion of IPython show these fields with their types and defaults; the
    docstrings of `kinds` are added to the function's own. Any other keyword argument raises OptionError, where Python
    alone would raise TypeError.
    """

    def decorate(function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        signature = _signature(function, kinds)
        names = [name for name in signature.parameters if name not in ("self", "cls")]

        @functools.wraps(function)
        def checked(*args: _Parameters.args, **given: _Parameters.kwargs) -> _Result:
            for name in given:
                if name not in names:
                    raise OptionError(_unknown(name, names), f"options: {', '.join(names)}")
            return function(*args, **given)

        checked.__signature__ = signature  # type: ignore[attr-defined]
        described = [f"{kind.__name__}: {inspect.cleandoc(kind.__doc__ or '')}" for kind in kinds]
        checked.__doc__ = "\n\n".join([inspect.cleandoc(function.__doc__ or ""), *described])
        return checked

    return decorate


class _Annotation(str):
    """The text of a type, which Python before 3.14 shows in quotes otherwise."""

    def __repr__(self) -> str:
        return str(self)


def _signature(function: Callable[..., Any], kinds: tuple[type, ...]) -> inspect.Signature:
    own = inspect.signature(function)
    parameters = [item for item in own.parameters.values() if item.kind is not inspect.Parameter.VAR_KEYWORD]
    for kind in kinds:
        defaults = kind()
        parameters += [
            item.replace(kind=inspect.Parameter.KEYWORD_ONLY, default=getattr(defaults, name))
            for name, item in inspect.signature(kind).parameters.items()
        ]
    shown = [item.replace(annotation=_shown(item.annotation)) for item in parameters]
    return inspect.Signature(shown, return_annotation=_shown(own.return_annotation))


def _shown(annotation: Any) -> Any:
    return _Annotation(annotation) if isinstance(annotation, str) else annotation


def _unknown(name: str, names: list[str]) -> str:
    nearest = difflib.get_close_matches(name, names, 1)
    return f"unknown option {name}" + (f": did you mean {nearest[0]}?" if nearest else "")
