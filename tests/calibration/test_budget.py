"""The choice of types under a budget, against all combinations."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field

import pytest

from localq.calibration.budget import Candidate, choose, hedged_damages, predicted_damages


def random_candidates(
    generator: random.Random, tensors: int, types: int, unit_bytes: int
) -> dict[str, list[Candidate]]:
    found = {}
    for number in range(tensors):
        size = generator.randrange(1, 50) * unit_bytes
        sensitivity = 10 ** generator.uniform(-4, 0)
        bits = generator.sample(range(2, 17), types)
        found[f"tensor {number}"] = [
            Candidate(f"{bit} bits", size * bit, sensitivity * 4.0**-bit * generator.uniform(0.7, 1.3)) for bit in bits
        ]
    return found


def bounds(candidates: dict[str, list[Candidate]]) -> tuple[int, int]:
    sizes = [[option.nbytes for option in options] for options in candidates.values()]
    return sum(map(min, sizes)), sum(map(max, sizes))


def total_bytes(chosen: dict[str, Candidate]) -> int:
    return sum(option.nbytes for option in chosen.values())


def total_damage(chosen: dict[str, Candidate]) -> float:
    return sum(option.damage for option in chosen.values())


def least_damage(candidates: dict[str, list[Candidate]], budget_bytes: int) -> float:
    """By trying all combinations."""
    combinations = itertools.product(*candidates.values())
    return min(
        sum(option.damage for option in options)
        for options in combinations
        if sum(option.nbytes for option in options) <= budget_bytes
    )


def test_the_choice_is_the_best_of_all_combinations() -> None:
    generator = random.Random(0)
    for unit_bytes in (1, 32, 4096, 1 << 20):
        for _ in range(40):
            candidates = random_candidates(generator, 4, 5, unit_bytes)
            least, most = bounds(candidates)
            budget_bytes = generator.randint(least, most)
            chosen = choose(candidates, budget_bytes)
            assert chosen is not None and list(chosen) == list(candidates)
            assert total_bytes(chosen) <= budget_bytes
            # Not above by more than rounding; below it only by the order of a sum.
            best = least_damage(candidates, budget_bytes)
            assert best * (1 - 1e-9) <= total_damage(chosen) <= best * 1.001


def test_a_large_model_comes_within_a_thousandth_of_its_budget_and_never_above() -> None:
    generator = random.Random(1)
    candidates = random_candidates(generator, 200, 12, 1 << 20)
    least, most = bounds(candidates)
    for share in (0.05, 0.3, 0.6, 0.9):
        budget_bytes = int(least + share * (most - least))
        chosen = choose(candidates, budget_bytes)
        assert chosen is not None
        assert 0.999 * budget_bytes < total_bytes(chosen) <= budget_bytes


def test_below_the_smallest_types_there_is_no_choice_and_at_them_there_is_one() -> None:
    candidates = random_candidates(random.Random(2), 6, 4, 32)
    least, most = bounds(candidates)
    assert choose(candidates, least - 1) is None
    smallest = choose(candidates, least)
    assert smallest is not None and total_bytes(smallest) == least
    largest = choose(candidates, 10 * most)
    assert largest is not None
    assert total_damage(largest) == sum(min(o.damage for o in options) for options in candidates.values())


def test_a_type_that_is_larger_and_no_better_is_never_taken() -> None:
    options = [Candidate("small", 10, 1.0), Candidate("large and worse", 20, 2.0), Candidate("as good", 30, 1.0)]
    chosen = choose({"tensor": options}, 100)
    assert chosen == {"tensor": options[0]}


def test_without_tensors_there_is_nothing_to_choose() -> None:
    assert choose({}, 0) == {}
    assert choose({}, -1) is None


@dataclass(frozen=True)
class Measured:
    sensitivity: dict[str, float] = field(default_factory=dict)
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def test_the_damage_is_sensitivity_times_error() -> None:
    measured = Measured({"a": 2.0, "b": 0.5}, {"q2_K": {"a": 3.0, "b": 8.0}, "q8_0": {"a": 0.25}})
    assert predicted_damages(measured) == {"q2_K": {"a": 6.0, "b": 4.0}, "q8_0": {"a": 0.5}}


def test_a_sensitivity_that_is_lost_in_rounding_or_not_measured_is_replaced() -> None:
    errors = {"q2_K": {"a": 3.0, "b": 8.0, "lost": 5.0, "unmeasured": 2.0}, "q4_K": {"lost": 1.0, "unmeasured": 0.5}}
    damages = predicted_damages(Measured({"a": 2.0, "b": 0.5, "lost": 0.0}, errors))
    assert damages["q2_K"]["unmeasured"] == 5.0  # the median of 6 and 4
    assert damages["q4_K"]["unmeasured"] == 1.25
    assert 0 < damages["q4_K"]["lost"] < damages["q2_K"]["lost"] < 0.001


def test_the_choice_moves_sensitivities_towards_their_mean_and_keeps_their_order() -> None:
    measured = Measured({"a": 16.0, "b": 1.0}, {"q2_K": {"a": 1.0, "b": 1.0}, "q8_0": {"a": 0.5, "b": 0.0}})
    hedged = hedged_damages(measured)
    assert hedged["q2_K"]["a"] == pytest.approx(4.0 * 4.0**0.85)
    assert hedged["q2_K"]["b"] == pytest.approx(4.0 * 0.25**0.85)
    assert hedged["q8_0"] == {"a": pytest.approx(hedged["q2_K"]["a"] / 2), "b": 0.0}
