"""The verb: what it writes, how it goes on after it was stopped, and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localq.calibrating import unfinished
from localq.calibrating.calibrate import CalibrationListener, CalibrationSettings, calibrate_model
from localq.calibration.calibration import find_calibration, read_calibration, require_calibration
from localq.calibration.importance import read_importance
from localq.errors import CalibrationError, ModelReferenceError, OptionError, UnsupportedModelError
from localq.reference import parse_reference
from localq.store.store import Store
from tests.tiny_checkpoints import write_checkpoint

pytestmark = pytest.mark.usefixtures("few_sampled_rows")
FolderOf = Callable[[str], Path]


class Stops(CalibrationListener):
    """Counts the steps, and stops the calibration as Ctrl-C does."""

    def __init__(self, after: int | None = None) -> None:
        self.steps: list[tuple[str, int, int]] = []
        self.after = after
        self.resumed: list[tuple[int, int]] = []

    def on_calibration(self, part: str, done_tokens: int, total_tokens: int) -> None:
        self.steps.append((part, done_tokens, total_tokens))
        if len(self.steps) == self.after:
            raise KeyboardInterrupt

    def on_resumed(self, done_tokens: int, total_tokens: int) -> None:
        self.resumed.append((done_tokens, total_tokens))


@pytest.fixture
def settings(text_file: Path) -> CalibrationSettings:
    return CalibrationSettings(texts=(text_file,), tokens=1536, sensitivity_tokens=128)


@pytest.mark.parametrize("name", ["llama-3.2", "phi-3-4k", "phi-3.5-moe"])
def test_a_calibration_has_every_tensor_and_where_it_comes_from(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings, name: str, text_file: Path
) -> None:
    listener = Stops()
    done = calibrate_model(str(folder_of(name)), settings, tmp_path, listener)
    found = done.calibration
    assert not done.reused
    store, reference = Store(tmp_path), parse_reference(str(folder_of(name)))
    assert read_calibration(store, reference) == found == require_calibration(store, reference, found.revision)
    files = sorted(file.name for file in found.folder.rglob("*"))
    assert files == ["calibration.json", "importance.gguf"]  # what it was measured with is gone

    matrices = set(found.sensitivity)
    assert matrices == set(found.divergence) == set(found.errors["mlx-4-g64"])
    assert "token_embd.weight" in matrices
    in_layers = {name for name in matrices if name.startswith("blk.")}
    assert in_layers == {entry for entry in found.importance.sums if "ffn_gate_inp" not in entry}
    assert all(value > 0 for value in found.sensitivity.values())

    (text,) = found.texts
    assert (text.name, text.tokens) == (str(text_file), found.tokens)
    assert found.tokens == found.importance.chunk_count * 512
    assert found.sensitivity_tokens == 128
    assert found.revision and found.versions["llama-cpp-python"] and found.created and found.seconds > 0
    done_tokens = [step[1] for step in listener.steps]
    assert done_tokens == sorted(done_tokens)
    assert listener.steps[-1][0] == "types" and listener.steps[-1][1] == listener.steps[-1][2]


@pytest.mark.parametrize("after", [1, 3, 9])
def test_a_stopped_calibration_goes_on_and_ends_with_the_same_figures(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings, after: int
) -> None:
    checkpoint = str(folder_of("llama-3.2"))
    whole = calibrate_model(checkpoint, settings, tmp_path / "whole", all_steps := Stops()).calibration
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(checkpoint, settings, tmp_path / "stopped", stopped := Stops(after))
    assert find_calibration(Store(tmp_path / "stopped"), parse_reference(checkpoint), whole.revision) is None
    resumed = calibrate_model(checkpoint, settings, tmp_path / "stopped", rest := Stops()).calibration
    assert len(rest.steps) == len(all_steps.steps) - after + 1
    assert rest.steps[0] == stopped.steps[-1]
    assert bool(rest.resumed) == (after > 1)
    assert (resumed.sensitivity, resumed.divergence, resumed.errors) == (
        whole.sensitivity,
        whole.divergence,
        whole.errors,
    )
    assert resumed.importance_path.read_bytes() == whole.importance_path.read_bytes()
    assert sorted(file.name for file in resumed.folder.iterdir()) == ["calibration.json", "importance.gguf"]


def test_a_killed_calibration_goes_on_from_what_was_saved(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unfinished, "SECONDS_BETWEEN_SAVES", 0.0)
    checkpoint = str(folder_of("llama-3.2"))
    saves = []
    save = unfinished.Unfinished.save
    monkeypatch.setattr(unfinished.Unfinished, "save", lambda state: saves.append(state) or save(state))
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(checkpoint, settings, tmp_path, Stops(6))
    assert len(saves) == 6  # one after each step, and the last one
    (folder,) = tmp_path.glob("*/calibration")
    assert {"unfinished.json", "unfinished.npz"} <= {file.name for file in folder.iterdir()}
    rest = Stops()
    calibrate_model(checkpoint, settings, tmp_path, rest)
    assert rest.resumed


def test_what_was_measured_of_another_text_or_of_damaged_files_is_not_gone_on_with(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings
) -> None:
    checkpoint = str(folder_of("llama-3.2"))
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(checkpoint, settings, tmp_path, Stops(6))
    other = tmp_path / "other.txt"
    other.write_text(settings.texts[0].read_text() + "and more")
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(checkpoint, replace(settings, texts=(other,)), tmp_path, listener := Stops(4))
    assert listener.resumed == [] and listener.steps[0][1] == 0
    (folder,) = tmp_path.glob("*/calibration")
    (folder / "unfinished.npz").write_bytes(b"PK damaged")
    with pytest.raises(KeyboardInterrupt):
        calibrate_model(checkpoint, replace(settings, texts=(other,)), tmp_path, listener := Stops(1))
    assert listener.steps[0][1] == 0


def test_a_calibration_is_found_again_and_force_measures_anew(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings
) -> None:
    checkpoint = str(folder_of("llama-3.2"))
    first = calibrate_model(checkpoint, settings, tmp_path)
    for again in (settings, CalibrationSettings()):
        found = calibrate_model(checkpoint, again, tmp_path, listener := Stops())
        assert found.reused and found.calibration == first.calibration
        assert listener.steps == []
    forced = calibrate_model(checkpoint, replace(settings, force=True), tmp_path)
    assert not forced.reused and forced.calibration.sensitivity == first.calibration.sensitivity
    more = calibrate_model(checkpoint, replace(settings, tokens=1024), tmp_path)
    assert not more.reused and more.calibration.tokens == 1024


def test_a_calibration_of_another_revision_is_refused_with_the_command_that_helps(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings
) -> None:
    checkpoint = shutil.copytree(folder_of("llama-3.2"), tmp_path / "tiny")
    models = tmp_path / "models"
    old = calibrate_model(str(checkpoint), settings, models).calibration
    write_checkpoint(checkpoint, "llama-3.2", seed=1)
    store, reference = Store(models), parse_reference(str(checkpoint))
    with pytest.raises(CalibrationError, match="another revision") as caught:
        require_calibration(store, reference, "other")
    assert f"localq calibrate {checkpoint}" in caught.value.hint
    assert find_calibration(store, reference, "other") is None
    new = calibrate_model(str(checkpoint), settings, models)
    assert not new.reused and new.calibration.revision != old.revision


def test_damaged_files_are_named_with_the_command_that_helps(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings
) -> None:
    checkpoint = str(folder_of("llama-3.2"))
    found = calibrate_model(checkpoint, settings, tmp_path).calibration
    store, reference = Store(tmp_path), parse_reference(checkpoint)
    other = np.frombuffer(found.importance_path.read_bytes(), np.uint8).copy()
    other[-1] ^= 1
    found.importance_path.write_bytes(other.tobytes())
    read_importance(found.importance_path)  # it is a matrix, but not this one
    with pytest.raises(CalibrationError, match=r"importance\.gguf is damaged") as caught:
        _ = require_calibration(store, reference, found.revision).importance
    assert "localq calibrate" in caught.value.hint
    value = json.loads(found.path.read_text())
    for damage in (b"{", b"[]", json.dumps({**value, "sensitivity": {"x": -1}}).encode(), b'{"format_version": 1}'):
        found.path.write_bytes(damage)
        with pytest.raises(CalibrationError, match=r"calibration\.json is damaged"):
            read_calibration(store, reference)
        assert find_calibration(store, reference, found.revision) is None
    assert not calibrate_model(checkpoint, settings, tmp_path).reused


def test_a_model_that_was_not_calibrated_is_told_so(folder_of: FolderOf, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="was not calibrated") as caught:
        require_calibration(Store(tmp_path), parse_reference("toy-llama"), "any")
    assert "localq calibrate toy-llama" in caught.value.hint


def test_what_cant_be_calibrated_is_refused_before_anything_is_written(folder_of: FolderOf, tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a few words")
    models = tmp_path / "models"
    tiny = str(folder_of("llama-3.2"))
    with pytest.raises(OptionError, match="at least 512 are needed"):
        calibrate_model(tiny, CalibrationSettings(texts=(short,)), models)
    with pytest.raises(OptionError, match="can't read"):
        calibrate_model(tiny, CalibrationSettings(texts=(tmp_path / "none.txt",)), models)
    with pytest.raises(OptionError, match="tokens is 3"):
        CalibrationSettings(tokens=3)
    with pytest.raises(ModelReferenceError, match="names a format"):
        calibrate_model("toy-llama:gguf-q4_k_m", None, models)
    with pytest.raises(UnsupportedModelError):
        calibrate_model(str(folder_of("phi-3-small")), None, models)
    assert not models.exists() or [entry.name for entry in models.iterdir() if entry.name != ".locks"] == []


def test_an_artifact_that_is_there_is_measured_and_kept(
    folder_of: FolderOf, tmp_path: Path, settings: CalibrationSettings
) -> None:
    from localq.conversion.convert import convert

    checkpoint = str(folder_of("llama-3.2"))
    (artifact,) = convert(checkpoint, ["gguf-bf16"], models_dir=tmp_path)
    found = calibrate_model(checkpoint, settings, tmp_path).calibration
    assert artifact.path.is_file()
    assert Store(tmp_path).artifacts() == [artifact]  # `ls` does not show the calibration as an artifact
    assert Store(tmp_path).damaged() == []
    assert found.folder.parent == artifact.folder.parent
