"""What `localq calibrate` measured of a model: a folder beside the model's artifacts.

models/<model>/calibration/calibration.json   where it comes from, and the figures of each tensor; written last
models/<model>/calibration/importance.gguf    the importance of each column, in llama.cpp's own form

A folder without `calibration.json` is of a calibration that was stopped; `localq calibrate` goes on with it.
"""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from localq.calibration.importance import ImportanceMatrix, read_importance, write_importance
from localq.disk import write_text
from localq.errors import CalibrationError
from localq.recipes import RECIPES
from localq.reference import ModelReference
from localq.store.layout import CALIBRATION_NAME
from localq.store.store import Store, source_of

_FILE, _IMPORTANCE = "calibration.json", "importance.gguf"
_FORMAT_VERSION = 1


@dataclass(frozen=True, slots=True)
class CalibrationText:
    """A text that a model was calibrated on."""

    name: str
    sha256: str
    """Of the whole file."""
    tokens: int
    """That were computed."""


@dataclass(frozen=True, repr=False)
class Calibration:
    """Where a calibration comes from, and what it measured. Tensors have their names in a GGUF file."""

    model: str
    """As `localq ls` shows it."""
    source: str
    """As `Manifest.source`."""
    revision: str
    """Of the checkpoint, as `Manifest.revision`."""
    created: str
    """UTC, ISO 8601."""
    versions: dict[str, str]
    """Of localq and of the libraries that measured."""
    measured_as: str
    """The format that the model was in while it was measured."""
    texts: tuple[CalibrationText, ...]
    tokens: int
    """Tokens that the importance of the columns was measured on."""
    tokens_wanted: int
    """The most that were asked for: the text may be shorter."""
    sensitivity_tokens: int
    """Tokens that the sensitivity of each tensor was measured on."""
    seconds: float
    divergence: Mapping[str, float]
    """Tensor -> mean KL divergence in nats of the whole model when only this tensor is coarse."""
    sensitivity: Mapping[str, float]
    """Tensor -> divergence / weighted squared error of the coarse tensor.

    The weighted squared error is the sum over rows and columns of importance x (coarse value - value)^2; the importance
    of a column is its mean squared input, or 1 where none was measured.
    """
    errors: Mapping[str, Mapping[str, float]]
    """Type key -> tensor -> weighted squared error of the whole tensor in this type, estimated on some of its rows."""
    importance_sha256: str = ""
    folder: Path = Path()
    """Where it is; not in the file."""

    @property
    def path(self) -> Path:
        """The JSON file."""
        return self.folder / _FILE

    @property
    def importance_path(self) -> Path:
        """The importance matrix, which llama-quantize reads too."""
        return self.folder / _IMPORTANCE

    @cached_property
    def importance(self) -> ImportanceMatrix:
        """The importance of each column. Raises CalibrationError where the file is missing, damaged or another one."""
        matrix = read_importance(self.importance_path)
        if _sha256(self.importance_path) != self.importance_sha256:
            raise _damaged(self.importance_path, self.source)
        return matrix

    @property
    def bytes(self) -> int:
        """Of both files."""
        return sum(file.stat().st_size for file in (self.path, self.importance_path) if file.exists())

    def __repr__(self) -> str:
        return f"<Calibration of {self.model}, {len(self.sensitivity)} tensors, {self.folder}>"

    def record(self) -> dict[str, Any]:
        """What is in the file."""
        return {name: value for name, value in asdict(self).items() if name != "folder"}


def calibration_folder(store: Store, reference: ModelReference) -> Path:
    """Where a model's calibration is, or would be."""
    return store.place(reference, next(iter(RECIPES.values()))).parent / CALIBRATION_NAME


def write_calibration(folder: Path, calibration: Calibration, importance: ImportanceMatrix) -> Calibration:
    """Write both files into the folder, or replace them. Raises LocalqError where the disk refuses."""
    write_importance(folder / _IMPORTANCE, importance)
    written = replace(calibration, folder=folder, importance_sha256=_sha256(folder / _IMPORTANCE))
    write_text(written.path, json.dumps({"format_version": _FORMAT_VERSION, **written.record()}, indent=1) + "\n")
    return written


def read_calibration(store: Store, reference: ModelReference) -> Calibration | None:
    """A model's calibration, of any revision of its checkpoint; None where there is none.

    Raises CalibrationError for a damaged file.
    """
    file = calibration_folder(store, reference) / _FILE
    if not file.is_file():
        return None
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
        if value.pop("format_version") != _FORMAT_VERSION:
            raise ValueError("written by another version of localq")
        value["texts"] = tuple(CalibrationText(**text) for text in value["texts"])
        known = {field.name for field in fields(Calibration)}
        found = Calibration(**{key: item for key, item in value.items() if key in known}, folder=file.parent)
        _check_figures(found)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(file, source_of(reference)) from error
    return found if found.source == source_of(reference) or reference.path is None else None


def find_calibration(store: Store, reference: ModelReference, revision: str) -> Calibration | None:
    """The calibration of this revision of a checkpoint; None where there is none, or it is damaged."""
    try:
        found = read_calibration(store, reference)
    except CalibrationError:
        return None
    return found if found is not None and found.revision == revision else None


def calibration_texts(artifact_folder: Path) -> set[str]:
    """SHA-256 of the texts that the model of an artifact was calibrated on; empty where it was not."""
    file = artifact_folder.parent / CALIBRATION_NAME / _FILE
    try:
        return {text["sha256"] for text in json.loads(file.read_text(encoding="utf-8"))["texts"]}
    except (OSError, ValueError, KeyError, TypeError):
        return set()


def require_calibration(store: Store, reference: ModelReference, revision: str) -> Calibration:
    """As `find_calibration`; raises CalibrationError that says what is missing, and the command that helps."""
    found = read_calibration(store, reference)
    model = reference.without_recipe()
    if found is None:
        raise CalibrationError(f"{model} was not calibrated", _command(str(model)))
    if found.revision != revision:
        raise CalibrationError(
            f"the calibration of {model} is of another revision of the checkpoint: {found.revision}, not {revision}",
            _command(str(model)),
        )
    return found


def _check_figures(calibration: Calibration) -> None:
    """Raise ValueError for figures that are no numbers, or below zero."""
    tables = [calibration.divergence, calibration.sensitivity, *calibration.errors.values()]
    if not all(value >= 0 for table in tables for value in table.values()):
        raise ValueError("a figure is below zero, or not a number")


def _damaged(file: Path, source: str) -> CalibrationError:
    return CalibrationError(f"{file} is damaged", _command(source))


def _command(source: str) -> str:
    return f"measure it: localq calibrate {shlex.quote(source)}"


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
