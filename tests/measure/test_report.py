"""Speed and quality of the same artifacts, of which each may have been measured before."""

from __future__ import annotations

from pathlib import Path

import pytest

from localq.errors import OptionError
from localq.measure import report
from localq.measure.baseline import EvalForms
from localq.measure.forms import Form
from localq.measure.quality import EvalSettings
from localq.measure.report import ReportRequest, check_same_forms, measure
from localq.measure.reports import BenchReport, EvalReport
from tests.measure.report_examples import FAST, SETTINGS, SLOW, bench_report, eval_report

A, B = "toy-llama:gguf-a", "toy-llama:mlx-b"


def test_what_was_measured_before_is_not_measured_again() -> None:
    bench, evaluation = bench_report({A: FAST, B: SLOW}), eval_report({A: 0.01, B: 0.04})
    assert measure(ReportRequest((), bench, evaluation)) == (bench, evaluation)
    assert measure(ReportRequest((), bench, None)) == (bench, None)


@pytest.mark.parametrize("partial", [False, True])
def test_quality_is_measured_after_a_bench_that_was_not_stopped(partial: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    form = Form(model="toy-llama", recipe="gguf-a", path=Path("x"), artifact_bytes=3 << 29, bits_per_weight=None)
    bench, evaluation = bench_report({A: FAST}, partial=partial), eval_report({A: 0.01})
    finished: list[BenchReport] = []
    done: list[str] = []

    def evaluated(*_: object) -> EvalReport:
        done.append("quality")
        return evaluation

    monkeypatch.setattr(report, "find_eval_forms", lambda *_: EvalForms(form, None, (form,)))
    monkeypatch.setattr(EvalForms, "most_context_tokens", None)
    monkeypatch.setattr(report, "bench_forms", lambda *_: bench)
    monkeypatch.setattr(report, "evaluate", evaluated)
    request = ReportRequest(("toy-llama",), SETTINGS, EvalSettings())
    assert measure(request, finished.append) == (bench, None if partial else evaluation)
    assert finished == ([] if partial else [bench])
    assert done == ([] if partial else ["quality"])


def test_artifacts_that_were_not_measured_in_both_are_refused() -> None:
    with pytest.raises(OptionError, match="toy-llama:gguf-a against other:gguf-b, other:gguf-f32"):
        measure(ReportRequest((), bench_report({A: FAST}), eval_report({"other:gguf-b": 0.1})))


def test_an_artifact_that_was_made_again_in_between_is_refused() -> None:
    speeds, qualities = bench_report({A: FAST}, {A: 7}).results, eval_report({A: 0.1}, {A: 8}).results
    with pytest.raises(OptionError, match="toy-llama:gguf-a had 7 bytes when its speed was measured and 8 when"):
        check_same_forms(speeds, qualities)
