"""Logits go into the temporary file and come out as they were."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.errors import StoreError
from localq.measure.baseline_logits import LogitsFile, require_room, unnamed_file


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, 200)).astype(np.float32)


def test_rows_come_out_of_the_file_as_they_went_in(tmp_path: Path) -> None:
    with unnamed_file(tmp_path / "models") as file:
        written = rows(3)
        file.write(5, written)
        file.write(2, written[:1])
        file.write(3, np.asfortranarray(rows(2, seed=1)))
        assert np.array_equal(file.read(5, (3, 200)), written)
        assert np.array_equal(file.read(6, (1, 200)), written[1:2])
        assert np.array_equal(file.read(2, (1, 200)), written[:1])
        assert np.array_equal(file.read(3, (2, 200)), rows(2, seed=1))
        assert os.fstat(file.descriptor).st_size == 8 * 200 * 4
        assert list((tmp_path / "models").iterdir()) == []  # it has no name


def test_the_file_is_closed_at_the_end(tmp_path: Path) -> None:
    with unnamed_file(tmp_path) as file:
        pass
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file.descriptor)


def test_a_full_disk_is_named() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no device that is always full")
    descriptor = os.open(full, os.O_RDWR)
    try:
        with pytest.raises(StoreError, match="the disk of models is full"):
            LogitsFile(descriptor, "models").write(0, rows(3))
    finally:
        os.close(descriptor)


def test_a_folder_that_is_not_writable_is_replaced_by_the_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_file = tempfile.TemporaryFile

    def refusing(*arguments: Any, dir: Path | None = None, **options: Any) -> Any:
        if dir == tmp_path / "models":
            raise PermissionError(errno.EACCES, "Permission denied")
        return open_file(*arguments, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refusing)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with unnamed_file(tmp_path / "models") as file:
        file.write(0, rows(1))
        assert file.folder == str(tmp_path)
    refusal = OSError(errno.EIO, "Input/output error")
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **options: (_ for _ in ()).throw(refusal))
    with pytest.raises(StoreError, match="Input/output error"), unnamed_file(tmp_path / "models"):
        pass


@pytest.mark.parametrize(("fitting", "hint"), [(3, "--windows 3"), (0, "remove something")])
def test_a_disk_without_room_is_refused_with_what_would_fit(
    fitting: int, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window_bytes = 255 * 128_256 * 4
    free_bytes = (32 << 20) + fitting * window_bytes + window_bytes // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 10**12, free_bytes))
    with pytest.raises(StoreError, match=r"take 4\.19 GB for 32 windows") as caught:
        require_room(tmp_path, window_bytes, 32)
    assert hint in caught.value.hint and "--models-dir" in caught.value.hint
    if fitting:
        require_room(tmp_path, window_bytes, fitting)
