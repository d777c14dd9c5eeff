"""Files appear whole or not at all, and errors of the disk are told by name."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from localq.disk import check_writable, write_text, writing_errors
from localq.errors import LocalqError, OptionError


def test_a_text_replaces_what_was_there_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_text(file, "one")
    write_text(file, "two ± \udcff")
    assert file.read_text(encoding="utf-8") == "two ± \\udcff"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    write_text(file, "one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalqError, match=r"can't write .*page.html: No space left"):
        write_text(file, "two")
    assert file.read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "page.html", tmp_path / "there" / "real.html"
    link.symlink_to(target)
    write_text(link, "one")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "one"


def test_a_folder_that_is_not_there_is_refused_before(tmp_path: Path) -> None:
    check_writable(tmp_path / "page.html", "--html", replaced=True)
    with pytest.raises(OptionError, match="--html is '.*': there is no folder"):
        check_writable(tmp_path / "none" / "page.html", "--html", replaced=True)


def test_a_folder_that_may_not_be_written_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    file.write_text("one", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == file)
    with pytest.raises(OptionError, match="nothing may be written into"):
        check_writable(file, "--html", replaced=True)


def test_what_cannot_be_written_is_known_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OptionError, match=r"--plot is '.*': it is a folder"):
        check_writable(tmp_path, "--plot")
    with pytest.raises(OptionError, match=r"--jsonl is '.*/no/file': there is no folder .*/no$"):
        check_writable(tmp_path / "no" / "file", "--jsonl")
    (tmp_path / "file").write_text("")
    with pytest.raises(OptionError, match="there is no folder"):
        check_writable(tmp_path / "file" / "below", "--jsonl")
    monkeypatch.setattr("os.access", lambda path, mode: False)
    for name in ("file", "new"):
        with pytest.raises(OptionError, match="may (not )?be written"):
            check_writable(tmp_path / name, "--jsonl")


def test_a_check_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new", "--jsonl")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.chdir(tmp_path)
    check_writable(Path("new"), "--jsonl")


def test_an_error_of_the_disk_names_the_file() -> None:
    with (
        pytest.raises(LocalqError, match=r"can't write some/file: No space left on device"),
        writing_errors(Path("some/file")),
    ):
        raise OSError(28, "No space left on device")
