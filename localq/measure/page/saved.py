"""What `localq bench --json` and `localq eval --json` wrote, read back as reports. Measures nothing."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Generic, TypeVar

from localq.errors import OptionError
from localq.measure.forms import Form
from localq.measure.page.decoding import decode, items_at, value_at
from localq.measure.quality.results import EvalReport, EvalResult
from localq.measure.speed.results import BenchReport, BenchTest

_MOST_BYTES = 64 << 20
"""A report of a hundred forms has a hundredth of that."""

_Report = TypeVar("_Report", BenchReport, EvalReport)


@dataclass(frozen=True, slots=True)
class Saved(Generic[_Report]):
    """A report, and the line that repeats it; empty where it was not kept."""

    report: _Report
    command: str


def load_bench(file: Path) -> Saved[BenchReport]:
    """Read a file of `localq bench --json`; forms have no path. Raises OptionError for one that is no such report."""
    return _load(file, "bench", bench_report_of)


def load_eval(file: Path) -> Saved[EvalReport]:
    """Read a file of `localq eval --json`; forms have no path. Raises OptionError for one that is no such report."""
    return _load(file, "eval", eval_report_of)


def bench_report_of(value: object, where: str = "report") -> BenchReport:
    """What `BenchReport.to_json` gave. Raises OptionError that names what is missing or wrong; `where` is its begin."""
    results = items_at(value, "results", where)
    comparisons = items_at(value, "comparisons", where)
    tests: dict[str, Any] = {}
    for i, result in enumerate(results):
        for j, item in enumerate(items_at(result, "tests", f"{where}.results[{i}]")):
            place = f"{where}.results[{i}].tests[{j}]"
            tests[str(value_at(item, "test", place))] = item
    nested = {
        **_object(value),
        "results": [_with_form(result, f"{where}.results[{i}]", _nested_tests) for i, result in enumerate(results)],
        "comparisons": [_with_test(item, tests, f"{where}.comparisons[{i}]") for i, item in enumerate(comparisons)],
    }
    report = decode(BenchReport, nested, where)
    _check_time(report.started, where)
    _check_rates(report, where)
    _check_pairs(
        [(item.test, item.faster, item.slower) for item in report.comparisons],
        [result.form for result in report.results],
        report.settings.tests,
        where,
    )
    return report


def eval_report_of(value: object, where: str = "report") -> EvalReport:
    """What `EvalReport.to_json` gave. Raises OptionError that names what is missing or wrong; `where` is its begin."""
    results = items_at(value, "results", where)
    settings, reference = value_at(value, "settings", where), value_at(value, "reference", where)
    floor = value_at(value, "noise_floor", where)
    perplexity = {
        "value": value_at(reference, "perplexity", f"{where}.reference"),
        "standard_error": value_at(reference, "perplexity_standard_error", f"{where}.reference"),
    }
    nested = {
        **_object(value),
        "text": settings,
        "threads": value_at(settings, "threads", f"{where}.settings"),
        "reference": {**_with_form(reference, f"{where}.reference", _nested_cost), "perplexity": perplexity},
        "noise_floor": None if floor is None else _with_form(floor, f"{where}.noise_floor", _nested_divergence),
        "results": [_with_form(item, f"{where}.results[{i}]", _nested_divergence) for i, item in enumerate(results)],
    }
    report = decode(EvalReport, nested, where)
    _check_time(report.started, where)
    _check_perplexity(report.results, where)
    forms = [result.form for result in report.results]
    _check_pairs([(None, item.nearer, item.farther) for item in report.comparisons], forms, [None], where)
    return report


def _load(file: Path, verb: str, parse: Callable[[object, str], _Report]) -> Saved[_Report]:
    hint = f"write one with: localq {verb} REF... --json > {verb}.json"
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise OptionError(f"{file} has more than {_MOST_BYTES >> 20} MB: no report of `localq {verb}`", hint)
        value = json.loads(content.decode("utf-8"))
        json.dumps(value, ensure_ascii=False).encode()  # an escaped half of a character is no text
        report = parse(value, "report")
    except (OSError, ValueError, RecursionError, OverflowError) as error:
        if isinstance(error, OptionError):
            message = f"{file} is no report of this version's `localq {verb}`: {error.message}"
            raise OptionError(message, hint) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise OptionError(f"{file} can't be read as JSON: {reason}", hint) from error
    command = value.get("command", "")
    return Saved(report, command if isinstance(command, str) else "")


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _with_form(item: object, where: str, nest: Callable[[dict[str, Any], str], dict[str, Any]]) -> dict[str, Any]:
    """The keys of a form, which stand among others, in a place of their own."""
    value_at(item, "model", where)
    fields = _object(item)
    return {**fields, "form": {**fields, "path": ""}, **nest(fields, where)}


def _nested_tests(fields: dict[str, Any], where: str) -> dict[str, Any]:
    tests = items_at(fields, "tests", where)
    return {"tests": [{**_object(item), "test": item} for item in tests]}


def _nested_cost(fields: dict[str, Any], where: str) -> dict[str, Any]:
    return {"cost": fields}


def _nested_divergence(fields: dict[str, Any], where: str) -> dict[str, Any]:
    return {"cost": fields, "divergence": fields}


def _with_test(item: object, tests: dict[str, Any], where: str) -> dict[str, Any]:
    name = value_at(item, "test", where)
    if not isinstance(name, str) or name not in tests:
        raise OptionError(f"{where}.test is {name!r}, which no form was measured in")
    return {**_object(item), "test": tests[name]}


def _check_rates(report: BenchReport, where: str) -> None:
    """Every form in every test, as often as the settings say, at rates that can be."""
    if not report.results:
        raise OptionError(f"{where} has no results")
    for result in report.results:
        if tuple(item.test for item in result.tests) != report.settings.tests:
            raise OptionError(f"{where}: {result.form.name} was not measured in the tests of the settings")
        for item in result.tests:
            rate = item.tokens_per_second
            if len(rate.samples) != report.settings.repetitions or min(*rate.samples, rate.median) <= 0:
                raise OptionError(f"{where}: the rates of {result.form.name} in {item.test.name} can't be")


def _check_perplexity(results: Sequence[EvalResult], where: str) -> None:
    for result in results:
        if min(result.divergence.perplexity, result.divergence.reference_perplexity) <= 0:
            raise OptionError(f"{where}: the perplexity of {result.form.name} can't be")


def _check_time(started: str, where: str) -> None:
    try:
        datetime.fromisoformat(started)
    except ValueError as error:
        raise OptionError(f"{where}.started is {started!r}; expected a time") from error


def _check_pairs(
    pairs: Sequence[tuple[BenchTest | None, str, str]],
    forms: Sequence[Form],
    tests: Sequence[BenchTest | None],
    where: str,
) -> None:
    """Comparisons of every two forms in every test, each once, or none."""
    found = [(test, frozenset((one, other))) for test, one, other in pairs]
    names = [form.name for form in forms]
    expected = {(test, frozenset(pair)) for test in tests for pair in itertools.combinations(names, 2)}
    if found and (set(found) != expected or len(found) != math.comb(len(names), 2) * len(tests)):
        raise OptionError(f"{where}.comparisons are not those of every two forms in the results")
