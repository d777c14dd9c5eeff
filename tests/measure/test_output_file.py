from __future__ import annotations

from pathlib import Path

import pytest

from localq.errors import LocalqError, OptionError
from localq.measure.output_file import check_writable, writing_errors


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
        with pytest.raises(OptionError, match="it may not be written"):
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
