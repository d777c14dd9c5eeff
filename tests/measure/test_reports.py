"""Reports come back from JSON as they were; a file that is something else is refused in words."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localq.errors import OptionError
from localq.measure.documents import render_report
from localq.measure.page import make_page
from localq.measure.reports import BenchReport, EvalReport, load_report
from localq.measure.tables import render
from tests.measure.report_examples import FAST, SETTINGS, SLOW, bench_report, eval_report

MANY = SETTINGS.model_copy(update={"prompt_tokens": (64, 128), "depth_tokens": (0, 8), "kv_cache_type": "q8_0"})
BENCH = bench_report({"toy:gguf-a": FAST, "toy:mlx-4bit": SLOW}, settings=MANY)
EVAL = eval_report({"toy:gguf-a": 0.01, "toy:mlx-4bit": 0.04}, floor=1e-6)


@pytest.mark.parametrize("report", [BENCH, EVAL, bench_report({"toy:gguf-a": FAST}), eval_report({"toy:gguf-a": 0.1})])
def test_a_report_comes_back_as_it_was(report: BenchReport | EvalReport, tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report.model_dump(mode="json")), encoding="utf-8")
    assert load_report(file, type(report)) == report


def test_keys_that_a_newer_version_added_are_ignored(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(BENCH.model_dump(mode="json") | {"new": 1}), encoding="utf-8")
    assert load_report(file, BenchReport) == BENCH


@pytest.mark.parametrize(
    ("kind", "content", "words"),
    [
        (BenchReport, EVAL.model_dump_json(), ["settings.generated_tokens: Input should be a valid array"]),
        (EvalReport, BENCH.model_dump_json(), ["no report of localq eval", "Field required"]),
        (BenchReport, "[]", ["no report of localq bench"]),
        (BenchReport, "nonsense", ["Invalid JSON"]),
        (EvalReport, "[" * 100_000, ["Invalid JSON"]),
        (EvalReport, None, ["No such file"]),
        (BenchReport, "\udcff", ["no report of localq bench"]),
    ],
)
def test_another_file_is_refused_with_what_is_wrong(
    kind: type[BenchReport], content: str | None, words: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "some.json"
    if content is not None:
        file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(OptionError) as caught:
        load_report(file, kind)
    assert all(word in caught.value.message for word in ["some.json", *words])
    verb = "eval" if kind is EvalReport else "bench"
    assert caught.value.hint == f"write one with: localq {verb} REF... --json > {verb}.json"


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    file = tmp_path / "huge.json"
    with file.open("wb") as opened:
        opened.truncate(1 << 40)
    with pytest.raises(OptionError, match="more than 64 MiB"):
        load_report(file, BenchReport)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container in a JSON value with each of its keys."""
    keys: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    for key in keys:
        yield value, key
        if isinstance(value[key], dict | list):
            yield from places(value[key])


@pytest.mark.parametrize("whole", [BENCH, EVAL], ids=["bench", "eval"])
@pytest.mark.parametrize("wrong", ["gone", None, "x", -1, {}, []])
def test_damage_anywhere_is_refused_or_can_be_shown(
    whole: BenchReport | EvalReport, wrong: Any, tmp_path: Path
) -> None:
    file, refused = tmp_path / "damaged.json", 0
    for number in range(len(list(places(whole.model_dump(mode="json"))))):
        damaged = copy.deepcopy(whole.model_dump(mode="json"))
        container, key = next(place for i, place in enumerate(places(damaged)) if i == number)
        if wrong == "gone":
            del container[key]
        else:
            container[key] = wrong
        file.write_text(json.dumps(damaged), encoding="utf-8")
        try:
            report = load_report(file, type(whole))
        except OptionError:
            refused += 1
            continue
        page = make_page(report, None) if isinstance(report, BenchReport) else make_page(BENCH, report)
        assert render(page.document, "text", 80)
        assert render_report(report)
    assert refused > 20


@pytest.mark.parametrize(
    ("path", "value", "word"),
    [
        (("results",), [], "results"),
        (("results", 0, "tests"), [], "results.0.tests"),
        (("results", 0, "tests", 0, "tokens_per_second", "median"), 0, "median"),
        (("comparisons", 0, "faster"), "toy:other", "names of results and comparisons"),
        (("results", 0, "recipe"), "mlx-4bit", "names of results and comparisons"),
        (("started",), "2026-11-21T04:05:06", "started"),
        (("results", 0, "tests", 0, "tokens_per_second", "stdev"), float("nan"), "stdev"),
        (("results", 0, "tests", 0, "tokens_per_second", "confidence_interval"), [1.0], "confidence_interval"),
        (("machine", "versions"), {"localq": 1}, "versions"),
    ],
)
def test_a_bench_that_contradicts_itself_is_refused(
    path: tuple[Any, ...], value: Any, word: str, tmp_path: Path
) -> None:
    damaged = BENCH.model_dump(mode="json")
    place: Any = damaged
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(damaged), encoding="utf-8")
    with pytest.raises(OptionError, match=word):
        load_report(file, BenchReport)
