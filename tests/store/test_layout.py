"""Where the models folder is, and how folders in it are called."""

from __future__ import annotations

from pathlib import Path

import platformdirs
import pytest

import localq.store.layout
from localq.errors import StoreError
from localq.reference import parse_reference
from localq.store.layout import model_folder_names, models_folder
from localq.store.store import Store


@pytest.fixture(autouse=True)
def no_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCALQ_MODELS", raising=False)


def installed_in(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setattr(localq.store.layout, "__file__", str(folder / "localq" / "store" / "layout.py"))


def test_the_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALQ_MODELS", str(tmp_path / "environment"))
    assert models_folder(tmp_path / "argument") == tmp_path / "argument"


def test_the_environment_wins_over_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LOCALQ_MODELS", str(tmp_path))
    assert models_folder() == tmp_path


def test_an_empty_environment_variable_chooses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = models_folder()
    monkeypatch.setenv("LOCALQ_MODELS", "")
    assert models_folder() == unset


def test_the_home_folder_and_relative_paths_are_understood(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert models_folder(Path("~/a")) == models_folder(Path("a")) == tmp_path / "a"
    monkeypatch.setenv("LOCALQ_MODELS", "~/b")
    assert models_folder() == tmp_path / "b"


def test_a_checkout_keeps_its_models_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_in(monkeypatch, tmp_path)
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "README.md").touch()
    assert models_folder() == tmp_path / "models"


@pytest.mark.parametrize("present", ["pyproject.toml", "models/README.md", None])
def test_an_installed_package_uses_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: str | None
) -> None:
    installed_in(monkeypatch, tmp_path)
    if present:
        (tmp_path / present).parent.mkdir(exist_ok=True)
        (tmp_path / present).touch()
    assert models_folder() == Path(platformdirs.user_cache_dir("localq")) / "models"


def test_only_a_folder_that_was_chosen_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed_in(monkeypatch, tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda name: str(tmp_path / "cache"))
    assert Store.existing().artifacts() == []
    absent = tmp_path / "absent"
    with pytest.raises(StoreError, match=f"there is no folder {absent}") as caught:
        Store.existing(absent)
    assert "--models-dir" in caught.value.hint
    monkeypatch.setenv("LOCALQ_MODELS", str(absent))
    with pytest.raises(StoreError, match=f"there is no folder {absent}") as caught:
        Store.existing()
    assert "LOCALQ_MODELS" in caught.value.hint
    absent.mkdir()
    assert Store.existing().folder == absent


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("toy-phi", "toy-phi"),
        ("toy-phi:mlx-4bit", "toy-phi"),
        ("org/name", "org--name"),
        ("org/name@v1.0:gguf-f16", "org--name@v1.0"),
    ],
)
def test_folders_are_called_as_the_layout_says(text: str, name: str) -> None:
    assert model_folder_names(parse_reference(text))[0] == name


def test_a_checkpoint_folder_has_a_plain_name_and_one_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a" / "model").mkdir(parents=True)
    (tmp_path / "b" / "model").mkdir(parents=True)
    first, second = (model_folder_names(parse_reference(str(tmp_path / part / "model"))) for part in "ab")
    assert first[0] == second[0] == "local--model"
    assert first[1] != second[1]
    assert all(name.startswith("local--model-") for name in (first[1], second[1]))
