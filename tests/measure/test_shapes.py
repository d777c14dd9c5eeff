"""The table of shapes, against what the models' pages say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from localq.errors import OptionError
from localq.families.config import parse_config
from localq.families.table import family_of
from localq.measure import shapes
from localq.measure.shapes import shape_config

PARAMETERS = {
    "tinyllama-1.1b": 1.100e9,
    "llama-2-7b": 6.738e9,
    "llama-2-13b": 13.02e9,
    "llama-2-70b": 68.98e9,
    "llama-3-8b": 8.030e9,
    "llama-3-70b": 70.55e9,
    "llama-3.1-8b": 8.030e9,
    "llama-3.1-70b": 70.55e9,
    "llama-3.1-405b": 405.9e9,
    "llama-3.2-1b": 1.236e9,
    "llama-3.2-3b": 3.213e9,
    "llama-3.3-70b": 70.55e9,
    "phi-1.5": 1.418e9,
    "phi-2": 2.780e9,
    "phi-3-mini-4k": 3.821e9,
    "phi-3-mini-128k": 3.821e9,
    "phi-3-medium-4k": 13.96e9,
    "phi-3-medium-128k": 13.96e9,
    "phi-3.5-mini": 3.821e9,
    "phi-3.5-moe": 41.87e9,
    "phi-mini-moe": 7.65e9,
    "phi-4": 14.66e9,
    "phi-4-mini": 3.836e9,
}
"""As the hub shows them."""
NAMES = tuple(json.loads(Path(shapes.__file__).with_suffix(".json").read_text(encoding="utf-8")))


def test_every_shape_has_a_public_number_of_parameters() -> None:
    assert set(NAMES) == set(PARAMETERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_shape_has_the_parameters_of_its_model(name: str) -> None:
    config = shape_config(name)
    layouts = family_of(config).tensors(parse_config(config))
    parameters = sum(math.prod(layout.shape) for layout in layouts)
    assert parameters == pytest.approx(PARAMETERS[name], rel=4e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_shape_is_one_that_localq_converts(name: str) -> None:
    config = shape_config(name)
    family_of(config).check(parse_config(config))


def test_the_made_up_factors_of_longrope_are_as_many_as_the_head_has_rotated_pairs() -> None:
    scaling = shape_config("phi-4-mini")["rope_scaling"]
    assert scaling == {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [1.0] * 48}
    assert len(shape_config("phi-3.5-moe")["rope_scaling"]["long_factor"]) == 64


def test_a_name_may_be_written_in_any_letter_case() -> None:
    assert shape_config("Phi-4-Mini") == shape_config("phi-4-mini")


def test_who_changes_a_config_changes_no_later_one() -> None:
    shape_config("phi-2")["hidden_size"] = 1
    assert shape_config("phi-2")["hidden_size"] == 2560


def test_an_unknown_name_is_told_all_names_the_nearest_first() -> None:
    with pytest.raises(OptionError, match="no shape 'phi4-mini'") as caught:
        shape_config("phi4-mini")
    names = caught.value.hint.removeprefix("it knows: ").split(", ")
    assert names[0] == "phi-4-mini" and set(names) == set(NAMES)
