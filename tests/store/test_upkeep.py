"""Leftovers of killed processes, and artifacts that changed on disk."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from localq.conversion.convert import convert
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.store import Store
from localq.store.upkeep import changed_files, remove_leftovers

RECIPE = parse_recipe("gguf-q8_0")
KILLED = """
import os, signal, sys
from localq.conversion import gguf
from localq.conversion.convert import convert
plain = gguf.GgufFile._write
def write(self, rows, data):
    plain(self, rows, data)
    self._output._stream.flush()
    os.kill(os.getpid(), signal.SIGKILL)
gguf.GgufFile._write = write
convert("toy-llama", ["gguf-q8_0"], models_dir=sys.argv[1])
"""


def kill_a_conversion(models: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(models)], check=False)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_conversion_left_is_removed_and_artifacts_stay(tmp_path: Path) -> None:
    (artifact,) = convert("toy-llama", ["gguf-q4_0"], models_dir=tmp_path)
    kill_a_conversion(tmp_path)
    (removed,) = remove_leftovers(Store(tmp_path))
    assert removed.path.name.startswith(".gguf-q8_0.partial-") and removed.bytes > 0 and not removed.path.exists()
    assert remove_leftovers(Store(tmp_path)) == []
    assert Store(tmp_path).artifacts() == [artifact]


def test_the_next_conversion_removes_it_also_when_it_makes_something_else(tmp_path: Path) -> None:
    kill_a_conversion(tmp_path)
    convert("toy-phi", ["gguf-q8_0"], models_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["toy-phi"]


def test_what_is_being_written_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing(parse_reference("toy-llama"), RECIPE, lambda: None) as staging:
        (staging / "half").write_bytes(b"...")
        other = subprocess.Popen([sys.executable, "-m", "localq", "prune", "--models-dir", str(tmp_path)])
        assert other.wait(timeout=60) == 0
        assert (staging / "half").exists()
    assert not staging.exists()


@pytest.mark.parametrize("process", [os.getpid(), 1], ids=["own", "first"])
def test_what_was_half_deleted_is_removed_whichever_processes_live(tmp_path: Path, process: int) -> None:
    doomed = tmp_path / "toy-llama" / f".gguf-q8_0.removed-{process}"
    doomed.mkdir(parents=True)
    assert [leftover.path for leftover in remove_leftovers(Store(tmp_path))] == [doomed]
    assert not doomed.parent.exists()


@pytest.mark.parametrize("act", ["changed", "lost"])
def test_a_file_that_changed_is_named(tmp_path: Path, act: str) -> None:
    (artifact,) = convert("toy-llama", ["gguf-q4_0"], models_dir=tmp_path)
    seen: list[tuple[int, int]] = []
    assert changed_files(artifact, lambda done, total: seen.append((done, total))) == []
    assert seen[-1] == (artifact.manifest.bytes, artifact.manifest.bytes)
    with artifact.path.open("r+b") as stream:
        stream.seek(-100, os.SEEK_END)
        stream.write(b"other")
    if act == "lost":
        artifact.path.unlink()
    assert changed_files(artifact, lambda done, total: None) == [artifact.path.name]


def test_verify_sets_its_exit_status(tmp_path: Path) -> None:
    (artifact,) = convert("toy-llama", ["gguf-q4_0"], models_dir=tmp_path)
    command = [sys.executable, "-m", "localq", "verify", "--models-dir", str(tmp_path)]
    sound = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (sound.returncode, sound.stderr) == (0, "") and "unchanged" in sound.stdout
    artifact.path.write_bytes(bytes(artifact.path.stat().st_size))
    broken = subprocess.run([*command, "toy-llama"], capture_output=True, text=True, check=False)
    assert broken.returncode == 1 and f"changed: {artifact.path.name}" in broken.stdout
