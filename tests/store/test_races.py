"""Commands at the same time, calls that fail between two others, folders without locks: no artifact is lost."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import localq.disk
import localq.store.manifest
import localq.store.upkeep
from localq.disk import exchange, put_in_place
from localq.errors import StoreError
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store import leftovers
from localq.store.manifest import Manifest, read_artifact, read_manifest
from localq.store.store import Store
from localq.store.upkeep import changed_files, find_leftovers, remove_leftovers
from tests.store.conftest import Make, fail_on_wait, write_files

Q4 = parse_recipe("gguf-q4_0")
MODEL = parse_reference("org/name")


def hidden(store: Store) -> list[str]:
    return [path.name for path in store.folder.glob("*/.*") if path.parent.name != ".locks"]


def failing(number: int) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


def without_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(localq.disk, "exchange", lambda first, second: False)


def test_two_names_are_exchanged_in_one_step(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "inside").touch()
    (tmp_path / "b").write_text("a file")
    assert exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b" / "inside").exists() and (tmp_path / "a").read_text() == "a file"
    with pytest.raises(FileNotFoundError):
        exchange(tmp_path / "a", tmp_path / "c")


@pytest.mark.parametrize("can_exchange", [True, False])
def test_what_can_not_be_put_in_place_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    new, old, spare = (tmp_path / name for name in ("new", "old", "spare"))
    for folder in (new, old):
        folder.mkdir()
        (folder / folder.name).touch()
    if not can_exchange:
        without_exchange(monkeypatch)
        rename = Path.rename
        monkeypatch.setattr(
            Path, "rename", lambda path, target: failing(errno.EIO)() if path == new else rename(path, target)
        )
    else:
        monkeypatch.setattr(localq.disk, "sync_folder", failing(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        put_in_place(new, old, spare)
    assert sorted(path.name for path in tmp_path.glob("*/*")) == ["new", "old"]
    assert (old / "old").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_the_old_artifact_is_deleted_after_the_new_name_is_on_the_disk(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    make("org/name", content=b"old")
    if not can_exchange:
        without_exchange(monkeypatch)
    synced: list[str] = []
    sync, remove = localq.disk.sync_folder, shutil.rmtree

    def note_and_remove(path: Path) -> None:
        assert synced[-1] == "org--name"
        remove(path)

    monkeypatch.setattr(localq.disk, "sync_folder", lambda folder: (synced.append(folder.name), sync(folder)))
    monkeypatch.setattr(shutil, "rmtree", note_and_remove)
    assert make("org/name", content=b"new").path.read_bytes() == b"new"
    assert hidden(store) == []


def test_a_new_models_folder_is_synced_in_the_folder_above(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(localq.disk, "sync_folder", synced.append)
    make("org/name")
    assert {store.folder, store.folder.parent} <= set(synced)


@pytest.mark.parametrize("name", [".gguf-q4_0.replaced", ".gguf-q4_0.partial", ".gguf-q4_0.replaced-0000aa-0000bbbb"])
@pytest.mark.parametrize("act", ["prune", "another form", "the same form"])
def test_a_whole_artifact_out_of_its_place_is_put_back(store: Store, make: Make, name: str, act: str) -> None:
    made = make("org/name", content=b"old")
    out = made.folder.with_name(name)
    made.folder.rename(out)
    old = time.time() - 3600  # also one of another machine, which no lock tells of
    for path in (out, *out.iterdir()):
        os.utime(path, (old, old))
    if act == "prune":
        (found,) = find_leftovers(store)
        assert found.is_artifact
        assert remove_leftovers(store) == [found]
    elif act == "another form":
        remove_leftovers(store)
        make("toy-phi")
    else:
        with store.writing(MODEL, Q4, fail_on_wait):
            assert store.find(MODEL, Q4) == made
    assert store.find(MODEL, Q4) == made
    assert hidden(store) == []


def test_of_two_whole_artifacts_out_of_place_one_is_put_back_and_what_was_removed_is_not(
    store: Store, make: Make
) -> None:
    made = make("org/name")
    for name in (".gguf-q4_0.replaced", ".gguf-q4_0.partial", ".gguf-q4_0.removed-1"):
        shutil.copytree(made.folder, made.folder.with_name(name))
    shutil.rmtree(made.folder)
    remove_leftovers(store)
    assert store.artifacts() == [made] and hidden(store) == []
    made.folder.rename(made.folder.with_name(".gguf-q4_0.removed-1"))
    remove_leftovers(store)
    assert store.artifacts() == [] and hidden(store) == []


def test_what_can_not_be_read_now_is_not_deleted(store: Store, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = make("org/name")
    away = made.folder.with_name(".gguf-q4_0.replaced")
    for owner, name in ((os, "open"), (Path, "stat")):
        made.folder.rename(away)
        with monkeypatch.context() as patch:
            plain = getattr(owner, name)

            def read(path: Path, *rest: object, plain: Any = plain, **named: object) -> object:
                return failing(errno.EIO)() if Path(path).parent == away else plain(path, *rest, **named)

            patch.setattr(owner, name, read)
            assert remove_leftovers(store) == []
        assert [found.is_artifact for found in remove_leftovers(store)] == [True]
        assert store.artifacts() == [made]


def test_prune_holds_the_lock_while_it_deletes(store: Store, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    leftover = make("org/name").folder.with_name(".gguf-q4_0.partial")
    leftover.mkdir()
    clear = localq.store.upkeep.clear

    def clear_while_another_waits(found: leftovers.Leftover) -> None:
        with store.lock_if_free(leftover.parent, "gguf-q4_0") as lock:
            assert lock is None
        clear(found)

    monkeypatch.setattr(localq.store.upkeep, "clear", clear_while_another_waits)
    assert len(remove_leftovers(store)) == 1


def test_a_model_folder_that_goes_away_at_once_is_made_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder, times = localq.disk.make_folder, iter([True, True, False])

    def make_and_lose(folder: Path) -> None:
        make_folder(folder)
        if folder.name == "org--name" and next(times):
            folder.rmdir()

    monkeypatch.setattr("localq.store.store.make_folder", make_and_lose)
    with store.writing(MODEL, Q4, fail_on_wait) as staging:
        assert staging.is_dir()


def test_a_staging_folder_that_can_not_be_made_leaves_no_empty_folder(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    mkdir = Path.mkdir

    def full(path: Path, *given: object, **named: object) -> None:
        if ".partial" in path.name:
            failing(errno.ENOSPC)()
        mkdir(path, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(StoreError, match="is full"), store.writing(MODEL, Q4, fail_on_wait):
        raise AssertionError("the work has begun")
    assert [path.name for path in store.folder.iterdir()] == [".locks"]


def test_an_artifact_that_is_replaced_while_it_is_read_is_not_damaged(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = make("org/name", content=b"old").manifest
    new = make("org/name", content=b"newer")
    answers = iter([old, new.manifest])
    monkeypatch.setattr(localq.store.manifest, "read_manifest", lambda folder: next(answers))
    assert read_artifact(new.folder) == new


@pytest.mark.parametrize("after", ["replaced", "removed"])
def test_an_artifact_that_goes_while_it_is_verified_is_not_damaged(store: Store, make: Make, after: str) -> None:
    old = make("org/name", content=b"old")
    if after == "replaced":
        make("org/name", content=b"new")
    else:
        store.remove(old.folder)
    assert changed_files(old, lambda done, total: None) == []


def test_one_that_is_removed_while_it_is_read_is_none(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("org/name")
    made.path.unlink()
    answers: list[Manifest | None] = [made.manifest, None]
    monkeypatch.setattr(localq.store.manifest, "read_manifest", lambda folder: answers.pop(0))
    assert read_artifact(made.folder) is None


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "fifo"])
@pytest.mark.parametrize("name", [".gguf-q4_0.partial", ".gguf-q4_0.replaced", ".gguf-q4_0.removed-1"])
def test_anything_named_as_a_leftover_blocks_no_form(store: Store, make: Make, kind: str, name: str) -> None:
    model = store.folder / "org--name"
    model.mkdir(parents=True)
    if kind == "fifo":
        os.mkfifo(model / name)
    elif kind == "file":
        (model / name).write_text("half")
    else:
        (model / name).symlink_to(store.folder if kind == "link" else "nowhere")
    assert make("org/name").path.exists()
    assert hidden(store) == []


@pytest.mark.parametrize("kind", ["file", "link"])
def test_a_file_or_link_in_the_place_of_a_form_is_replaced(store: Store, make: Make, kind: str) -> None:
    place = store.folder / "org--name" / "gguf-q4_0"
    place.parent.mkdir(parents=True)
    if kind == "file":
        place.touch()
    else:
        place.symlink_to("nowhere")
    assert store.artifacts() == []
    made = make("org/name")
    assert store.artifacts() == [made]
    assert hidden(store) == []


@pytest.mark.parametrize("locks", ["refused", "ignored"])
def test_without_working_locks_work_is_done_twice_and_nothing_is_lost(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch, locks: str
) -> None:
    monkeypatch.setattr(fcntl, "flock", failing(errno.ENOLCK) if locks == "refused" else lambda file, how: None)
    with store.writing(MODEL, Q4, fail_on_wait) as staging:
        write_files(staging, b"half")
        assert remove_leftovers(store) == []
        assert make("org/name", content=b"other").path.read_bytes() == b"other"
        assert (staging / "model.gguf").read_bytes() == b"half"
    assert make("org/name", content=b"third").path.read_bytes() == b"third"
    assert hidden(store) == []


def test_a_leftover_of_another_machine_is_removed_when_it_was_left_alone_for_long(
    store: Store, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make("org/name")
    monkeypatch.setattr(leftovers, "_machine", lambda: "0000aa")
    left = leftovers.leftover_path(made.folder.parent, "gguf-q4_0", "partial")
    left.mkdir()
    (left / "half").touch()
    monkeypatch.undo()
    assert remove_leftovers(store) == []
    old = time.time() - 3600
    for path in (left / "half", left):
        os.utime(path, (old, old))
    assert [leftover.path for leftover in remove_leftovers(store)] == [left]


def test_removing_clears_up_and_does_not_bring_an_older_artifact_back(store: Store, make: Make) -> None:
    made = make("org/name")
    shutil.copytree(made.folder, made.folder.with_name(".gguf-q4_0.partial"))
    assert store.remove(made.folder)
    assert remove_leftovers(store) == [] and not made.folder.parent.exists()


def test_removing_does_not_wait_for_a_process_that_makes_the_same_form_again(store: Store, make: Make) -> None:
    made = make("org/name")
    begun, end = threading.Event(), threading.Event()

    def write() -> None:
        with store.writing(MODEL, Q4, fail_on_wait):
            begun.set()
            assert end.wait(timeout=30)

    thread = threading.Thread(target=write)
    thread.start()
    assert begun.wait(timeout=30)
    assert store.remove(made.folder)
    assert read_manifest(made.folder) is None
    end.set()
    thread.join(timeout=30)


def test_prune_leaves_the_calibration_and_a_model_without_forms(store: Store, make: Make) -> None:
    calibration = make("org/name").folder.with_name("calibration")
    calibration.mkdir()
    (calibration / "calibration.json").touch()
    store.remove(calibration.with_name("gguf-q4_0"))
    assert remove_leftovers(store, lost=True) == []
    assert (calibration / "calibration.json").exists()
    store.remove(calibration)
    assert not calibration.parent.exists()


def test_a_form_without_manifest_is_removed_by_prune_only(store: Store, make: Make) -> None:
    lost, kept = make("org/name").folder, make("org/name", "mlx-4bit")
    (lost / "localq.json").unlink()
    assert remove_leftovers(store) == []
    assert [found.path for found in remove_leftovers(store, lost=True)] == [lost]
    assert store.artifacts() == [kept] and not lost.exists()


def test_a_moved_models_folder_holds_the_same(store: Store, make: Make, tmp_path: Path) -> None:
    made = [make("org/name"), make("toy-phi", "mlx-4bit")]
    moved = Store(tmp_path / "elsewhere")
    shutil.copytree(store.folder, moved.folder)
    shutil.rmtree(store.folder)
    assert [artifact.name for artifact in moved.artifacts()] == [artifact.name for artifact in made]
    assert [changed_files(artifact, lambda done, total: None) for artifact in moved.artifacts()] == [[], []]
