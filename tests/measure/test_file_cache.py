from __future__ import annotations

import mmap
import os
import sys
from pathlib import Path

import pytest

from localq.measure import file_cache
from localq.measure.file_cache import drop_from_cache

_on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system drops single files")


def _resident_share(file: Path) -> float:
    with file.open("rb") as opened:
        return file_cache._resident_share(opened.fileno())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """On a disk: a file system in memory has nowhere to drop its pages to."""
    path = tmp_path / "weights"
    path.write_bytes(os.urandom(1 << 20))
    if sys.platform.startswith("linux"):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
        if _resident_share(path) > 0.5:
            pytest.skip("the folder of temporary files lies in memory")
    return path


@_on_linux
def test_a_file_that_was_dropped_is_not_in_memory(file: Path) -> None:
    content = file.read_bytes()
    assert _resident_share(file) == 1
    assert drop_from_cache([file])
    assert _resident_share(file) == 0
    assert file.read_bytes() == content


@_on_linux
def test_a_file_that_was_just_written_is_dropped_too(file: Path) -> None:
    file.write_bytes(os.urandom(1 << 20))
    assert drop_from_cache([file])
    assert _resident_share(file) == 0


@_on_linux
def test_a_file_that_another_has_mapped_counts_as_warm(file: Path) -> None:
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert sum(mapped[:: mmap.PAGESIZE]) > 0  # every page is used
        assert not drop_from_cache([file])


@_on_linux
def test_one_warm_file_makes_the_whole_form_warm(file: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert drop_from_cache([file, tmp_path / "empty"])
    assert not drop_from_cache([tmp_path / "missing", file])


def test_without_such_a_call_nothing_is_dropped(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "posix_fadvise", raising=False)
    assert not drop_from_cache([file])
