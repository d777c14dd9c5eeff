"""What is said of formats: never more than the measurements show."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.measure.reports import LARGEST_NOISE_FLOOR, BenchReport, EvalReport, SpeedComparison
from localq.measure.statistics import ratio_of_medians, summarize
from localq.measure.tables import labels
from localq.measure.verdict import NEGLIGIBLE_SIZE_RATIO, Pairs, beaters, judge, nearness_lines, speed_lines
from localq.tables import format_coarsely
from tests.measure.report_examples import (
    FAST,
    FASTEST,
    GB,
    MACHINE,
    SETTINGS,
    SLOW,
    bench_report,
    eval_report,
)

A, B, C, D = "toy:gguf-a", "toy:gguf-b", "toy:mlx-c", "toy:mlx-d"
ALSO_FAST = (12.3, 12.5, 12.7)


def said(
    rates: dict[str, tuple[float, ...]],
    divergences: dict[str, float] | None,
    sizes: dict[str, int] | None = None,
    floor: float | None = None,
) -> tuple[str, ...]:
    evaluation = eval_report(divergences, sizes, floor) if divergences else None
    return judged(bench_report(rates, sizes), evaluation)


def judged(bench: BenchReport, evaluation: EvalReport | None) -> tuple[str, ...]:
    forms = [*bench.results, *([evaluation.reference, *evaluation.results] if evaluation else [])]
    floor = [evaluation.noise_floor] if evaluation and evaluation.noise_floor else []
    names = labels([*forms, *floor])
    return judge(bench, evaluation, names).lines


def test_a_format_that_beats_all_others_is_to_be_taken() -> None:
    assert said({A: SLOW, B: FAST}, {A: 0.034, B: 0.012}, {A: 2 * GB, B: GB}) == (
        "Take gguf-b: it beats every other format.",
        "gguf-b: the fastest in generation, the fastest in prompt processing, the smallest, the nearest to gguf-f32; "
        "generation 12.50 t/s, prompt 125.0 t/s, 1.00 GB, mean KL 0.012",
        "gguf-a: beaten by gguf-b; generation 10.00 t/s, prompt 100.0 t/s, 2.00 GB, mean KL 0.034",
    )


def test_what_each_format_is_best_in_is_said_where_none_is_best_in_all() -> None:
    lines = said({A: FAST, B: SLOW, C: FASTEST}, {A: 0.02, B: 0.01, C: 0.05}, {A: 2 * GB, B: 3 * GB, C: 2 * GB})
    assert lines[0] == "No format is the best in everything: choose by what matters to you."
    assert [line.partition(";")[0] for line in lines[1:]] == [
        "mlx-c: the fastest in generation, the fastest in prompt processing, among the smallest",
        "gguf-a: among the smallest",
        "gguf-b: the nearest to gguf-f32",
    ]


def test_a_format_that_is_the_best_in_nothing_has_its_numbers_alone() -> None:
    sizes = {A: GB, B: 2 * GB, C: 3 * GB}
    lines = said({A: SLOW, B: FAST, C: FASTEST}, {A: 0.01, B: 0.02, C: 0.04}, sizes)
    assert lines[2] == "gguf-b: generation 12.50 t/s, prompt 125.0 t/s, 2.00 GB, mean KL 0.02"


def test_a_difference_that_is_not_shown_beats_nothing() -> None:
    lines = said({A: FAST, B: ALSO_FAST}, {A: 0.010, B: 0.011}, {A: GB, B: GB + 10**7})
    assert lines[0] == "No format is shown to be the best in anything."
    assert not any("beaten" in line or "fastest" in line for line in lines)


def test_without_quality_no_format_is_beaten() -> None:
    lines = said({A: FAST, B: SLOW}, None, {A: GB, B: 2 * GB})
    assert lines[0] == "Quality was not measured. Only speed and size are compared."
    assert lines[1].startswith("gguf-a: the fastest in generation, the fastest in prompt processing, the smallest;")
    assert not any("beat" in line for line in lines)
    assert said({A: FAST, B: FAST}, None)[0] == (
        "Quality was not measured. No format is shown to be the best in anything."
    )


@pytest.mark.parametrize(
    ("evaluation", "headline"),
    [
        (eval_report({A: 0.01, D: 0.04}), "The quality of mlx-c was not measured. Only speed"),
        (eval_report({A: 0.01, C: 0.04}, comparisons=()), "One window of text does not show which format is nearer"),
        (
            eval_report({A: 0.01, C: 0.04}, floor=2 * LARGEST_NOISE_FLOOR),
            "The engines disagree on this model even unquantized. Only speed",
        ),
    ],
)
def test_where_nearness_is_not_known_no_format_is_beaten(evaluation: EvalReport, headline: str) -> None:
    lines = judged(bench_report({A: FAST, C: SLOW}), evaluation)
    assert lines[0].startswith(headline)
    assert not any("beat" in line or "near" in line for line in lines[1:])


def test_engines_that_disagree_do_not_matter_to_formats_of_one_engine() -> None:
    assert said({A: FAST, B: SLOW}, {A: 0.01, B: 0.04}, floor=2 * LARGEST_NOISE_FLOOR)[0].startswith("Take gguf-a")


def test_a_busy_machine_or_one_repetition_gets_no_verdict() -> None:
    machine = MACHINE.model_copy(update={"busy": True, "busy_cores": 3.2})
    lines = judged(bench_report({A: FAST, B: SLOW}, machine=machine), eval_report({A: 0.01, B: 0.04}))
    assert lines == ("No verdict: other work kept 3.2 cores busy. Close it and measure again.",)
    bench = bench_report({A: (12.0,), B: (10.0,)}, settings=SETTINGS.model_copy(update={"repetitions": 1}))
    said = "No verdict: one repetition does not show how much speed varies. Measure with more."
    assert judged(bench, None) == (said,)


def test_a_partial_run_gets_a_verdict_with_a_doubt() -> None:
    lines = judged(bench_report({A: FAST, B: SLOW}, partial=True), eval_report({A: 0.01, B: 0.04}))
    assert lines[0] == (
        "Take gguf-a: it beats every other format. The run was stopped early: more repetitions may change this."
    )


def test_the_baseline_and_the_noise_floor_are_no_choice() -> None:
    rates = {A: FAST, "toy:gguf-f32": SLOW, "toy:mlx-f32": SLOW}
    assert said(rates, {A: 0.01}, floor=1e-6) == ("There is nothing to choose between: only gguf-a was measured.",)
    del rates[A]
    lines = said(rates, {A: 0.01}, floor=1e-6)
    assert lines == ("There is nothing to choose between: only what is not quantized was measured.",)


def test_where_each_format_is_beaten_all_are_kept() -> None:
    """A is faster than B, B is smaller than C, C is nearer than A; nothing else is shown."""
    sizes = {A: 1015 * 10**6, B: 10**9, C: 1025 * 10**6}
    rates = {A: (10.2, 10.3, 10.4), B: (9.9, 10.0, 10.1), C: (10.0, 10.15, 10.3)}
    lines = said(rates, {A: 0.019, B: 0.013, C: 0.009}, sizes)
    assert lines[0] == "No format is the best in everything: choose by what matters to you."
    assert [line.partition(";")[0] for line in lines[1:]] == [
        "gguf-a: among the fastest in generation, among the fastest in prompt processing",
        "mlx-c: among the nearest to gguf-f32",
        "gguf-b: among the smallest",
    ]


PAIRS = st.lists(st.frozensets(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd"))), max_size=4)


@settings(derandomize=True)
@given(PAIRS)
def test_beaten_is_what_another_is_better_than_in_something_and_worse_in_nothing(better: list[Pairs]) -> None:
    for one in "abcd":
        expected = set()
        for other in "abcd":
            wins = sum((other, one) in pairs for pairs in better)
            losses = sum((one, other) in pairs for pairs in better)
            if wins and not losses:
                expected.add(other)
        assert set(beaters(one, "abcd", better)) == expected


@settings(derandomize=True, max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4)), min_size=2, max_size=5))
def test_the_kept_formats_are_those_that_no_other_one_dominates(found: list[tuple[int, int, int]]) -> None:
    """Every step of speed, size and nearness is a difference that is shown."""
    names = [f"toy:gguf-{index}" for index in range(len(found))]
    figures = dict(zip(names, found, strict=True))
    rates = {name: (10.0 * speed, 10.0 * speed + 0.1, 10.0 * speed + 0.2) for name, (speed, _, _) in figures.items()}
    sizes = {name: size * GB for name, (_, size, _) in figures.items()}
    divergences = {name: 0.001 * 4**distance for name, (_, _, distance) in figures.items()}
    evaluation = eval_report(divergences, sizes)
    verdict = judge(bench_report(rates, sizes), evaluation, labels([*evaluation.results, evaluation.reference]))

    def dominates(one: tuple[int, int, int], other: tuple[int, int, int]) -> bool:
        ranks = [(one[0], other[0]), (-one[1], -other[1]), (-one[2], -other[2])]
        return all(x >= y for x, y in ranks) and any(x > y for x, y in ranks)

    kept = {name for name in names if not any(dominates(figures[other], figures[name]) for other in names)}
    assert {f"toy:{choice.name}" for choice in verdict.choices if choice.is_kept} == kept


def test_sizes_closer_than_two_percent_are_equal() -> None:
    for size, is_smallest in ((int(GB * NEGLIGIBLE_SIZE_RATIO), False), (int(GB * NEGLIGIBLE_SIZE_RATIO) + 2, True)):
        lines = said({A: FAST, B: FAST}, {A: 0.01, B: 0.01}, {A: GB, B: size})
        assert ("the smallest" in lines[1]) == is_smallest


def lines_of(rates: dict[str, tuple[float, ...]]) -> list[str]:
    report = bench_report(rates)
    return speed_lines(report, labels(report.results))


def test_two_or_three_formats_are_compared_in_pairs_with_the_ratio_of_the_medians() -> None:
    assert lines_of({A: SLOW, B: FASTEST}) == [
        "pp64: gguf-b is 2.00 times as fast as gguf-a (1.88 to 2.12, 95% interval)",
        "tg16: gguf-b is 2.00 times as fast as gguf-a (1.88 to 2.12, 95% interval)",
    ]
    assert lines_of({A: SLOW}) == []
    lines = lines_of({A: SLOW, B: FAST, C: ALSO_FAST})
    assert [line.partition(":")[0] for line in lines] == ["pp64"] * 3 + ["tg16"] * 3
    assert "tg16: no difference shown between gguf-b and mlx-c (0.98 to 1.02, 95% interval)" in lines


@settings(derandomize=True, deadline=None)
@given(st.lists(st.tuples(st.floats(1, 1e4), st.floats(1, 1e4)), min_size=3, max_size=9))
def test_the_ratio_in_words_is_that_of_the_medians_in_the_table(turns: list[tuple[float, float]]) -> None:
    one, other = zip(*turns, strict=True)
    forms = bench_report({A: one, B: other})
    medians = {A: summarize(one).median, B: summarize(other).median}
    faster, slower = sorted(medians, key=lambda name: -medians[name])
    samples = {A: one, B: other}
    ratio = ratio_of_medians(samples[faster], samples[slower])
    pair = SpeedComparison(test="tg16", faster=faster, slower=slower, ratio=ratio, differs=True)
    (line,) = speed_lines(forms.model_copy(update={"comparisons": (pair,)}), {A: "a", B: "b"})
    (times,) = re.findall(r"is ([\d.]+) times", line)
    assert times == format_coarsely(medians[faster] / medians[slower])


def test_of_four_formats_each_is_compared_with_the_next_slower_one() -> None:
    assert lines_of({A: SLOW, B: FASTEST, C: FAST, D: ALSO_FAST})[3:] == [
        "tg16: gguf-b is 1.60 times as fast as mlx-c (1.51 to 1.69, 95% interval)",
        "tg16: no difference shown between mlx-c and mlx-d (0.98 to 1.02, 95% interval)",
        "tg16: mlx-d is 1.25 times as fast as gguf-a (1.22 to 1.28, 95% interval)",
    ]


def test_each_format_is_compared_in_nearness_with_the_next_one() -> None:
    report = eval_report({A: 0.04, B: 0.01, C: 0.011})
    names = labels([*report.results, report.reference])
    assert nearness_lines(report, names) == [
        "no difference in nearness shown between gguf-b and mlx-c (0.0005 to 0.002 apart, 95% interval)",
        "mlx-c is nearer to gguf-f32 than gguf-a: mean KL 0.011 against 0.04 (0.0145 to 0.058 apart, 95% interval)",
    ]
    assert nearness_lines(report.model_copy(update={"comparisons": ()}), names) == []
