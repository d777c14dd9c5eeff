"""Every option at its limits, just outside them, and of a wrong kind."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from localq.errors import LocalqError, OptionError
from localq.options import GenerationOptions, LoadOptions

NAN, INFINITE = math.nan, math.inf
ACCEPTED: list[tuple[type, str, Any]] = [
    (GenerationOptions, "max_tokens", 1),
    (GenerationOptions, "max_tokens", np.int64(7)),
    (GenerationOptions, "temperature", 0),
    (GenerationOptions, "temperature", 100.0),
    (GenerationOptions, "temperature", np.float32(0.5)),
    (GenerationOptions, "top_k", 0),
    (GenerationOptions, "top_p", 1),
    (GenerationOptions, "top_p", 1e-9),
    (GenerationOptions, "min_p", 0),
    (GenerationOptions, "min_p", 1),
    (GenerationOptions, "repeat_penalty", 1e-3),
    (GenerationOptions, "seed", None),
    (GenerationOptions, "seed", 0),
    (GenerationOptions, "seed", 2**32 - 2),
    (GenerationOptions, "stop", ()),
    (GenerationOptions, "stop", ("a", "\n\n")),
    (LoadOptions, "context_length", None),
    (LoadOptions, "context_length", 1),
    (LoadOptions, "threads", None),
    (LoadOptions, "threads", 1),
]
REFUSED: list[tuple[type, str, Any]] = [
    *((GenerationOptions, "max_tokens", value) for value in (0, -1, 1.5, NAN, "5", None, True)),
    *((GenerationOptions, "temperature", value) for value in (-0.1, NAN, INFINITE, -INFINITE, "0.7", None, False)),
    *((GenerationOptions, "top_k", value) for value in (-1, 2.5, NAN, INFINITE, "40", None)),
    *((GenerationOptions, "top_p", value) for value in (0, -0.5, 1.0001, NAN, "1", None)),
    *((GenerationOptions, "min_p", value) for value in (-0.1, 1.1, NAN, "0", None)),
    *((GenerationOptions, "repeat_penalty", value) for value in (0, -1, NAN, INFINITE, "1.1", None)),
    *((GenerationOptions, "seed", value) for value in (-1, 2**32 - 1, 2**64, 1.0, NAN, "1", True)),
    *((GenerationOptions, "stop", value) for value in (("",), ("a", ""), "end", ("a", 5), ("a", None), None, 5)),
    *((LoadOptions, "context_length", value) for value in (0, -1, 512.0, NAN, "512", True)),
    *((LoadOptions, "threads", value) for value in (0, -4, 2.0, "4", True)),
]


@pytest.mark.parametrize(("options", "name", "value"), ACCEPTED)
def test_values_up_to_the_limit_are_taken(options: type, name: str, value: Any) -> None:
    assert getattr(options(**{name: value}), name) == value


@pytest.mark.parametrize(("options", "name", "value"), REFUSED)
def test_values_beyond_the_limit_or_of_a_wrong_kind_are_refused_by_name(options: type, name: str, value: Any) -> None:
    with pytest.raises(OptionError) as caught:
        options(**{name: value})
    assert caught.value.message.startswith(f"{name} is {value!r}; expected ")
    assert isinstance(caught.value, ValueError) and isinstance(caught.value, LocalqError)


@pytest.mark.parametrize("options", [GenerationOptions, LoadOptions])
def test_options_do_not_change_and_defaults_are_valid(options: type) -> None:
    default = options()
    assert default == options()
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(default, dataclasses.fields(options)[0].name, 1)


def test_the_default_is_greedy() -> None:
    assert GenerationOptions().temperature == 0


def test_changing_a_copy_checks_it_again() -> None:
    with pytest.raises(OptionError):
        dataclasses.replace(GenerationOptions(), top_p=2.0)


def test_stop_strings_may_come_as_a_list_and_are_kept_as_a_tuple() -> None:
    given = ["a", "b"]
    options = GenerationOptions(stop=given)  # type: ignore[arg-type]
    given.append("c")
    assert options.stop == ("a", "b")
