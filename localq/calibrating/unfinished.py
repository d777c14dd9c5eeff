"""What a calibration that was stopped had measured, so that the next one goes on from there.

Two files beside the finished ones: the sums of the columns, and the figures of the tensors. They belong to one
checkpoint, one text and one version of the libraries (`key`); a calibration of anything else begins anew.
"""

from __future__ import annotations

import json
import time
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from localq.calibrating.columns import ColumnSums
from localq.disk import disk_errors, replacing

SECONDS_BETWEEN_SAVES = 10.0
"""A calibration that is killed, so that it can't save, loses at most what it measured in that time."""

_FIGURES, _SUMS = "unfinished.json", "unfinished.npz"


@dataclass
class Unfinished:
    """What was measured so far; saved from time to time, and at the end of the `with` block whatever ends it."""

    folder: Path
    key: dict[str, Any]
    windows_done: int = 0
    columns: ColumnSums = field(default_factory=ColumnSums)
    errors: dict[str, float] = field(default_factory=dict)
    """Tensor -> weighted squared error of the coarse one."""
    divergences: dict[str, list[float]] = field(default_factory=dict)
    """Tensor -> mean KL divergence in each window so far."""
    seconds: float = 0.0
    """Of all runs."""
    _started: float = field(default_factory=time.monotonic)
    _saved: float = field(default_factory=time.monotonic)

    @classmethod
    def found(cls, folder: Path, key: dict[str, Any]) -> Unfinished:
        """What an earlier run left in the folder for the same key; else nothing measured."""
        state = cls(folder, key)
        try:
            value = json.loads((folder / _FIGURES).read_text(encoding="utf-8"))
            if value["key"] == json.loads(json.dumps(key)):
                state._read_sums()
                state.errors, state.divergences = value["errors"], value["divergences"]
                state.seconds = value["seconds"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, zipfile.BadZipFile):
            return cls(folder, key)  # there is none, or it is damaged
        return state

    def save_sometimes(self) -> None:
        """Save if that was long ago."""
        if time.monotonic() - self._saved >= SECONDS_BETWEEN_SAVES:
            self.save()

    def save(self) -> None:
        """Write what was measured. Raises StoreError where the disk refuses."""
        import numpy as np

        self.count_seconds()
        arrays: dict[str, Any] = {f"sums/{name}": values for name, values in self.columns.sums.items()}
        arrays |= {f"counts/{name}": values for name, values in self.columns.counts.items()}
        with disk_errors(self.folder):
            with replacing(self.folder / _SUMS) as stream:
                np.savez(stream, windows=np.array(self.windows_done), **arrays)
            with replacing(self.folder / _FIGURES) as stream:
                names = ("key", "errors", "divergences", "seconds")
                stream.write(json.dumps({name: getattr(self, name) for name in names}).encode())
        self._saved = time.monotonic()

    def count_seconds(self) -> None:
        """Bring `seconds` up to date."""
        now = time.monotonic()
        self.seconds += now - self._started
        self._started = now

    def remove(self) -> None:
        """Delete both files."""
        with disk_errors(self.folder):
            for name in (_FIGURES, _SUMS):
                (self.folder / name).unlink(missing_ok=True)

    def _read_sums(self) -> None:
        import numpy as np

        with np.load(self.folder / _SUMS) as saved:
            for key in saved.files:
                kind, _, name = key.partition("/")
                if name:
                    getattr(self.columns, kind)[name] = saved[key]
            self.windows_done = int(saved["windows"])
