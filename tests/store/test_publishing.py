"""Nothing half-done is visible: exceptions, killed processes, writers at the same time, full disks."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from localq.disk import disk_errors
from localq.errors import StoreError
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.layout import MANIFEST_NAME
from localq.store.store import Store, problem_of, shown_name
from localq.store.upkeep import find_leftovers, remove_leftovers
from tests.store.conftest import Make, fail_on_wait, manifest_of, write_files

Q4 = parse_recipe("gguf-q4_0")
MODEL = parse_reference("org/name")
ROOT = Path(__file__).parents[2]


def seen(store: Store) -> list[str]:
    """Everything below the models folder but the lock files."""
    return sorted(str(path.relative_to(store.folder)) for path in store.folder.rglob("*") if ".locks" not in path.parts)


def test_nothing_is_found_before_it_is_published(store: Store) -> None:
    with store.writing(MODEL, Q4, fail_on_wait) as staging:
        files = write_files(staging, b"weights")
        assert store.find(MODEL, Q4) is None
        assert store.artifacts() == store.damaged() == []
        artifact = store.publish(staging, manifest_of(MODEL, "gguf-q4_0", shown_name(staging), files))
        assert store.find(MODEL, Q4) == artifact
    assert seen(store) == [
        "org--name",
        *(f"org--name/gguf-q4_0{end}" for end in ("", "/config.json", "/localq.json", "/model.gguf")),
    ]


def test_a_form_that_has_lost_its_manifest_is_told_and_can_be_made_or_removed(store: Store, make: Make) -> None:
    made = make("org/name")
    (made.folder / MANIFEST_NAME).unlink()
    assert store.find(MODEL, Q4) is None
    assert store.artifacts() == []
    assert store.damaged() == [made.folder]
    assert problem_of(made.folder) == f"{made.folder} has lost its localq.json"
    assert store.require_folders(MODEL) == [made.folder]
    assert remove_leftovers(store) == find_leftovers(store) == []
    assert [leftover.path for leftover in find_leftovers(store, lost=True)] == [made.folder]
    assert make("org/name") == made


def test_an_exception_leaves_nothing_behind(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.writing(MODEL, Q4, fail_on_wait) as staging:
        write_files(staging, b"half")
        raise ZeroDivisionError
    assert seen(store) == []


def test_an_exception_leaves_the_earlier_artifact_as_it_was(store: Store, make: Make) -> None:
    made = make("org/name", content=b"old")
    before = seen(store)
    with pytest.raises(KeyboardInterrupt), store.writing(MODEL, Q4, fail_on_wait) as staging:
        write_files(staging, b"half")
        raise KeyboardInterrupt
    assert seen(store) == before
    assert store.find(MODEL, Q4) == made


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
import localq.disk
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.store import Store, shown_name
from tests.store.conftest import fail_on_wait, manifest_of, write_files

folder, moment = Path(sys.argv[1]), sys.argv[2]
store, reference = Store(folder), parse_reference("org/name")

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

if moment == "removing":
    shutil.rmtree = die
    store.remove(store.forms(reference)[0].folder)
with store.writing(reference, parse_recipe("gguf-q4_0"), fail_on_wait) as staging:
    files = write_files(staging, b"new")
    if moment == "writing":
        die()
    if moment == "before the manifest":
        os.fsync = die
    if moment == "between the renames":
        localq.disk.exchange = lambda first, second: False
        rename = Path.rename
        Path.rename = lambda path, target: die() if path == staging else rename(path, target)
    if moment == "removing the old":
        shutil.rmtree = die
    store.publish(staging, manifest_of(reference, "gguf-q4_0", shown_name(staging), files))
"""


def run_killed(folder: Path, moment: str) -> None:
    command = [sys.executable, "-c", KILLED, str(folder), moment]
    process = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("moment", ["writing", "before the manifest"])
@pytest.mark.parametrize("with_earlier", [False, True])
def test_a_killed_writer_leaves_nothing_visible_and_the_next_one_cleans_up(
    store: Store, make: Make, moment: str, with_earlier: bool
) -> None:
    earlier = [make("org/name", content=b"old")] if with_earlier else []
    run_killed(store.folder, moment)
    assert [name for name in seen(store) if name.startswith("org--name/.gguf-q4_0.partial")]
    assert store.artifacts() == store.forms(MODEL) == earlier
    assert store.damaged() == []
    made = make("org/name", content=b"newer")
    assert store.artifacts() == [made]
    assert not [name for name in seen(store) if "/." in name]


@pytest.mark.parametrize("moment", ["between the renames", "removing the old", "removing"])
def test_the_leftovers_of_a_killed_replacement_or_removal_go_with_the_next_one(
    store: Store, make: Make, moment: str
) -> None:
    make("org/name", content=b"old")
    run_killed(store.folder, moment)
    assert [name for name in seen(store) if "/." in name]
    found = store.find(MODEL, Q4)
    assert found is None or found.path.read_bytes() == b"new"
    assert store.damaged() == []
    made = make("org/name", content=b"newer")
    assert store.artifacts() == [made]
    assert not [name for name in seen(store) if "/." in name]


WRITER = """
import sys
from pathlib import Path
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.store import Store, shown_name
from tests.store.conftest import manifest_of, write_files

store, reference = Store(Path(sys.argv[1])), parse_reference(sys.argv[2])
with store.writing(reference, parse_recipe("gguf-q4_0"), lambda: print("waits", flush=True)) as staging:
    print("writes", flush=True)
    sys.stdin.readline()
    files = write_files(staging, sys.argv[3].encode())
    store.publish(staging, manifest_of(reference, "gguf-q4_0", shown_name(staging), files))
print("done", flush=True)
"""


def writer(store: Store, reference: str, content: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(store.folder), reference, content]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )


def says(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_of_two_writers_the_second_waits_and_both_end_well(store: Store) -> None:
    with writer(store, "org/name", "first") as first:
        assert says(first) == "writes"
        with writer(store, "org/name", "second") as second:
            assert says(second) == "waits"
            assert store.artifacts() == []
            first.communicate("go\n")
            assert says(second) == "writes"
            found = store.find(MODEL, Q4)
            assert found is not None and found.path.read_bytes() == b"first"
            second.communicate("go\n")
    assert (first.returncode, second.returncode) == (0, 0)
    found = store.find(MODEL, Q4)
    assert found is not None and found.path.read_bytes() == b"second"


def test_a_writer_that_waits_for_one_that_is_killed_takes_over(store: Store) -> None:
    with writer(store, "org/name", "first") as first:
        assert says(first) == "writes"
        with writer(store, "org/name", "second") as second:
            assert says(second) == "waits"
            first.kill()
            assert says(second) == "writes"
            second.communicate("go\n")
    found = store.find(MODEL, Q4)
    assert found is not None and found.path.read_bytes() == b"second"


def test_two_folders_of_the_same_name_written_at_once_do_not_mix(store: Store, tmp_path: Path) -> None:
    folders = [tmp_path / part / "model" for part in "ab"]
    for folder in folders:
        folder.mkdir(parents=True)
    with writer(store, str(folders[0]), "first") as first:
        assert says(first) == "writes"
        with writer(store, str(folders[1]), "second") as second:
            assert says(second) == "waits"
            first.communicate("go\n")
            assert says(second) == "writes"
            second.communicate("go\n")
    found = [store.find(parse_reference(str(folder)), Q4) for folder in folders]
    assert [artifact.path.read_bytes() for artifact in found if artifact] == [b"first", b"second"]


def test_writers_of_different_forms_do_not_wait_for_each_other(store: Store) -> None:
    with store.writing(MODEL, Q4, fail_on_wait), store.writing(MODEL, parse_recipe("mlx-4bit"), fail_on_wait):
        pass


def test_threads_of_one_process_take_turns_as_well(store: Store) -> None:
    waits = threading.Event()
    entered: list[str] = []

    def second() -> None:
        with store.writing(MODEL, Q4, waits.set):
            entered.append("second")

    with store.writing(MODEL, Q4, fail_on_wait):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(timeout=30)
        assert entered == []
    thread.join(timeout=30)
    assert entered == ["second"]


@pytest.mark.parametrize("below", ["", "models"])
def test_a_models_folder_that_cannot_be_made_is_named(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / below)
    with pytest.raises(StoreError, match="can't write to .*file") as caught:
        store.check_room(1)
    assert "--models-dir" in caught.value.hint
    with pytest.raises(StoreError, match="can't write"), store.writing(MODEL, Q4, fail_on_wait):
        raise AssertionError("the work has begun")
    assert store.artifacts() == []


def test_too_little_room_is_refused_with_both_numbers_before_the_work(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=3_000_000_000))
    store.check_room(2_900_000_000)
    with pytest.raises(StoreError, match="3,000 MB free; 5,034 MB are needed") as caught:
        store.check_room(5_000_000_000)
    assert "localq rm" in caught.value.hint and "LOCALQ_MODELS" in caught.value.hint


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_an_error_and_leaves_nothing(store: Store, number: int) -> None:
    with (
        pytest.raises(StoreError, match="disk .* is full") as caught,
        store.writing(MODEL, Q4, fail_on_wait) as staging,
        disk_errors(staging),
    ):
        write_files(staging, b"half")
        raise OSError(number, os.strerror(number))
    assert "localq rm" in caught.value.hint
    assert isinstance(caught.value.__cause__, OSError)
    assert seen(store) == []


def test_an_error_of_another_origin_is_not_blamed_on_the_models_folder(store: Store) -> None:
    with pytest.raises(BrokenPipeError), store.writing(MODEL, Q4, fail_on_wait) as staging:
        write_files(staging, b"half")
        raise BrokenPipeError(errno.EPIPE, "a progress bar that nobody reads")
    assert seen(store) == []


def test_a_disk_that_runs_full_at_the_manifest_leaves_the_earlier_artifact(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("org/name", content=b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="full"):
        make("org/name", content=b"new")
    assert store.artifacts() == [made]
    assert made.path.read_bytes() == b"old"
