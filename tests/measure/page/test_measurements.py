"""A bench and an evaluation, side by side."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localq.errors import OptionError
from localq.measure.page.measurements import join
from tests.measure.page.pages import FAST, SLOW, qualities, speeds
from tests.measure.speed.bench_reports import MACHINE

A, B, C = "toy:gguf-a", "toy:gguf-b", "toy:gguf-c"


def test_the_reference_is_first_and_what_was_measured_once_has_its_row() -> None:
    found = join(speeds({A: FAST, B: SLOW}), qualities({B: 0.1, C: 0.2}))
    known = [(row.form.recipe, row.speed is not None, row.quality is not None) for row in found.rows]
    assert known == [
        ("gguf-f32", False, True),
        ("gguf-a", True, False),
        ("gguf-b", True, True),
        ("gguf-c", False, True),
    ]


def test_a_reference_that_was_measured_too_has_one_row() -> None:
    name = "toy:gguf-f32"
    found = join(speeds({A: FAST, name: SLOW}), qualities({A: 0.1, name: 0.0}))
    assert [row.form.name for row in found.rows] == [name, A]
    assert found.rows[0].speed is not None and found.rows[0].quality is found.evaluation.reference  # type: ignore[union-attr]


def test_measurements_of_other_forms_are_refused() -> None:
    with pytest.raises(OptionError, match="toy:gguf-a against other:gguf-b"):
        join(speeds({A: FAST}), qualities({"other:gguf-b": 0.1}))


def test_a_form_that_was_made_again_in_between_is_refused() -> None:
    with pytest.raises(OptionError, match="toy:gguf-a had 7 bytes when it was measured and 8 when it was evaluated"):
        join(speeds({A: FAST}, {A: 7}), qualities({A: 0.1}, {A: 8}))


def test_two_forms_of_one_name_are_refused() -> None:
    bench = speeds({A: FAST})
    with pytest.raises(OptionError, match="2 forms are called toy:gguf-a"):
        join(replace(bench, results=bench.results * 2), None)


def test_other_machines_and_versions_are_warned_of() -> None:
    other = replace(MACHINE, cpu="Other CPU", versions={**MACHINE.versions, "mlx": "0.2"})
    evaluation = replace(qualities({A: 0.1}), machine=other)
    assert join(speeds({A: FAST}), evaluation).warnings == (
        "speed was measured on another machine (Test CPU) than quality (Other CPU)",
        "speed and quality were measured with different versions: mlx 0.1 and 0.2",
    )
    assert join(speeds({A: FAST}), qualities({A: 0.1})).warnings == ()


def test_sentences_call_forms_of_one_model_by_their_recipes() -> None:
    found = join(speeds({"toy:gguf": FAST, "toy:gguf-q8_0": SLOW}), None)
    assert found.relabelled("toy:gguf-q8_0 is slower than toy:gguf") == "gguf-q8_0 is slower than gguf"
    two = join(speeds({"toy:gguf": FAST, "my-toy:gguf": SLOW}), None)
    assert two.relabelled("toy:gguf, my-toy:gguf") == "toy:gguf, my-toy:gguf"


def test_warnings_say_which_measurement_they_are_of() -> None:
    bench = replace(speeds({A: FAST}), warnings=("rates fell",))
    evaluation = replace(qualities({A: 0.1}), warnings=("one window",))
    assert join(bench, evaluation).warnings == ("speed: rates fell", "quality: one window")
    assert join(bench, None).warnings == ("rates fell",)
