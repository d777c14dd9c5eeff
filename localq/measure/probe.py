"""A probe of an artifact: some of the logits after a fixed prompt, kept beside it to be compared later.

Hashes tell that the files are unchanged; this tells that they still open, and that the runtime still computes from them
what it computed before.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from localq.disk import write_text
from localq.errors import EngineError, LocalqError
from localq.model import open_form
from localq.options import LoadOptions
from localq.store.manifest import Artifact
from localq.version import library_versions

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PROBE_NAME = "localq-probe.json"
"""Not in the manifest: it is made after the artifact."""

_PROMPT_TOKENS = 16
_LOGITS = 256
_LARGEST_DIFFERENCE = 0.1
"""Standard deviations of the logits: other processors and versions round in other places."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """What came of a probe."""

    state: str
    """`same`, `differs`, or `recorded` where there was nothing to compare with."""
    difference: float | None = None
    """The largest one between two logits, in standard deviations of the recorded ones."""
    versions: str = ""
    """Libraries whose version is another one than that of the record."""


def check_probe(artifact: Artifact) -> ProbeResult:
    """Open an artifact and compare its logits with the record; the first time they are recorded.

    Raises what opening a model raises, EngineError for logits that are no numbers or a record that can't be read,
    LocalqError where it can't be written.
    """
    import numpy as np

    logits = _logits(artifact)
    file = artifact.folder / PROBE_NAME
    versions = library_versions(("llama-cpp-python", "mlx", "mlx-lm"))
    if not np.isfinite(logits).all():
        raise EngineError(f"{artifact.name} gives logits that are no numbers")
    if not file.exists():
        write_text(file, json.dumps({"logits": [round(float(value), 6) for value in logits], "versions": versions}))
        return ProbeResult("recorded")
    recorded, before = _read(file, len(logits))
    difference = float(np.abs(logits - recorded).max() / max(float(recorded.std()), 1e-6))
    changed = [
        f"{name} {before.get(name)} -> {version}" for name, version in versions.items() if before.get(name) != version
    ]
    state = "same" if difference <= _LARGEST_DIFFERENCE else "differs"
    return ProbeResult(state, difference, ", ".join(changed))


def _logits(artifact: Artifact) -> NDArray[np.float32]:
    """Of at most 256 tokens, evenly spread over the vocabulary, after a prompt of 16 tokens of it."""
    with open_form(artifact.folder, LoadOptions(), counts_as_use=False) as model:
        vocabulary = model.engine.vocabulary_size
        length = min(_PROMPT_TOKENS, model.context_length - 1)
        model.engine.prefill([(1 + number * 7919) % vocabulary for number in range(length)])
        logits = model.engine.logits()
        return logits[:: max(1, vocabulary // _LOGITS)][:_LOGITS].copy()


def _read(file: Path, count: int) -> tuple[NDArray[np.float32], dict[str, str]]:
    import numpy as np

    try:
        value = json.loads(file.read_bytes())
        logits = np.array(value["logits"], dtype=np.float32)
        if logits.shape != (count,) or not np.isfinite(logits).all():
            raise ValueError
        return logits, {str(name): str(version) for name, version in value["versions"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(
            f"{file} can't be read", "delete it: the next `localq verify --deep` writes it again"
        ) from error


def probe_or_error(artifact: Artifact) -> ProbeResult:
    """As `check_probe`; an error becomes the state."""
    try:
        return check_probe(artifact)
    except LocalqError as error:
        return ProbeResult(f"failed: {error.message}")
