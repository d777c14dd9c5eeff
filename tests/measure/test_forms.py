from __future__ import annotations

import mmap
import os
import shutil
import sys
from pathlib import Path

import pytest

from localq.errors import LocalqError, OptionError
from localq.measure import forms as form_module
from localq.measure.forms import Form, context_limits, drop_from_cache, find_forms, form_files, form_of
from localq.store.layout import MANIFEST_NAME
from localq.store.manifest import read_artifact

_on_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no other system drops single files")


def test_a_model_without_a_recipe_stands_for_both_default_forms(forms: list[Form]) -> None:
    assert [form.recipe for form in forms] == ["mlx-4bit", "gguf-q4_k_m"]
    assert [form.format for form in forms] == ["mlx", "gguf"]
    assert {form.model for form in forms} == {"local/tiny"}


def test_a_form_has_the_size_and_bits_of_its_manifest(forms: list[Form]) -> None:
    for form in forms:
        artifact = read_artifact(form.path)
        assert artifact is not None
        assert form == form_of(artifact)
        assert form.artifact_bytes == sum(
            file.stat().st_size for file in form.path.iterdir() if file.name != MANIFEST_NAME
        )
        assert form.bits_per_weight == artifact.manifest.bits_per_weight


def test_a_named_recipe_stands_for_that_form_and_is_measured_once(
    forms: list[Form], checkpoint_folder: Path, models_dir: Path
) -> None:
    reference = f"{checkpoint_folder}:gguf-q4_k_m"
    assert find_forms([reference, str(forms[1].path), reference], models_dir) == [forms[1]]


def test_the_file_within_an_artifact_is_that_form(forms: list[Form]) -> None:
    (file,) = forms[1].path.glob("*.gguf")
    assert find_forms([str(file)]) == [forms[1]]


def test_two_forms_of_one_name_are_refused(forms: list[Form], tmp_path: Path) -> None:
    (file,) = forms[1].path.glob("*.gguf")
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        shutil.copy(file, tmp_path / folder / "x.gguf")
    with pytest.raises(OptionError, match="2 artifacts have the name x:gguf"):
        find_forms([str(tmp_path / "a" / "x.gguf"), str(tmp_path / "b" / "x.gguf")])


def test_foreign_files_are_forms_of_unknown_bits(forms: list[Form], tmp_path: Path) -> None:
    mlx, gguf = forms
    folder = shutil.copytree(mlx.path, tmp_path / "foreign-mlx")
    (folder / MANIFEST_NAME).unlink()
    file = shutil.copy(next(gguf.path.glob("*.gguf")), tmp_path / "foreign.gguf")
    found = find_forms([str(folder), str(file)])
    assert [form.name for form in found] == ["foreign-mlx:mlx", "foreign:gguf"]
    assert [form.format for form in found] == ["mlx", "gguf"]
    assert [form.bits_per_weight for form in found] == [None, None]
    assert [form.artifact_bytes for form in found] == [mlx.artifact_bytes, file.stat().st_size]


def test_a_reference_to_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LocalqError, match="no folder or file"):
        find_forms([str(tmp_path / "nothing")])


def test_the_files_of_a_form_are_those_of_its_folder_or_its_parts(forms: list[Form], tmp_path: Path) -> None:
    for form in forms:
        files = form_files(form.path)
        assert {file.name for file in files} >= {"config.json", "localq.json", "tokenizer.json"}
        assert {file.suffix for file in files} & {".gguf", ".safetensors"}
    parts = [tmp_path / f"model-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in (*parts, tmp_path / "other.gguf"):
        part.touch()
    assert form_files(parts[0]) == parts
    assert form_files(tmp_path / "other.gguf") == [tmp_path / "other.gguf"]


def test_a_form_says_how_long_its_context_may_be(forms: list[Form]) -> None:
    file = forms[1].model_copy(update={"path": next(forms[1].path.glob("*.gguf"))})
    assert [context_limits(form).most for form in (*forms, file)] == [512] * 3


def _resident_share(file: Path) -> float:
    with file.open("rb") as opened:
        return form_module._resident_share(opened.fileno())


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
