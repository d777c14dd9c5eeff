"""The verb: what quantization cost, form by form.

The unquantized original foretells a text, and every form foretells the same tokens and is compared with it. Knows
neither tables nor terminals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from localq.conversion.convert import ConversionListener
from localq.demo.questions import read_held_out_text
from localq.errors import OptionError
from localq.measure.forms import Form
from localq.measure.machine import Machine, describe_machine
from localq.measure.quality.divergence import divergence_of, perplexity_of
from localq.measure.quality.forms import EvalForms, find_eval_forms, most_context_tokens
from localq.measure.quality.nearness import engine_warnings, nearness_of
from localq.measure.quality.results import EvalReport, EvalResult, EvalSettings, ReferenceResult, UsedText
from localq.measure.quality.run import ComputedForm, ComputedReference, OnStep, RunPlan, quality_run
from localq.measure.quality.windows import (
    DEFAULT_WINDOW_TOKENS,
    Text,
    Windows,
    WindowSettings,
    cut_windows,
    decode_text,
    first_difference,
    read_text,
)
from localq.measure.speed.limits import bytes_per_token
from localq.options import LoadOptions
from localq.reference import parse_reference
from localq.store.store import Store
from localq.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def evaluate(
    references: Sequence[str],
    settings: EvalSettings,
    models_dir: Path | None = None,
    listener: ConversionListener | None = None,
    on_step: OnStep = lambda step: None,
) -> EvalReport:
    """Compare the forms that references name with the unquantized original, on the same tokens of one text.

    Forms that are missing are made, the original among them. Raises OptionError for a text or a window that does not
    fit, and for forms that don't belong together, StoreError where the disk has no room for what the original
    foretells, else errors of the tree in `localq.errors`.
    """
    text = _text(references, settings)
    forms = find_eval_forms(references, settings.reference, settings.noise_floor, models_dir, listener)
    everything = (forms.reference, *forms.compared)
    cut = settings.windows(most_context_tokens(everything))
    windows = _common_windows(everything, text, cut)
    machine, started = describe_machine(), datetime.now(UTC).isoformat(timespec="seconds")
    plan = RunPlan(windows.tokens, cut, settings.threads, len(everything), on_step)
    with quality_run(plan, Store(models_dir).folder) as run:
        reference = run.record(forms.reference)
        computed = {form: run.compare(form) for form in forms.compared}
    findings = _Findings(forms, reference, computed, len(windows.tokens))
    results = tuple(findings.result(form) for form in forms.forms)
    floor = findings.result(forms.noise_floor) if forms.noise_floor else None
    return EvalReport(
        machine=machine,
        text=_used(text, windows, cut),
        threads=settings.threads,
        reference=findings.reference_result(),
        noise_floor=floor,
        results=results,
        comparisons=nearness_of(results, findings.window_divergences(), floor),
        warnings=(*_warnings(settings, machine, windows, cut), *forms.warnings, *engine_warnings(results, floor)),
        started=started,
    )


def _text(references: Sequence[str], settings: EvalSettings) -> Text:
    """The text to evaluate on, before anything is converted or pulled."""
    if settings.text_file is not None:
        return read_text(settings.text_file, settings.windows())
    if not all(parse_reference(reference).kind == "built-in" for reference in references):
        raise OptionError(
            "there is no text to evaluate on",
            "give a text file with --text FILE; published figures use the raw test file of WikiText-2",
        )
    return decode_text("localq/demo/heldout.txt", read_held_out_text().encode(), settings.windows())


def _common_windows(forms: Sequence[Form], text: Text, cut: WindowSettings) -> Windows:
    """The windows of the text, the same by every form's own tokenizer. Raises OptionError where they differ."""
    reference, *others = forms
    windows = cut_windows(text, _tokenizer(reference), cut)
    for form in others:
        difference = first_difference(windows, cut_windows(text, _tokenizer(form), cut))
        if difference is not None:
            raise OptionError(
                f"{reference.name} and {form.name} tokenize {text.name} differently: {difference}",
                "compare forms of one model, made from the same checkpoint",
            )
    return windows


def _tokenizer(form: Form) -> Tokenizer:
    if form.path.is_dir():
        return load_tokenizer(form.path)
    from localq.text.gguf_tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(form.path)


@dataclass(frozen=True, slots=True)
class _Findings:
    """What all forms computed, put in words that a report has."""

    forms: EvalForms
    reference: ComputedReference
    computed: dict[Form, ComputedForm]
    windows: int

    def reference_result(self) -> ReferenceResult:
        form, likelihoods = self.forms.reference, self.reference.negative_log_likelihood
        return ReferenceResult(form, perplexity_of(likelihoods), self.reference.cost, _bytes_read(form))

    def result(self, form: Form) -> EvalResult:
        found = self.computed[form]
        divergence = divergence_of(found.positions, self.reference.negative_log_likelihood)
        return EvalResult(form, divergence, found.cost, _bytes_read(form))

    def window_divergences(self) -> dict[Form, NDArray[np.float64]]:
        """Mean divergence of each window."""
        return {
            form: found.positions.kl_divergence.reshape(self.windows, -1).mean(axis=1)
            for form, found in self.computed.items()
        }


def _bytes_read(form: Form) -> int | None:
    """Weights alone: the context's share is the same for all forms of an engine."""
    return bytes_per_token(form, LoadOptions(), 0)


def _used(text: Text, windows: Windows, cut: WindowSettings) -> UsedText:
    return UsedText(text.name, text.sha256, cut.window_tokens, cut.first, len(windows.tokens), windows.begin_token)


def _warnings(settings: EvalSettings, machine: Machine, windows: Windows, cut: WindowSettings) -> list[str]:
    found = []
    if settings.window_tokens is None and cut.window_tokens < DEFAULT_WINDOW_TOKENS:
        found.append(f"windows have {cut.window_tokens} tokens, the longest context of these forms")
    if len(windows.tokens) == 1:
        found.append("one window does not tell how much figures vary with the text: give a longer one")
    if windows.special_tokens:
        shown = ", ".join(windows.special_tokens[:3])
        found.append(f"the text holds special tokens ({shown}), which llama-perplexity would take for plain text")
    if machine.busy:
        found.append(f"other work kept {machine.busy_cores:.1f} cores busy at the start: seconds per token vary")
    return found
