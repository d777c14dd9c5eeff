"""Reports come back from JSON as they were; a file that is something else is refused in words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from localq.errors import OptionError
from localq.measure.page.content import page_of
from localq.measure.page.markdown import render_markdown
from localq.measure.page.measurements import join
from localq.measure.page.saved import bench_report_of, eval_report_of, load_bench, load_eval
from localq.measure.speed.results import BenchSettings
from tests.measure.page.pages import FAST, SLOW, qualities, speeds

Json = dict[str, Any]
SETTINGS = BenchSettings((64, 128), (16,), (0, 8), repetitions=3, context_length=200, kv_cache_type="q8_0")
BENCH = json.loads(json.dumps(speeds({"toy:gguf-a": FAST, "toy:mlx-4bit": SLOW}, settings=SETTINGS).to_json()))
EVAL = json.loads(json.dumps(qualities({"toy:gguf-a": 0.01, "toy:mlx-4bit": 0.04}, floor=1e-6).to_json()))


def test_a_bench_report_comes_back_as_it_was() -> None:
    assert json.loads(json.dumps(bench_report_of(BENCH).to_json())) == BENCH


@pytest.mark.parametrize("floor", [None, 1e-6])
def test_an_eval_report_comes_back_as_it_was(floor: float | None) -> None:
    value = qualities({"toy:gguf-a": 0.01, "toy:mlx-4bit": 0.04}, floor=floor).to_json()
    assert eval_report_of(json.loads(json.dumps(value))).to_json() == value


def test_a_file_brings_the_line_that_repeats_it(tmp_path: Path) -> None:
    bench, evaluation = tmp_path / "bench.json", tmp_path / "eval.json"
    bench.write_text(json.dumps({**BENCH, "command": "localq bench toy"}), encoding="utf-8")
    evaluation.write_text(json.dumps(EVAL), encoding="utf-8")
    assert load_bench(bench).command == "localq bench toy"
    assert load_eval(evaluation).command == ""


@pytest.mark.parametrize(
    ("verb", "text", "words"),
    [
        ("bench", json.dumps(EVAL), ["results[0] has no 'tests'"]),
        ("eval", json.dumps(BENCH), ["report has no 'reference'"]),
        ("bench", "[]", ["report is []; expected an object"]),
        ("bench", "{}", ["report has no 'results'"]),
        ("bench", "nonsense", ["can't be read as JSON"]),
        ("eval", "[" * 100_000, ["can't be read as JSON"]),
        ("eval", None, ["can't be read as JSON", "No such file"]),
        ("bench", "\udcff", ["can't be read as JSON"]),
        ("bench", '["\\ud800"]', ["can't be read as JSON"]),
    ],
)
def test_another_file_is_refused_with_what_is_missing(
    verb: str, text: str | None, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "some.json"
    if text is not None:
        file.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(OptionError) as caught:
        (load_bench if verb == "bench" else load_eval)(file)
    assert all(word in caught.value.message for word in ["some.json", *words])
    assert caught.value.hint == f"write one with: localq {verb} REF... --json > {verb}.json"


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(OptionError, match="more than 64 MB"):
        load_bench(file)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.parametrize(("whole", "parse"), [(BENCH, bench_report_of), (EVAL, eval_report_of)], ids=["bench", "eval"])
@pytest.mark.parametrize("wrong", ["gone", None, "x", -1, {}, []])
def test_damage_anywhere_is_refused_or_gives_a_page(whole: Json, parse: Callable[[Any], Any], wrong: Any) -> None:
    refused = 0
    for number in range(len(list(places(whole)))):
        damaged = copy.deepcopy(whole)
        container, key = next(place for i, place in enumerate(places(damaged)) if i == number)
        if wrong == "gone":
            del container[key]
        else:
            container[key] = wrong
        try:
            report = parse(damaged)
            bench, evaluation = (report, None) if parse is bench_report_of else (bench_report_of(BENCH), report)
            render_markdown(page_of(join(bench, evaluation), []))
        except OptionError:
            refused += 1
    assert refused > 20


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda value: value["results"].clear() or value["comparisons"].clear(), "no results"),
        (lambda value: value["results"][0]["tests"].pop(), "was not measured in the tests"),
        (lambda value: value["results"][0]["tests"][0]["tokens_per_second"]["samples"].pop(), "rates of toy:gguf-a"),
        (lambda value: value["results"][0]["tests"][0]["tokens_per_second"].update(median=0), "rates of toy:gguf-a"),
        (lambda value: value["comparisons"].pop(), "comparisons are not those of every two"),
        (lambda value: value["comparisons"][0].update(faster="toy:other"), "comparisons are not those of every two"),
        (lambda value: value["comparisons"][0].update(test="pp9"), "which no form was measured in"),
        (lambda value: value.update(started="yesterday"), "expected a time"),
        (lambda value: value["settings"].update(repetitions=0), "repetitions is 0"),
    ],
)
def test_a_bench_that_contradicts_itself_is_refused(change: Callable[[Json], object], word: str) -> None:
    value = copy.deepcopy(BENCH)
    change(value)
    with pytest.raises(OptionError) as caught:
        bench_report_of(value)
    assert word in caught.value.message


def test_an_impossible_perplexity_is_refused() -> None:
    value = copy.deepcopy(EVAL)
    value["results"][0]["reference_perplexity"] = 0
    with pytest.raises(OptionError, match="perplexity of toy:gguf-a"):
        eval_report_of(value)
