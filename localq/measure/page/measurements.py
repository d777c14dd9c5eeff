"""Speed and quality of the same forms, put side by side. Measures nothing, says nothing."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass

from localq.errors import OptionError
from localq.measure.forms import Form, check_names
from localq.measure.machine import Machine
from localq.measure.quality.results import EvalReport, EvalResult, ReferenceResult
from localq.measure.speed.results import BenchReport, BenchTest, FormResult, TestResult


@dataclass(frozen=True, slots=True)
class FormRow:
    """What is known of one form."""

    form: Form
    speed: FormResult | None
    """None for a form that was evaluated alone."""
    quality: EvalResult | ReferenceResult | None
    """None for a form whose speed alone was measured."""

    def in_test(self, test: BenchTest | None) -> TestResult | None:
        """What was measured of its speed in a test."""
        results = self.speed.tests if self.speed else ()
        return next((result for result in results if result.test == test), None)


@dataclass(frozen=True, slots=True)
class Measurements:
    """A bench and an evaluation of the same forms, or a bench alone."""

    bench: BenchReport
    evaluation: EvalReport | None

    @property
    def rows(self) -> tuple[FormRow, ...]:
        """The reference first, then every form in the order in which it was measured."""
        speeds = {result.form.name: result for result in self.bench.results}
        qualities: dict[str, EvalResult | ReferenceResult] = {}
        if self.evaluation is not None:
            qualities = {result.form.name: result for result in self.evaluation.results}
            reference = self.evaluation.reference
            qualities = {reference.form.name: reference, **qualities, reference.form.name: reference}
        first = [name for name, quality in qualities.items() if isinstance(quality, ReferenceResult)]
        return tuple(
            FormRow((speeds.get(name) or qualities[name]).form, speeds.get(name), qualities.get(name))
            for name in dict.fromkeys([*first, *speeds, *qualities])
        )

    @property
    def candidates(self) -> tuple[FormRow, ...]:
        """The forms to choose from: all whose speed was measured, but what they are compared with."""
        baseline = set()
        if self.evaluation is not None:
            floor = self.evaluation.noise_floor
            baseline = {self.evaluation.reference.form.name, *([floor.form.name] if floor else [])}
        return tuple(row for row in self.rows if row.speed and row.form.name not in baseline)

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the models."""
        return tuple(dict.fromkeys(row.form.model for row in self.rows))

    def first_test(self, kind: str) -> BenchTest | None:
        """The first one of prompt processing (`pp`) or of generation (`tg`)."""
        return next((test for test in self.bench.settings.tests if test.name.startswith(kind)), None)

    def label(self, form: Form) -> str:
        """What a form is called: by its recipe alone where all are of one model."""
        return form.recipe if len(self.models) == 1 else form.name

    def relabelled(self, sentence: str) -> str:
        """A sentence with forms called by their labels instead of their names."""
        forms = [row.form for row in self.rows]
        if self.evaluation is not None and self.evaluation.noise_floor is not None:
            forms.append(self.evaluation.noise_floor.form)
        labels = {form.name: self.label(form) for form in forms}
        # The longest ones first: one name may begin as another one does.
        names = "|".join(re.escape(name) for name in sorted(labels, key=len, reverse=True))
        return re.sub(names, lambda found: labels[found[0]], sentence)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Of both measurements, and of what tells them apart."""
        if self.evaluation is None:
            return self.bench.warnings
        speed = [f"speed: {warning}" for warning in self.bench.warnings]
        quality = [f"quality: {warning}" for warning in self.evaluation.warnings]
        return (*speed, *quality, *_differences(self.bench.machine, self.evaluation.machine))


def join(bench: BenchReport, evaluation: EvalReport | None) -> Measurements:
    """Both side by side. Raises OptionError for two forms of one name, and where both are not of the same forms."""
    speeds = [result.form for result in bench.results]
    if evaluation is None:
        check_names(speeds)
        return Measurements(bench, None)
    qualities = [result.form for result in evaluation.results]
    check_names(speeds)
    check_names(qualities)
    check_same_forms(speeds, [*qualities, evaluation.reference.form])
    return Measurements(bench, evaluation)


def check_same_forms(speeds: Iterable[Form], qualities: Iterable[Form]) -> None:
    """Raise OptionError where forms whose speed was measured and those that were evaluated are not the same ones."""
    sizes, evaluated = ({form.name: form.artifact_bytes for form in forms} for forms in (speeds, qualities))
    common = sizes.keys() & evaluated.keys()
    if not common:
        raise OptionError(
            f"no form was both measured and evaluated: {', '.join(sizes)} against {', '.join(evaluated)}",
            "give the bench and the evaluation of the same forms",
        )
    for name in sorted(common):
        if sizes[name] != evaluated[name]:
            raise OptionError(
                f"{name} had {sizes[name]} bytes when it was measured and {evaluated[name]} when it was evaluated: "
                "it is not the same form",
                "measure and evaluate it again",
            )


def _differences(speed: Machine, quality: Machine) -> list[str]:
    told = []
    if (speed.cpu, speed.memory_bytes) != (quality.cpu, quality.memory_bytes):
        told.append(f"speed was measured on another machine ({speed.cpu}) than quality ({quality.cpu})")
    versions = [
        f"{name} {speed.versions.get(name, 'none')} and {quality.versions.get(name, 'none')}"
        for name in dict.fromkeys(itertools.chain(speed.versions, quality.versions))
        if speed.versions.get(name) != quality.versions.get(name)
    ]
    if versions:
        told.append(f"speed and quality were measured with different versions: {', '.join(versions)}")
    return told
