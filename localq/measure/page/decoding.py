"""JSON values as dataclasses, checked field by field. Knows no reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from localq.errors import OptionError

_LARGEST = 2**63
"""Of numbers: more bytes, seconds or tokens there are none."""

_Data = TypeVar("_Data")


def decode(kind: type[_Data], value: object, where: str) -> _Data:
    """A dataclass from an object that has its fields as keys; other keys mean nothing.

    Fields are texts, numbers, truth values, paths, literals, other dataclasses, tuples of them, mappings from
    texts to them, or any of these or null. Raises OptionError that names the place, which begins with `where`.
    """
    decoded: _Data = _decode(kind, value, where)
    return decoded


def items_at(value: object, key: str, where: str) -> list[Any]:
    """The list under a key of an object. Raises OptionError."""
    found = value_at(value, key, where)
    if not isinstance(found, list):
        raise _unexpected(found, "a list", f"{where}.{key}")
    return found


def value_at(value: object, key: str, where: str) -> Any:
    """What an object has under a key. Raises OptionError."""
    if not isinstance(value, dict):
        raise _unexpected(value, "an object", where)
    if key not in value:
        raise OptionError(f"{where} has no {key!r}")
    return value[key]


def _decode(kind: Any, value: object, where: str) -> Any:
    origin = get_origin(kind)
    if origin in _COMPOSED:
        return _COMPOSED[origin](get_args(kind), value, where)
    if is_dataclass(kind):
        return _dataclass(kind, value, where)
    accepted, expected = _SIMPLE[kind]
    # True is an int to Python.
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise _unexpected(value, expected, where)
    if isinstance(value, int | float) and not abs(value) <= _LARGEST:  # nor is what is not a number
        raise _unexpected(value, expected, where)
    return kind(value)


def _dataclass(kind: Any, value: object, where: str) -> Any:
    kinds = get_type_hints(kind)
    found = {
        field.name: _decode(kinds[field.name], value_at(value, field.name, where), f"{where}.{field.name}")
        for field in fields(kind)
        if field.default is MISSING or (isinstance(value, dict) and field.name in value)
    }
    try:
        return kind(**found)
    except OptionError as error:  # a dataclass that knows which values make sense
        raise OptionError(f"{where}: {error.message}") from error


def _optional(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    """Of a union, which is one of null and something else."""
    if value is None and NoneType in kinds:
        return None
    (kind,) = (kind for kind in kinds if kind is not NoneType)
    return _decode(kind, value, where)


def _tuple(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    is_open = kinds[-1] is Ellipsis
    if not isinstance(value, list | tuple) or not (is_open or len(value) == len(kinds)):
        raise _unexpected(value, "a list" if is_open else f"a list of {len(kinds)}", where)
    each = [kinds[0]] * len(value) if is_open else kinds
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(each, value, strict=True)))


def _mapping(kinds: tuple[Any, ...], value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise _unexpected(value, "an object", where)
    return {str(key): _decode(kinds[1], item, f"{where}.{key}") for key, item in value.items()}


def _literal(choices: tuple[Any, ...], value: object, where: str) -> Any:
    if value not in choices:
        raise _unexpected(value, " or ".join(map(repr, choices)), where)
    return value


def _unexpected(value: object, expected: str, where: str) -> OptionError:
    shown = repr(value)
    return OptionError(f"{where} is {shown if len(shown) <= 40 else shown[:40] + '...'}; expected {expected}")


_COMPOSED: dict[Any, Callable[[tuple[Any, ...], object, str], Any]] = {
    Union: _optional,
    UnionType: _optional,
    tuple: _tuple,
    dict: _mapping,
    Literal: _literal,
}
_SIMPLE: dict[Any, tuple[Any, str]] = {
    str: (str, "a text"),
    bool: (bool, "true or false"),
    int: (int, "a whole number"),
    float: (int | float, "a number"),
    Path: (str | Path, "a text"),
}
