"""A file appears whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from localq.errors import LocalqError, OptionError
from localq.measure.page.whole_file import check_replaceable, write_whole


def test_a_text_replaces_what_was_there_and_leaves_nothing_beside(tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    write_whole(file, "one")
    write_whole(file, "two ± \udcff")
    assert file.read_text(encoding="utf-8") == "two ± \\udcff"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_full_disk_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    write_whole(file, "one")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LocalqError, match=r"can't write .*page.html: No space left"):
        write_whole(file, "two")
    assert file.read_text(encoding="utf-8") == "one"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link, target = tmp_path / "page.html", tmp_path / "there" / "real.html"
    link.symlink_to(target)
    write_whole(link, "one")
    assert link.is_symlink() and target.read_text(encoding="utf-8") == "one"


def test_a_folder_that_is_not_there_is_refused_before(tmp_path: Path) -> None:
    check_replaceable(tmp_path / "page.html", "--html")
    with pytest.raises(OptionError, match="--html is '.*': there is no folder"):
        check_replaceable(tmp_path / "none" / "page.html", "--html")


def test_a_folder_that_may_not_be_written_is_refused_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "page.html"
    file.write_text("one", encoding="utf-8")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == file)
    with pytest.raises(OptionError, match="nothing may be written into"):
        check_replaceable(file, "--html")
