from __future__ import annotations

from dataclasses import replace

from localq.measure.speed.verdicts import comparison_lines
from tests.measure.speed.bench_reports import SETTINGS, form_result, report

_SLOW, _FAST, _ALSO_FAST = [10.0, 10.5, 11.0], [20.0, 21.0, 22.0], [20.5, 21.5, 22.5]


def test_the_faster_one_of_two_is_named_with_how_much_faster_it_is() -> None:
    lines = comparison_lines(report([form_result("toy:mlx-4bit", _SLOW), form_result("toy:gguf-q4_k_m", _FAST)]))
    assert lines == [
        "pp64: toy:gguf-q4_k_m is 2.00 times as fast as toy:mlx-4bit (1.82 to 2.20)",
        "tg16: toy:gguf-q4_k_m is 2.00 times as fast as toy:mlx-4bit (1.82 to 2.20)",
    ]


def test_no_winner_is_named_where_no_difference_is_shown() -> None:
    lines = comparison_lines(report([form_result("a:mlx-4bit", _FAST), form_result("b:mlx-4bit", _ALSO_FAST)]))
    assert lines[1] == "tg16: no difference shown between b:mlx-4bit and a:mlx-4bit (0.93 to 1.12)"
    assert not any("fast" in line for line in lines)


def test_three_forms_are_compared_two_by_two() -> None:
    three = [form_result(f"{name}:mlx-4bit", rates) for name, rates in (("a", _SLOW), ("b", _FAST), ("c", _ALSO_FAST))]
    lines = comparison_lines(report(three))
    assert [line.partition(":")[0] for line in lines] == ["pp64"] * 3 + ["tg16"] * 3


def test_of_four_forms_the_one_that_beats_all_others_is_named() -> None:
    slow = [form_result(f"{name}:mlx-4bit", _SLOW) for name in "abc"]
    for place in range(4):
        forms = [*slow[:place], form_result("d:mlx-4bit", _FAST), *slow[place:]]
        assert comparison_lines(report(forms))[1] == (
            "tg16: d:mlx-4bit is the fastest, 2.00 times as fast as the next, a:mlx-4bit (1.82 to 2.20)"
        )


def test_of_four_forms_all_that_may_be_the_fastest_are_named() -> None:
    rates = {"a": _SLOW, "b": _FAST, "c": _ALSO_FAST, "d": _FAST}
    lines = comparison_lines(report([form_result(f"{name}:mlx-4bit", each) for name, each in rates.items()]))
    assert lines[1] == "tg16: which form is the fastest is not shown; it is c:mlx-4bit, b:mlx-4bit or d:mlx-4bit"


def test_a_form_that_nothing_was_compared_with_may_be_the_fastest() -> None:
    rates = {"a": _SLOW, "b": _FAST, "c": _SLOW, "d": _SLOW}
    whole = report([form_result(f"{name}:mlx-4bit", each) for name, each in rates.items()])
    fewer = tuple(item for item in whole.comparisons if item.slower != "d:mlx-4bit")
    lines = comparison_lines(replace(whole, comparisons=fewer))
    assert lines[1] == "tg16: which form is the fastest is not shown; it is b:mlx-4bit or d:mlx-4bit"


def test_a_form_alone_is_compared_with_nothing() -> None:
    assert comparison_lines(report([form_result("a:mlx-4bit", _SLOW)], SETTINGS)) == []
