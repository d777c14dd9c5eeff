"""Which form is recommended, in words: never more than the measurements show."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from localq.measure.page.measurements import join
from localq.measure.page.recommendation import recommend
from localq.measure.quality.nearness import LARGEST_NOISE_FLOOR
from localq.measure.speed.results import BenchReport, BenchSettings, BenchTest, Comparison, FormResult, Interval
from tests.measure.page.pages import FAST, FASTEST, SLOW, measurements, qualities, speeds
from tests.measure.speed.bench_reports import MACHINE

A, B, C = "toy:gguf-a", "toy:gguf-b", "toy:gguf-c"
GB = 10**9


def test_a_form_that_is_faster_and_nearer_is_recommended_with_the_numbers() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.034}))
    assert told == (
        "Take gguf-a: it generates 1.25 times as fast as gguf-b (tg16: 1.23 to 1.27), reads prompts 1.25 times as fast "
        "as gguf-b (pp64: 1.23 to 1.27) and is nearer to the original (mean KL divergence 0.012 against 0.034)."
    )


def test_the_order_of_the_forms_changes_nothing() -> None:
    one = recommend(measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.034}))
    assert one == recommend(measurements({B: SLOW, A: FAST}, {B: 0.034, A: 0.012}))


def test_a_form_that_is_faster_but_not_shown_to_be_nearer_is_recommended_and_that_is_said() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.013}))
    assert told.startswith("Take gguf-a: it generates 1.25 times as fast as gguf-b")
    assert told.endswith("; no difference was shown in nearness to the original.")


def test_a_smaller_form_that_is_slower_and_farther_is_named_as_the_one_reason_against() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.034}, {A: 2 * GB, B: GB}))
    assert told.startswith("Take gguf-a: ")
    assert told.endswith("; gguf-b is smaller (1.00 GB against 2.00 GB).")


def test_a_form_that_is_only_faster_and_larger_is_a_trade() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.013}, {A: 2 * GB, B: GB}))
    assert told.startswith("gguf-a generates 1.25 times as fast as gguf-b")
    assert "; gguf-b is smaller (1.00 GB against 2.00 GB); no difference was shown in nearness to the original" in told
    assert told.endswith(": the data don't name one for all.")


def test_speed_against_quality_is_a_trade() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, {A: 0.034, B: 0.012}))
    assert told == (
        "gguf-a generates 1.25 times as fast as gguf-b (tg16: 1.23 to 1.27) and reads prompts 1.25 times as fast as "
        "gguf-b (pp64: 1.23 to 1.27); gguf-b is nearer to the original (mean KL divergence 0.012 against 0.034): the "
        "data don't name one for all."
    )


def test_generation_against_prompt_speed_is_a_trade() -> None:
    found = measurements({A: FAST, B: SLOW}, {A: 0.012, B: 0.034})
    prompt, generation = found.bench.settings.tests
    comparisons = (
        Comparison(prompt, B, A, Interval(2.0, 1.9, 2.1), differs=True),
        Comparison(generation, A, B, Interval(1.25, 1.2, 1.3), differs=True),
    )
    bench = _with_medians(found.bench, {A: 50.0, B: 100.0}, lambda test: test.prompt_tokens > 0)
    told = recommend(replace(found, bench=replace(bench, comparisons=comparisons)))
    assert "gguf-b reads prompts 2.00 times as fast as gguf-a (pp64: 1.90 to 2.10)" in told
    assert not told.startswith("Take")


def test_without_a_shown_difference_the_smaller_size_is_all_that_is_said() -> None:
    told = recommend(measurements({A: SLOW, B: SLOW}, {A: 0.012, B: 0.013}, {A: GB, B: 2 * GB}))
    assert told == (
        "No difference was shown between gguf-a and gguf-b in generation speed, prompt speed or nearness to the "
        "original; gguf-a is smaller (1.00 GB against 2.00 GB)."
    )


def test_a_size_that_differs_by_next_to_nothing_is_not_told() -> None:
    told = recommend(measurements({A: SLOW, B: SLOW}, {A: 0.012, B: 0.013}, {A: GB, B: GB + 10**7}))
    assert told.endswith("or nearness to the original.")


def test_of_many_forms_the_leader_is_compared_with_the_next() -> None:
    told = recommend(measurements({A: FASTEST, B: FAST, C: SLOW}, {A: 0.01, B: 0.02, C: 0.04}))
    assert told.startswith("Take gguf-a: it generates fastest, 1.60 times as fast as the next, gguf-b (tg16: ")
    assert "is the nearest to the original (mean KL divergence 0.01; the next, gguf-b, has 0.02)." in told


def test_a_form_that_another_beats_in_all_that_differs_is_left_out_of_the_trade() -> None:
    told = recommend(measurements({A: FASTEST, B: SLOW, C: FAST}, {A: 0.02, B: 0.01, C: 0.04}))
    assert told.startswith("Between gguf-a and gguf-b, gguf-a generates 2.00 times as fast as gguf-b")
    assert told.endswith("the data don't name one for all; no reason was measured to take gguf-c.")


def test_a_form_that_beats_each_other_one_in_something_else_is_recommended_form_by_form() -> None:
    told = recommend(measurements({A: FAST, B: SLOW, C: [12.3, 12.5, 12.7]}, {A: 0.01, B: 0.011, C: 0.04}))
    assert told.startswith("Take gguf-a: it generates 1.25 times as fast as gguf-b (tg16: 1.23 to 1.27) and ")
    assert "against gguf-c it is nearer to the original (mean KL divergence 0.01 against 0.04)" in told
    assert "which form is ahead of all others in generation speed" in told


def test_many_forms_without_a_leader_are_not_said_to_be_equal() -> None:
    rates = {A: [10.0, 11.0, 12.0], B: [11.0, 12.0, 13.0], C: [12.5, 13.0, 14.0]}
    told = recommend(measurements(rates, {A: 0.0100, B: 0.0101, C: 0.0102}, {A: GB, B: 2 * GB, C: 3 * GB}))
    assert told.startswith(
        "No form of gguf-a, gguf-b and gguf-c is shown to be ahead of all others in generation speed"
    )
    assert told.endswith("gguf-a is the smallest (1.00 GB; the next, gguf-b, has 2.00 GB).")


def test_a_test_in_which_another_form_leads_forbids_a_recommendation() -> None:
    settings = BenchSettings((64,), (16,), (0, 512), repetitions=3, context_length=1000)
    bench = speeds({A: FAST, B: SLOW}, settings=settings)
    deep = BenchTest(generated_tokens=16, depth_tokens=512)
    turned = [replace(item, faster=B, slower=A) if item.test == deep else item for item in bench.comparisons]
    bench = _with_medians(bench, {A: 8.0, B: 10.0}, lambda test: test == deep)
    told = recommend(join(replace(bench, comparisons=tuple(turned)), qualities({A: 0.01, B: 0.02})))
    assert not told.startswith("Take")
    assert "gguf-b generates 1.25 times as fast as gguf-a (tg16 @ d512: 1.23 to 1.27)" in told


def test_one_form_alone_gets_no_recommendation() -> None:
    assert recommend(measurements({A: FAST}, None)) == (
        "There is nothing to choose between: gguf-a alone was measured."
    )


def test_the_reference_and_the_noise_floor_are_no_choice() -> None:
    rates = {"toy:gguf-f32": SLOW, "toy:mlx-f32": SLOW, A: FAST}
    divergences = {"toy:gguf-f32": 0.0, "toy:mlx-f32": 1e-9, A: 0.1}
    told = recommend(join(speeds(rates), qualities(divergences, floor=1e-9)))
    assert told == "There is nothing to choose between: gguf-a alone was measured beside what is not quantized."


def test_without_an_evaluation_speed_alone_is_told() -> None:
    told = recommend(measurements({A: FAST, B: SLOW}, None, {A: GB, B: 2 * GB}))
    assert told.startswith("Speed alone was measured: gguf-a generates 1.25 times as fast as gguf-b")
    assert "original" not in told and "Take" not in told and "smaller" not in told


def test_without_an_evaluation_equal_speeds_are_said_to_show_no_difference() -> None:
    assert recommend(measurements({A: SLOW, B: SLOW}, None)) == (
        "Speed alone was measured: no difference was shown between gguf-a and gguf-b in generation speed or prompt "
        "speed."
    )


def test_one_window_says_nothing_of_quality() -> None:
    found = join(speeds({A: FAST, B: SLOW}), qualities({A: 0.01, B: 0.04}, windows=1))
    assert recommend(found).startswith("One window of text does not tell which form is nearer to the original: gguf-a ")


def test_a_form_that_was_not_evaluated_leaves_speed_alone() -> None:
    found = join(speeds({A: FAST, B: SLOW}), qualities({A: 0.01, C: 0.04}))
    assert recommend(found).startswith("How near gguf-b is to the original was not measured: gguf-a generates")


def test_engines_that_disagree_unquantized_leave_speed_alone() -> None:
    names = ("toy:gguf-q4_0", "toy:mlx-4bit")
    bench = speeds(dict(zip(names, (FAST, SLOW), strict=True)))
    divergences = dict(zip(names, (0.01, 0.04), strict=True))
    disagree = join(bench, qualities(divergences, floor=2 * LARGEST_NOISE_FLOOR))
    assert recommend(disagree).startswith("The engines disagree on this model even unquantized")
    agree = join(bench, qualities(divergences, floor=LARGEST_NOISE_FLOOR / 2))
    assert recommend(agree).startswith("Take gguf-q4_0: ")


def test_a_busy_machine_gets_no_recommendation() -> None:
    busy = replace(MACHINE, busy=True, busy_cores=3.2)
    told = recommend(join(speeds({A: FAST, B: SLOW}, machine=busy), qualities({A: 0.01, B: 0.04})))
    assert told == (
        "The data don't say which form to take: other work kept 3.2 cores busy; close it and measure again."
    )


def test_rates_that_fall_by_much_get_no_recommendation() -> None:
    settings = BenchSettings((64,), (16,), (0,), repetitions=6, context_length=65)
    falling = [10.0, 9.7, 9.4, 9.0, 8.7, 8.3]
    bench = speeds({A: [2 * rate for rate in falling], B: falling}, settings=settings)
    told = recommend(join(bench, qualities({A: 0.01, B: 0.04})))
    assert told.startswith("The data don't say which form to take: rates fell by 1")
    steady = speeds({A: [20.0] * 6, B: [10.0] * 6}, settings=settings)
    assert recommend(join(steady, qualities({A: 0.01, B: 0.04}))).startswith("Take gguf-a")


def test_one_repetition_gets_no_recommendation() -> None:
    settings = BenchSettings((64,), (16,), (0,), repetitions=1, context_length=65)
    bench = replace(speeds({A: [20.0], B: [10.0]}, settings=settings), comparisons=())
    assert "one repetition does not tell" in recommend(join(bench, qualities({A: 0.01, B: 0.04})))


def test_a_quantized_reference_is_not_called_the_original() -> None:
    found = join(speeds({A: FAST, B: SLOW}), qualities({A: 0.01, B: 0.04}, reference="gguf-q8_0"))
    assert "is nearer to gguf-q8_0 (" in recommend(found)


def test_forms_of_several_models_go_by_their_whole_names() -> None:
    assert "one:gguf-a generates" in recommend(measurements({"one:gguf-a": FAST, "two:gguf-a": SLOW}, None))


def _with_medians(
    bench: BenchReport, medians: Mapping[str, float], is_meant: Callable[[BenchTest], bool]
) -> BenchReport:
    """Other medians in some of the tests."""

    def turned(result: FormResult) -> FormResult:
        tests = [
            replace(item, tokens_per_second=replace(item.tokens_per_second, median=medians[result.form.name]))
            if is_meant(item.test)
            else item
            for item in result.tests
        ]
        return replace(result, tests=tuple(tests))

    return replace(bench, results=tuple(map(turned, bench.results)))
