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
    (GenerationOptions, "repeat_penalty", 1e6),
    (GenerationOptions, "presence_penalty", -1000),
    (GenerationOptions, "frequency_penalty", np.float32(0.5)),
    (GenerationOptions, "logit_bias", {}),
    (GenerationOptions, "logit_bias", {0: 1, np.int64(7): -1000.0, 10**9: -INFINITE}),
    (GenerationOptions, "logprobs", None),
    (GenerationOptions, "logprobs", 0),
    (GenerationOptions, "seed", None),
    (GenerationOptions, "seed", 0),
    (GenerationOptions, "seed", 2**32 - 2),
    (GenerationOptions, "stop", ()),
    (GenerationOptions, "stop", ("a", "\n\n")),
    (LoadOptions, "context_length", None),
    (LoadOptions, "context_length", 1),
    (LoadOptions, "threads", None),
    (LoadOptions, "threads", 1),
    (LoadOptions, "threads", 512),
    (LoadOptions, "sequences", 256),
    (LoadOptions, "reproducible", True),
]
REFUSED: list[tuple[type, str, Any]] = [
    *((GenerationOptions, "max_tokens", value) for value in (0, -1, 1.5, NAN, "5", None, True)),
    *((GenerationOptions, "temperature", value) for value in (-0.1, NAN, INFINITE, -INFINITE, "0.7", None, False)),
    *((GenerationOptions, "top_k", value) for value in (-1, 2.5, NAN, INFINITE, "40", None)),
    *((GenerationOptions, "top_p", value) for value in (0, -0.5, 1.0001, NAN, "1", None)),
    *((GenerationOptions, "min_p", value) for value in (-0.1, 1.1, NAN, "0", None)),
    *((GenerationOptions, "repeat_penalty", value) for value in (0, -1, 1e-4, 1e7, NAN, INFINITE, "1.1", None)),
    *((GenerationOptions, "presence_penalty", value) for value in (-1001, 1e6, NAN, INFINITE, "1", None, True)),
    *((GenerationOptions, "frequency_penalty", value) for value in (-1001, 1e6, NAN, INFINITE, "1", None)),
    *((GenerationOptions, "logit_bias", {token: 1.0}) for token in (-1, 1.0, "5", True, None)),
    *((GenerationOptions, "logit_bias", {5: bias}) for bias in (INFINITE, 1001.0, "1", None, True)),
    *((GenerationOptions, "logit_bias", value) for value in (None, [(5, 1.0)], "5=1")),
    *((GenerationOptions, "logprobs", value) for value in (-1, 1.0, "5", True)),
    *((GenerationOptions, "seed", value) for value in (-1, 2**32 - 1, 2**64, 1.0, NAN, "1", True)),
    *((GenerationOptions, "stop", value) for value in (("",), ("a", ""), "end", ("a", 5), ("a", None), None, 5)),
    *((LoadOptions, "sequences", value) for value in (0, 257, 1.0, None, True)),
    *((LoadOptions, "reproducible", value) for value in (1, None, "yes")),
    *((LoadOptions, "context_length", value) for value in (0, -1, 512.0, NAN, "512", True)),
    *((LoadOptions, "threads", value) for value in (0, -4, 513, 2.0, "4", True)),
]


@pytest.mark.parametrize(("options", "name", "value"), ACCEPTED)
def test_values_up_to_the_limit_are_accepted(options: type, name: str, value: Any) -> None:
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


def test_a_bias_that_is_changed_afterwards_changes_no_options_and_options_can_be_keys() -> None:
    given = {5: 1.0}
    options = GenerationOptions(logit_bias=given)
    given[6] = 2.0
    assert options.logit_bias == {5: 1.0}
    assert {options: 1}[GenerationOptions(logit_bias={5: 1.0})] == 1
    assert options != GenerationOptions(logit_bias={5: 1.5})
