"""The quick part of the torture of the models folder: a few cases of each kind, in a process with faults.c."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.crashes import Call, FileSystem

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(sys.platform != "linux" or shutil.which("cc") is None, reason="faults.c needs Linux and cc")
def test_nothing_is_lost_by_failing_calls_kills_power_cuts_races_and_damage(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.torture.store"]
    parts = [["faults", "--cases", "30"], ["kills", "--cases", "2"], ["crashes", "corruptions", "--cases", "30"]]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    for part in [*parts, ["races", "--cases", "1"]]:
        done = subprocess.run([*command, *part], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def state_after(folder: Path, calls: list[Call], seed: int) -> set[str]:
    system = FileSystem(folder)
    system.cut_power(calls, random.Random(seed))
    written = folder.with_name("state")
    system.write(written)
    found = {f"{path.relative_to(written)}={path.read_text() if path.is_file() else ''}" for path in written.rglob("*")}
    shutil.rmtree(written)
    return found


def test_a_power_cut_keeps_what_was_synced_and_may_lose_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    (folder / "old").mkdir(parents=True)
    new, write = Call("create", f"{folder}/new", "", 0, b""), Call("write", f"{folder}/new", "", 0, b"text")
    sync = [Call("fsync", f"{folder}/new", "", 0, b""), Call("fsync", str(folder), "", 0, b"")]
    removed = Call("unlink", f"{folder}/old", "", 0, b"")
    outcomes = [state_after(folder, [new, write, *sync, removed], seed) for seed in range(40)]
    assert {"new=text"} in outcomes and {"new=text", "old="} in outcomes
    assert all("new=text" in outcome for outcome in outcomes)
    outcomes = [state_after(folder, [new, write, removed], seed) for seed in range(40)]
    assert {"old="} in outcomes and {"new=", "old="} in outcomes and {"new=text"} in outcomes
