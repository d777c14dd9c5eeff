"""What is particular to the llama.cpp engine: the reasons it gives when a file can't be loaded."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from localq.engines.llamacpp import open_engine
from localq.errors import EngineError
from localq.options import LoadOptions


def test_a_missing_file_is_named_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"nowhere\.gguf.*No such file"):
        open_engine(tmp_path / "nowhere.gguf", LoadOptions(), 32)


def test_a_file_that_is_not_gguf_is_refused_with_llama_cpps_own_reason(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("once upon a time there was a file")
    with pytest.raises(EngineError, match="invalid magic"):
        open_engine(path, LoadOptions(), 32)


def test_an_unknown_architecture_is_named_in_the_error(tmp_path: Path) -> None:
    path = tmp_path / "other.gguf"
    writer = gguf.GGUFWriter(path, "nonesuch")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(EngineError, match="nonesuch"):
        open_engine(path, LoadOptions(), 32)


def test_a_failed_load_writes_nothing_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(EngineError):
        open_engine(tmp_path / "nowhere.gguf", LoadOptions(), 32)
    assert capfd.readouterr() == ("", "")
