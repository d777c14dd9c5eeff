"""The verb: what quantization changes in the predictions of a model, artifact by artifact.

The unquantized baseline predicts a text; every other artifact predicts the same tokens and is compared with it. Each
runs in a process of its own, one after the other.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from localq.calibration.calibration import calibration_texts
from localq.conversion.convert import ConversionListener
from localq.demo.questions import read_held_out_text
from localq.errors import OptionError, UnknownRecipeError
from localq.measure.baseline import EvalForms, find_eval_forms
from localq.measure.baseline_logits import (
    FLOAT32_BYTES,
    Answer,
    LogitsFile,
    compare,
    record,
    require_room,
    unnamed_file,
)
from localq.measure.divergence import Figures, divergence_of, perplexity_of
from localq.measure.forms import Form
from localq.measure.limits import bytes_per_token
from localq.measure.machine import describe_machine
from localq.measure.reports import (
    LARGEST_NOISE_FLOOR,
    BaselineQuality,
    Cost,
    EvalReport,
    EvalText,
    FormQuality,
    Machine,
    QualityComparison,
)
from localq.measure.speed_worker import measure
from localq.measure.statistics import paired_interval
from localq.measure.windows import (
    DEFAULT_MOST_WINDOWS,
    Text,
    Windows,
    cut_windows,
    decode_text,
    first_difference,
    read_text,
)
from localq.measure.worker import OnStep, Step, WorkerProcess
from localq.options import LoadOptions
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.store import Store
from localq.text.tokenizer import Tokenizer, load_tokenizer

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

DEFAULT_WINDOW_TOKENS = 512
GENERATED_TOKENS = 32
"""Of the short reply that shows how long a token takes."""
_LARGEST_NOISE_SHARE = 0.1
"""Share of the mean divergence of an artifact above which the noise floor makes it doubtful."""
_SAME_MODEL = "compare artifacts of one model, made from the same checkpoint"


@dataclass(frozen=True, slots=True)
class EvalSettings:
    """How quality is measured.

    baseline: Reference of the artifact to compare with; None is the unquantized one.
    text_file: `-` is standard input; None is the text of the built-in toys, for them alone.
    window_tokens: Tokens computed together; None is 512, or the model's longest context if that is less.
    first_scored: Index in a window of the first position that is scored; None is half of the window.
    most_windows: Windows of the text, at most.
    threads: CPU threads for GGUF; None is the default of `LoadOptions`. MLX chooses its own.
    noise_floor: Whether the engines are compared without quantization, if both are used.
    """

    baseline: str | None = None
    text_file: Path | None = None
    window_tokens: int | None = None
    first_scored: int | None = None
    most_windows: int = DEFAULT_MOST_WINDOWS
    threads: int | None = None
    noise_floor: bool = True

    def __post_init__(self) -> None:
        for name in ("window_tokens", "first_scored", "most_windows"):
            value = getattr(self, name)
            if not isinstance(value, int | None):
                raise OptionError(f"{name} is {value!r}; expected a whole number")
        if self.size < 2:
            raise OptionError(f"--window is {self.size}; expected at least 2 tokens")
        if self.most_windows < 1:
            raise OptionError(f"--windows is {self.most_windows}; expected at least 1")
        if not 0 <= self.first <= self.size - 2:
            raise OptionError(
                f"--score-from is {self.first}; expected between 0 and {self.size - 2}",
                f"later positions of a window of {self.size} tokens predict nothing in it",
            )
        LoadOptions(threads=self.threads)  # raises for a number that no engine takes

    @property
    def size(self) -> int:
        """Tokens of a window."""
        return DEFAULT_WINDOW_TOKENS if self.window_tokens is None else self.window_tokens

    @property
    def first(self) -> int:
        """Index in a window of the first position that is scored."""
        if self.first_scored is not None:
            return self.first_scored
        return min(self.size // 2, self.size - 2)  # the half of two tokens leaves nothing to score

    @property
    def scored_positions(self) -> int:
        """Of one window."""
        return self.size - self.first - 1

    def fitted(self, most_context_tokens: int | None) -> EvalSettings:
        """With a window for models with such a longest context. Raises OptionError for a chosen one that is longer."""
        if most_context_tokens is None or self.size <= most_context_tokens:
            return self
        if self.window_tokens is None:
            return replace(self, window_tokens=most_context_tokens)
        raise OptionError(
            f"--window is {self.size}; the longest context of these artifacts is {most_context_tokens}",
            f"give --window {most_context_tokens} or less",
        )


def evaluate(
    references: Sequence[str],
    settings: EvalSettings,
    models_dir: Path | None = None,
    listener: ConversionListener | None = None,
    on_step: OnStep = lambda step: None,
) -> EvalReport:
    """Compare the artifacts that references name with the unquantized one, on the same tokens of one text.

    Artifacts that are missing are made, the unquantized one too. Raises OptionError for a text or a window that does
    not fit and for artifacts of different models, StoreError if the disk has no room for the baseline's predictions,
    else errors of the tree in `localq.errors`.
    """
    text = find_text(references, settings)
    forms = find_eval_forms(references, settings.baseline, settings.noise_floor, models_dir, listener)
    cut = settings.fitted(forms.most_context_tokens)
    windows = _common_windows(forms, text, cut)
    machine, started = describe_machine(), datetime.now(UTC).replace(microsecond=0)
    with unnamed_file(Store(models_dir).folder) as file:
        run = QualityRun(windows.tokens, cut, file, 1 + len(forms.compared), on_step)
        baseline = run.record(forms.baseline)
        found = {form: run.compare(form) for form in forms.compared}
    floor = found[forms.noise_floor] if forms.noise_floor else None
    results = tuple(found[form] for form in forms.forms)
    return EvalReport(
        machine=machine,
        settings=EvalText(
            text=text.name,
            text_sha256=text.sha256,
            window_tokens=cut.size,
            first_scored=cut.first,
            windows=len(windows.tokens),
            begin_token_id=windows.begin_token,
            positions=len(windows.tokens) * cut.scored_positions,
            threads=settings.threads,
            generated_tokens=GENERATED_TOKENS,
        ),
        started=started,
        reference=baseline,
        noise_floor=floor,
        results=results,
        comparisons=compare_qualities(results, run.window_divergences, floor),
        warnings=(
            *_warnings(settings, cut, machine, windows),
            *calibration_warnings(forms.forms, text),
            *forms.warnings,
            *noise_warnings(results, floor),
        ),
    )


def find_text(references: Sequence[str], settings: EvalSettings) -> Text:
    """The text to evaluate on, which needs no model. Raises OptionError."""
    if settings.text_file is not None:
        return read_text(settings.text_file, settings.size * settings.most_windows)
    if not all(parse_reference(reference).kind == "built-in" for reference in references):
        raise OptionError(
            "there is no text to evaluate on",
            "give a text file with --text FILE; published figures use the raw test file of WikiText-2",
        )
    return decode_text("localq/demo/heldout.txt", read_held_out_text().encode(), settings.size * settings.most_windows)


def _common_windows(forms: EvalForms, text: Text, cut: EvalSettings) -> Windows:
    """The windows of the text, which must be the same with the tokenizer of every artifact. Raises OptionError."""
    windows = cut_windows(text, _tokenizer(forms.baseline), cut.size, cut.most_windows)
    for form in forms.compared:
        difference = first_difference(windows, cut_windows(text, _tokenizer(form), cut.size, cut.most_windows))
        if difference is not None:
            raise OptionError(
                f"{forms.baseline.name} and {form.name} tokenize {text.name} differently: {difference}", _SAME_MODEL
            )
    return windows


def _tokenizer(form: Form) -> Tokenizer:
    if form.path.is_dir():
        return load_tokenizer(form.path)
    from localq.text.gguf_tokenizer import load_gguf_tokenizer

    return load_gguf_tokenizer(form.path)


@dataclass(slots=True)
class QualityRun:
    """The artifacts of one evaluation, each in a process of its own: `record` comes first, then `compare`."""

    windows: Sequence[Sequence[int]]
    """Token ids."""
    settings: EvalSettings
    file: LogitsFile
    form_count: int
    on_step: OnStep
    window_divergences: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    """Mean KL divergence of each window, by the names of the artifacts."""
    _vocabulary_size: int = 0
    _done: int = 0
    _baseline: NDArray[np.float64] = field(init=False)
    """-ln P(right token) of each scored position."""

    def record(self, form: Form) -> BaselineQuality:
        """Compute the baseline. Raises StoreError if the disk has no room for its predictions, else as `compare`."""
        found, cost = self._compute(form, record)
        self._baseline = found["negative_log_likelihood"]
        perplexity, error = perplexity_of(self._baseline)
        return BaselineQuality(
            **form.facts(), **cost.model_dump(), perplexity=perplexity, perplexity_standard_error=error
        )

    def compare(self, form: Form) -> FormQuality:
        """Compute an artifact and compare it with the baseline.

        Raises OptionError for a vocabulary of another size, EngineError naming the artifact whose process ended, and
        LocalqError for what its process could not do.
        """
        found, cost = self._compute(form, compare)
        self.window_divergences[form.name] = found["kl_divergence"].reshape(len(self.windows), -1).mean(axis=1)
        divergence = divergence_of(found, self._baseline)
        return FormQuality(**form.facts(), **divergence.model_dump(), **cost.model_dump())

    def _compute(self, form: Form, function: Callable[..., Answer]) -> tuple[Figures, Cost]:
        """What `record` or `compare` finds of all windows, and what the artifact cost."""
        import numpy as np

        settings, count = self.settings, len(self.windows)
        options = LoadOptions(settings.size, settings.threads if form.format == "gguf" else None)
        answers, seconds = [], []
        with WorkerProcess(form, options, (self.file.descriptor,)) as worker:
            loaded = worker.load()
            self._check_vocabulary(form, loaded.vocabulary_size)
            for index, tokens in enumerate(self.windows):
                self._done += 1
                self.on_step(Step(form.name, f"window {index + 1} of {count}", self._done, self.form_count * count))
                row = index * settings.scored_positions
                answer = worker.run(function, tokens, settings.first, row, astuple(self.file))
                seconds.append(sum(answer.pop("engine_seconds")))
                answers.append(answer)
            generated = min(GENERATED_TOKENS, settings.size - 1)
            rate = worker.run(measure, 0, 0, 1, generated, 1)[0] if generated > 1 else None
            counted = seconds[1:] or seconds
            cost = Cost(
                # Of weights alone: the context's part is the same for all artifacts of an engine.
                bytes_read_per_token=bytes_per_token(form, LoadOptions(), 0),
                load_seconds=loaded.load_seconds,
                prompt_seconds_per_token=sum(counted) / (len(counted) * settings.size),
                generated_seconds_per_token=1 / rate if rate else None,
                peak_memory_bytes=worker.peak_memory_bytes,
            )
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}, cost

    def _check_vocabulary(self, form: Form, size: int) -> None:
        if not self._vocabulary_size:
            self._vocabulary_size = size
            window_bytes = self.settings.scored_positions * size * FLOAT32_BYTES
            require_room(Path(self.file.folder), window_bytes, len(self.windows))
        elif size != self._vocabulary_size:
            raise OptionError(f"{form.name} gives {size:,} logits, the baseline {self._vocabulary_size:,}", _SAME_MODEL)


def compare_qualities(
    results: Sequence[FormQuality], windows: Mapping[str, NDArray[np.float64]], floor: FormQuality | None
) -> tuple[QualityComparison, ...]:
    """Every two artifacts, by the mean divergences of their windows; none if there is a single window.

    Positions of one window depend on each other, so windows are what is counted.
    """
    found = []
    for pair in itertools.combinations(results, 2):
        near, far = sorted(pair, key=lambda result: result.mean_kl_divergence)
        differences = windows[far.name] - windows[near.name]
        if len(differences) < 2:
            return ()
        interval = paired_interval(differences)
        noise = floor.mean_kl_divergence if floor and near.format != far.format else 0.0
        names = {"nearer": near.name, "farther": far.name}
        found.append(QualityComparison(**names, difference=interval, differs=interval.low > noise))
    return tuple(found)


def noise_warnings(results: Sequence[FormQuality], floor: FormQuality | None) -> list[str]:
    """The figures that the noise floor makes doubtful."""
    if floor is None:
        return []
    noise = floor.mean_kl_divergence
    if noise > LARGEST_NOISE_FLOOR:
        return [
            f"the engines disagree on this model: {floor.name} is not quantized and has a mean KL divergence of "
            f"{noise:.2g}, so figures of different engines can't be compared"
        ]
    return [
        f"{noise / result.mean_kl_divergence:.0%} of the mean KL divergence of {result.name} is the difference between "
        "the engines"
        for result in results
        if result.format == floor.format
        and result.name != floor.name
        and noise > _LARGEST_NOISE_SHARE * result.mean_kl_divergence
    ]


def calibration_warnings(forms: Sequence[Form], text: Text) -> list[str]:
    """The artifacts that were made with what was measured on this very text."""
    tuned = [form.name for form in forms if _is_calibrated(form) and text.sha256 in calibration_texts(form.path)]
    if not tuned:
        return []
    names = " and ".join(tuned)
    return [f"{names}: calibrated on this very text, so that the figures are better than on new text: give another one"]


def _is_calibrated(form: Form) -> bool:
    try:
        return parse_recipe(form.recipe).calibrated
    except UnknownRecipeError:
        return False


def _warnings(settings: EvalSettings, cut: EvalSettings, machine: Machine, windows: Windows) -> list[str]:
    found = []
    if cut.size < settings.size:
        found.append(f"windows have {cut.size} tokens, the longest context of these artifacts")
    if len(windows.tokens) == 1:
        found.append("one window does not show how much figures vary with the text: give a longer text")
    if windows.special_tokens:
        shown = ", ".join(windows.special_tokens[:3])
        found.append(f"the text contains special tokens ({shown}), which llama-perplexity reads as plain text")
    if machine.busy:
        found.append(f"other work kept {machine.busy_cores:.1f} cores busy at the start: seconds per token vary")
    return found
