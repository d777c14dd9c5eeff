"""The verbs of Python that measure: `bench` and `evaluate`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

from pydantic import ValidationError

from localq.conversion.convert import ConversionListener, listener_or_default
from localq.errors import OptionError
from localq.keywords import named_options
from localq.measure.forms import find_forms
from localq.measure.quality import EvalSettings
from localq.measure.quality import evaluate as evaluate_forms
from localq.measure.reports import BenchReport, BenchSettings, EvalReport, first_fault
from localq.measure.speed import bench_forms, complete_settings
from localq.measure.worker import OnStep
from localq.notebook import Bars, in_notebook
from localq.options import LoadOptions, SingleReplyKeywords
from localq.store.layout import models_folder
from localq.store.manifest import Artifact

Reference = str | os.PathLike[str]
"""A model reference, a path, or an Artifact."""


_SIZES = ("prompt_tokens", "generated_tokens", "depth_tokens")


class BenchKeywords(SingleReplyKeywords, total=False):
    """The fields of `BenchSettings`, for type checkers and editors."""

    prompt_tokens: Sequence[int] | int
    generated_tokens: Sequence[int] | int
    depth_tokens: Sequence[int] | int
    repetitions: int
    delay_seconds: float


class EvalKeywords(TypedDict, total=False):
    """The fields of `EvalSettings`, for type checkers and editors."""

    baseline: str | None
    text_file: Path | str | None
    window_tokens: int | None
    first_scored: int | None
    most_windows: int
    threads: int | None
    noise_floor: bool


@named_options(BenchSettings)
def bench(
    references: Reference | Sequence[Reference],
    *,
    models_dir: Path | str | None = None,
    listener: ConversionListener | None = None,
    **settings: Unpack[BenchKeywords],
) -> BenchReport:
    """Measure prompt and generation speed, load time and memory of formats, which take turns in processes of their own.

        report = localq.bench(["toy-llama:mlx-4bit", "toy-llama:gguf-q4_k_m"], prompt_tokens=[64], repetitions=4)
        print(report)

    A reference without a format stands for both default formats; what is missing is converted first. Nothing is
    written to the history. A notebook shows the report as tables. Raises OptionError, or other errors of the tree in
    `localq.errors`.
    """
    given: dict[str, Any] = dict(settings)
    LoadOptions(**{name: value for name, value in given.items() if name in LoadOptions.__dataclass_fields__})
    given |= {name: (given[name],) for name in _SIZES if isinstance(given.get(name), int)}
    try:
        chosen = complete_settings(BenchSettings(**given))
    except ValidationError as error:
        raise OptionError(first_fault(error)) from error
    folder = models_folder(models_dir)
    forms = find_forms(_listed(references, folder), folder, listener_or_default(listener))
    return bench_forms(forms, chosen, _on_step("bench"))


@named_options(EvalSettings)
def evaluate(
    references: Reference | Sequence[Reference],
    *,
    models_dir: Path | str | None = None,
    listener: ConversionListener | None = None,
    **settings: Unpack[EvalKeywords],
) -> EvalReport:
    """Compare formats of one model with the unquantized one on a text: KL divergence, same top token, perplexity.

        report = localq.evaluate("microsoft/Phi-4-mini-instruct", text_file="wiki.test.raw")
        print(report)

    A reference without a format stands for both default formats; what is missing is converted first, the unquantized
    one too. A notebook shows the report as tables. Raises OptionError, or other errors of the tree in `localq.errors`.
    """
    given: dict[str, Any] = dict(settings)
    if given.get("text_file") is not None:
        given["text_file"] = Path(given["text_file"])
    chosen, folder = EvalSettings(**given), models_folder(models_dir)
    listed, used = _listed(references, folder), listener_or_default(listener)
    return evaluate_forms(listed, chosen, folder, used, _on_step("evaluate"))


def _listed(references: Reference | Sequence[Reference], folder: Path) -> list[str]:
    """References as text; an artifact of the models folder by its name, else by its path."""
    several = [references] if isinstance(references, str | os.PathLike) else references
    listed = [
        item.name if isinstance(item, Artifact) and item.folder.parent.parent == folder else os.fspath(item)
        for item in several
    ]
    if not listed:
        raise OptionError("there is no model to measure", 'for example "toy-llama", or ["toy-phi:mlx-4bit"]')
    return listed


def _on_step(title: str) -> OnStep:
    if not in_notebook():
        return lambda step: None
    bars = Bars(counts_bytes=False)
    return lambda step: bars.update(title, step.number, step.of)
