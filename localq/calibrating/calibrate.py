"""The verb: measure once what calibrated formats need of a model, in both formats.

First the importance of every column, then the sensitivity of every tensor, both in llama.cpp in this process, and last
how far each type moves each tensor. The model is measured in bfloat16: with Q8_0 the divergences of the least sensitive
tensors are half as large again, because the rounding of the inputs to 8 bits changes with them; with bfloat16 they
differ by 4% from those with float32.
"""

from __future__ import annotations

import contextlib
import math
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from localq.backends import require_backend
from localq.calibrating.own_words import write_text
from localq.calibrating.sensitivity import CoarseTensor, Predictions
from localq.calibrating.texts import CalibrationTokens, cut, read_texts
from localq.calibrating.type_errors import measure_type_errors
from localq.calibrating.unfinished import Unfinished
from localq.calibration.calibration import (
    Calibration,
    calibration_folder,
    find_calibration,
    write_calibration,
)
from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.source import resolve_checkpoint
from localq.conversion.convert import ConversionListener, make_forms
from localq.conversion.pieces import worker_pool
from localq.conversion.plan import Request, Source, with_its_folder
from localq.disk import disk_errors
from localq.engines.llamacpp_observer import ObservedEngine
from localq.errors import ModelReferenceError, OptionError
from localq.families.base import TensorLayout
from localq.gguf_file import read_header
from localq.memory import gguf_file_memory, require_memory
from localq.options import LoadOptions
from localq.recipes import parse_recipe
from localq.reference import ModelReference, parse_reference
from localq.store.leftovers import remove_if_empty
from localq.store.locks import held_lock
from localq.store.manifest import Artifact
from localq.store.store import Store, shown_name, source_of
from localq.text.tokenizer import load_tokenizer
from localq.version import library_versions

WINDOW_TOKENS = 512
MEASURED_AS = "gguf-bf16"
_MEASURED = "measured"
"""A models folder of its own in the calibration's folder, for the format that is measured; deleted at the end."""
_MOST_TOKENS = 1 << 24
_SENSITIVITY_TOKENS, _LARGE_PARAMETERS = (256, 2048), 1_000_000_000
_LIBRARIES = ("llama-cpp-python", "numpy", "tokenizers")
_FLOAT32_BYTES = 4
_LOGITS_COPIES = 3
"""Of a window: llama.cpp's two, and those of the unchanged model."""


class CalibrationListener(ConversionListener):
    """Gets the events of a calibration. This one does nothing with them."""

    def on_calibration(self, part: str, done_tokens: int, total_tokens: int) -> None:
        """What is measured now, and how many tokens the model has computed, of all that it will compute."""

    def on_resumed(self, done_tokens: int, total_tokens: int) -> None:
        """A calibration that was stopped goes on."""


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """How a model is calibrated.

    texts: Files in UTF-8; none for localq's own text, and text that a small model writes itself.
    tokens: Tokens that the importance of the columns is measured on, at most.
    sensitivity_tokens: Tokens that the sensitivity of each tensor is measured on, at most; None is 256 for models of a
        billion parameters and more, up to 2,048 for smaller ones.
    threads: CPU threads; None is one for each physical core.
    force: Whether to measure again what was measured before.
    """

    texts: tuple[Path, ...] = ()
    tokens: int = 16_384
    sensitivity_tokens: int | None = None
    threads: int | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("tokens", "sensitivity_tokens"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 16 <= value <= _MOST_TOKENS):
                raise OptionError(f"{name} is {value!r}; expected a whole number from 16 to {_MOST_TOKENS:,}")
        LoadOptions(threads=self.threads)  # raises for a number that no engine takes

    def counts(self, parameters: int) -> tuple[int, int]:
        """Tokens for the columns and for each tensor, of a model of this size."""
        least, most = _SENSITIVITY_TOKENS
        tokens = min(most, max(least, least * _LARGE_PARAMETERS // parameters))
        return self.tokens, self.sensitivity_tokens or tokens


@dataclass(frozen=True, slots=True)
class Calibrated:
    """A model's calibration, and whether an earlier run made it."""

    calibration: Calibration
    reused: bool


def calibrate_model(
    source: Source,
    settings: CalibrationSettings | None = None,
    models_dir: Path | str | None = None,
    listener: CalibrationListener | None = None,
) -> Calibrated:
    """Measure a model, or find what was measured of the same checkpoint on the same texts.

    A calibration that was stopped goes on where it was. Raises CalibrationError, OptionError for texts that can't be
    used, EngineError where memory is short, or other errors of the tree in `localq.errors`.
    """
    settings, listener = settings or CalibrationSettings(), listener or CalibrationListener()
    require_backend("gguf")
    store = Store(models_dir)
    reference = with_its_folder(_reference(source), store)
    checkpoint = resolve_checkpoint(reference, listener.on_download)
    texts = read_texts(settings.texts)
    found = find_calibration(store, reference, checkpoint.revision)
    if found is not None and not settings.force:
        is_same = {text.sha256 for text in found.texts} == {text.sha256 for text in texts}
        if not settings.texts or (is_same and found.tokens_wanted == settings.tokens):
            return Calibrated(found, reused=True)
    checkpoint.family.gguf_architecture()  # raises for a family that llama.cpp does not run
    size = min(WINDOW_TOKENS, checkpoint.config.max_position_embeddings)
    tokenizer, counts = load_tokenizer(checkpoint.folder), settings.counts(checkpoint.parameters)
    tokens = cut(texts, tokenizer, size, counts)  # raises for a text that is too short, before any work
    with _own_folder(store, reference) as folder:
        measured = _measured_form(store, reference, checkpoint, folder, listener)
        if not settings.texts:
            listener.on_calibration("text", 0, 1)
            own = write_text(measured.path, tokenizer, checkpoint.parameters, settings.threads)
            tokens = cut([*texts, own], tokenizer, size, counts) if own else tokens
        run = _Run(checkpoint, measured, tokens, settings, listener)
        state = Unfinished.found(folder, run.key())
        calibration = run.measure(state, reference, shown_name(folder))
        written = write_calibration(folder, calibration, state.columns.importance(run.datasets, size))
        state.remove()
        with disk_errors(folder):
            if (folder / _MEASURED).exists():
                shutil.rmtree(folder / _MEASURED)
    return Calibrated(written, reused=False)


def _reference(source: Source) -> ModelReference:
    reference = source if isinstance(source, ModelReference) else parse_reference(source)
    if reference.recipe is not None:
        raise ModelReferenceError(
            f"{reference} names a format; a calibration is of a checkpoint and serves all its formats",
            f"localq calibrate {reference.without_recipe()}",
        )
    return reference


def _measured_form(
    store: Store, reference: ModelReference, checkpoint: Checkpoint, folder: Path, listener: ConversionListener
) -> Artifact:
    """The artifact that is measured: the model's own, else one that is made in the calibration's folder."""
    recipe = parse_recipe(MEASURED_AS)
    own = store.find(reference, recipe)
    if own is not None and own.manifest.revision == checkpoint.revision:
        return own
    request = Request(reference, [recipe.name], folder / _MEASURED)
    return make_forms(request, listener)[0].artifact


@contextmanager
def _own_folder(store: Store, reference: ModelReference) -> Iterator[Path]:
    """The folder of a model's calibration, which only one process at a time writes to."""
    folder = calibration_folder(store, reference)
    with ExitStack() as stack:
        with disk_errors(store.folder):
            file = store.folder / ".locks" / f"{folder.parent.name}.{folder.name}.lock"
            stack.enter_context(held_lock(file, lambda: None))
            folder.mkdir(parents=True, exist_ok=True)
        try:
            yield folder
        finally:
            for empty in (folder, folder.parent):
                remove_if_empty(empty)


@dataclass(frozen=True, slots=True)
class _Run:
    """One calibration, as far as it is not measured yet."""

    checkpoint: Checkpoint
    measured: Artifact
    tokens: CalibrationTokens
    settings: CalibrationSettings
    listener: CalibrationListener

    @property
    def layouts(self) -> list[TensorLayout]:
        """The tensors that may be quantized."""
        return [layout for layout in self.checkpoint.layouts if layout.is_quantizable]

    @property
    def datasets(self) -> list[str]:
        """The names of the texts."""
        return [text.name for text in self.tokens.texts]

    def key(self) -> dict[str, Any]:
        """What the figures depend on."""
        return {
            "revision": self.checkpoint.revision,
            "texts": [text.sha256 for text in self.tokens.texts],
            "tokens": self.settings.counts(self.checkpoint.parameters),
            "versions": library_versions(_LIBRARIES),
        }

    def measure(self, state: Unfinished, reference: ModelReference, model: str) -> Calibration:
        """Everything; `state` has what was measured before, and gets what is measured now."""
        if state.windows_done:
            self.listener.on_resumed(self._done(state), self._total)
        with self._engine() as engine, self._saved_at_the_end(state):
            self._measure_columns(engine, state)
            self._measure_tensors(engine, state)
        importance = state.columns.importance(self.datasets, len(self.tokens.windows[0]))
        errors = measure_type_errors(self.checkpoint, importance, self._on_types)
        divergence = {name: math.fsum(found) / len(found) for name, found in state.divergences.items()}
        state.count_seconds()
        return Calibration(
            model=model,
            source=source_of(reference),
            revision=self.checkpoint.revision,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            versions=library_versions(_LIBRARIES),
            measured_as=MEASURED_AS,
            texts=self.tokens.texts,
            tokens=sum(map(len, self.tokens.windows)),
            tokens_wanted=self.settings.tokens,
            sensitivity_tokens=sum(map(len, self.tokens.tensor_windows)),
            seconds=round(state.seconds, 3),
            divergence=divergence,
            sensitivity={name: divergence[name] / error for name, error in state.errors.items() if error},
            errors=errors,
        )

    def _measure_columns(self, engine: ObservedEngine, state: Unfinished) -> None:
        for window in self.tokens.windows[state.windows_done :]:
            self._report("columns", self._done(state))
            state.columns.compute(engine, window)
            state.windows_done += 1
            state.save_sometimes()

    def _measure_tensors(self, engine: ObservedEngine, state: Unfinished) -> None:
        importance = state.columns.importance(self.datasets, len(self.tokens.windows[0]))
        with self.checkpoint.weights, worker_pool() as pool:
            for number, window in enumerate(self.tokens.tensor_windows):
                measured = state.divergences
                left = [layout for layout in self.layouts if len(measured.get(layout.gguf_name, ())) <= number]
                predictions = Predictions(engine, window) if left else None
                for layout in left:
                    assert predictions is not None, "it is made where a tensor is left"
                    self._report("tensors", self._done(state))
                    coarse = CoarseTensor(self.checkpoint, layout, importance, pool)
                    divergence = predictions.divergence(coarse)
                    state.errors[layout.gguf_name] = coarse.squared_error()
                    state.divergences.setdefault(layout.gguf_name, []).append(divergence)
                    state.save_sometimes()

    @contextmanager
    def _engine(self) -> Iterator[ObservedEngine]:
        path, size = self.measured.path, len(self.tokens.windows[0])
        options = LoadOptions(threads=self.settings.threads, flash_attention=False)
        header = read_header(path)
        logits = _LOGITS_COPIES * _FLOAT32_BYTES * self.checkpoint.config.vocabulary_size * size
        use = gguf_file_memory(header, options)
        require_memory(self.measured.name, "gguf", replace(use, loading_bytes=logits), size)
        with contextlib.closing(ObservedEngine(path, options, size)) as engine:
            yield engine

    @contextmanager
    def _saved_at_the_end(self, state: Unfinished) -> Iterator[None]:
        try:
            yield
        finally:
            state.save()

    def _on_types(self, done: int, total: int) -> None:
        self._report("types", self._computed + self._types * done // max(1, total))

    def _done(self, state: Unfinished) -> int:
        windows = sum(map(len, self.tokens.windows[: state.windows_done]))
        return windows + sum(map(len, state.divergences.values())) * len(self.tokens.tensor_windows[0])

    @property
    def _computed(self) -> int:
        """Tokens that the model computes."""
        return sum(map(len, self.tokens.windows)) + len(self.layouts) * sum(map(len, self.tokens.tensor_windows))

    @property
    def _types(self) -> int:
        """The types take about as long as a tenth of that."""
        return self._computed // 10

    @property
    def _total(self) -> int:
        return self._computed + self._types

    def _report(self, part: str, done: int) -> None:
        self.listener.on_calibration(part, done, self._total)
