"""JSON values as dataclasses: what fits is taken, what doesn't is named with its place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from localq.errors import OptionError
from localq.measure.page.decoding import decode


@dataclass(frozen=True)
class Inner:
    count: int


@dataclass(frozen=True)
class Outer:
    name: str
    rate: float
    flag: bool
    path: Path
    kind: Literal["a", "b"] | None
    ends: tuple[float, float]
    inner: tuple[Inner, ...]
    versions: dict[str, str]
    extra: int | None = None


VALUE: dict[str, Any] = {
    "name": "x",
    "rate": 2,
    "flag": True,
    "path": "p",
    "kind": None,
    "ends": [1, 2.5],
    "inner": [{"count": 1}],
    "versions": {"a": "1"},
    "other": "ignored",
}


def test_every_field_is_taken_in_its_own_type() -> None:
    found = decode(Outer, VALUE, "it")
    assert found == Outer("x", 2.0, True, Path("p"), None, (1.0, 2.5), (Inner(1),), {"a": "1"})
    assert isinstance(found.rate, float)


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        ("name", 3, "it.name is 3; expected a text"),
        ("rate", "fast", "it.rate is 'fast'; expected a number"),
        ("rate", True, "it.rate is True; expected a number"),
        ("rate", float("nan"), "it.rate is nan; expected a number"),
        ("rate", float("inf"), "it.rate is inf; expected a number"),
        ("rate", 10**400, "it.rate is 1000"),
        ("rate", None, "it.rate is None"),
        ("flag", 1, "it.flag is 1; expected true or false"),
        ("kind", "c", "it.kind is 'c'; expected 'a' or 'b'"),
        ("kind", [], "it.kind is []; expected 'a' or 'b'"),
        ("ends", [1], "it.ends is [1]; expected a list of 2"),
        ("ends", "ab", "it.ends is 'ab'; expected a list of 2"),
        ("ends", [1, None], "it.ends[1] is None"),
        ("inner", [{"count": 1}, {}], "it.inner[1] has no 'count'"),
        ("inner", [{"count": 1.5}], "it.inner[0].count is 1.5; expected a whole number"),
        ("inner", [3], "it.inner[0] is 3; expected an object"),
        ("versions", ["a"], "it.versions is ['a']; expected an object"),
        ("versions", {"a": 1}, "it.versions.a is 1; expected a text"),
        ("extra", "x" * 1000, "it.extra is 'xxx"),
    ],
)
def test_what_does_not_fit_is_named_with_its_place(key: str, value: object, place: str) -> None:
    with pytest.raises(OptionError) as caught:
        decode(Outer, {**VALUE, key: value}, "it")
    assert caught.value.message.startswith(place)
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("key", [key for key in VALUE if key != "other"])
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(OptionError, match=f"it has no '{key}'"):
        decode(Outer, {name: value for name, value in VALUE.items() if name != key}, "it")
