"""A probe of logits, recorded beside an artifact and compared later."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localq.conversion.convert import convert
from localq.measure.probe import PROBE_NAME, check_probe, probe_or_error
from localq.store.manifest import Artifact


@pytest.fixture(params=["gguf-q8_0", "mlx-4bit"])
def artifact(request: pytest.FixtureRequest, tmp_path: Path) -> Artifact:
    return convert("toy-llama", request.param, models_dir=tmp_path)[0]


def test_logits_are_recorded_the_first_time_and_are_the_same_later(artifact: Artifact) -> None:
    used = artifact.last_used
    assert check_probe(artifact).state == "recorded"
    again = check_probe(artifact)
    assert again.state == "same" and again.difference is not None and again.difference < 1e-3 and not again.versions
    assert artifact.last_used == used


def test_other_logits_and_versions_are_told(artifact: Artifact) -> None:
    check_probe(artifact)
    file = artifact.folder / PROBE_NAME
    record = json.loads(file.read_text())
    record["logits"][7] += 5
    record["versions"]["mlx"] = "0.1"
    file.write_text(json.dumps(record))
    result = check_probe(artifact)
    assert result.state == "differs" and "mlx 0.1 -> " in result.versions


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"logits": [1], "versions": {}}', '{"logits": 1, "versions": 2}'])
def test_a_record_that_can_not_be_read_is_named(artifact: Artifact, text: str) -> None:
    (artifact.folder / PROBE_NAME).write_text(text)
    assert f"{PROBE_NAME} can't be read" in probe_or_error(artifact).state


def test_an_artifact_that_can_not_be_opened_fails(artifact: Artifact) -> None:
    (artifact.folder / "tokenizer.json").unlink()
    assert probe_or_error(artifact).state.startswith("failed: ")
