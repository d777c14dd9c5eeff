"""What `convert` makes, finds and refuses, whatever the format."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import localq
from localq.conversion.convert import convert, dry_run, make_forms
from localq.conversion.output import hashed_copy
from localq.conversion.plan import Request
from localq.errors import (
    BackendUnavailableError,
    CheckpointError,
    ConversionError,
    LocalqError,
    ModelNotFoundError,
)
from localq.reference import parse_reference
from localq.store.store import Store
from tests.hub_client import REPO
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import HubServer
from tests.tiny_checkpoints import write_checkpoint

FORMS = ["mlx-8bit", "gguf-q8_0"]


@pytest.fixture
def models(tmp_path: Path) -> Path:
    return tmp_path / "models"


def rewrite(file: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))


def test_a_full_disk_hides_nothing_that_is_there(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = convert("toy-phi", FORMS, models_dir=models)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=0))
    assert convert("toy-phi", FORMS, models_dir=models) == made


def test_a_form_that_another_process_made_meanwhile_is_taken(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room = Store.check_room
    others = []

    def publish_first(store: Store, needed_bytes: int) -> None:
        monkeypatch.setattr(Store, "check_room", check_room)
        others.extend(convert("toy-phi", ["gguf-q8_0"], models_dir=models))

    monkeypatch.setattr(Store, "check_room", publish_first)
    (converted,) = make_forms(Request("toy-phi", ["gguf-q8_0"], models_dir=models))
    assert converted.reused
    assert [converted.artifact] == others
    monkeypatch.setattr(Store, "check_room", publish_first)
    (forced,) = make_forms(Request("toy-phi", ["gguf-q8_0"], models_dir=models, force=True))
    assert not forced.reused


def test_a_dry_run_predicts_what_convert_makes_and_writes_nothing(models: Path) -> None:
    planned = dry_run(Request("toy-phi", FORMS, models_dir=models))
    assert not models.exists()
    made = convert("toy-phi", FORMS, models_dir=models)
    assert all(artifact.manifest.versions == expected_versions() for artifact in made)
    for form, artifact in zip(planned, made, strict=True):
        assert not form.reused
        assert (form.model, form.recipe, form.path) == ("toy-phi", artifact.recipe, artifact.path)
        assert form.weight_bytes == artifact.manifest.weight_bytes
        assert form.parameters == artifact.manifest.parameters
    again = dry_run(Request("toy-phi", [*FORMS, "gguf-q4_0"], models_dir=models))
    assert [form.reused for form in again] == [True, True, False]
    assert [form.path for form in again[:2]] == [artifact.path for artifact in made]
    assert again[:2] == [replace(form, reused=True) for form in planned]
    forced = dry_run(Request("toy-phi", FORMS, models_dir=models, force=True))
    assert forced == planned


def expected_versions() -> dict[str, str]:
    libraries = ("gguf", "llama-cpp-python", "mlx", "mlx-lm", "numpy", "tokenizers")
    return {"localq": localq.__version__, **{name: version(name) for name in libraries}}


def test_a_changed_checkpoint_is_planned_again(tmp_path: Path, models: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    convert(folder, ["gguf-q8_0"], models_dir=models)
    os.utime(folder / "config.json", (1, 1))
    (planned,) = dry_run(Request(folder, ["gguf-q8_0"], models_dir=models))
    assert not planned.reused


def test_a_dry_run_needs_the_backend_as_a_conversion_does(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.backends.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailableError):
        dry_run(Request("toy-phi", ["mlx-4bit"], models_dir=models))


def test_a_repository_is_planned_from_the_cache_or_not_at_all(
    server: HubServer, cache_folder: Path, tmp_path: Path, models: Path
) -> None:
    server.add(REPO, write_checkpoint(tmp_path / "model", "llama-3"))
    with pytest.raises(ModelNotFoundError, match=REPO) as caught:
        dry_run(Request(REPO, FORMS, models_dir=models))
    assert f"localq pull {REPO}" in caught.value.hint
    assert server.requests == []
    convert(REPO, ["gguf-q8_0"], models_dir=models)
    server.requests.clear()
    assert [form.reused for form in dry_run(Request(REPO, FORMS, models_dir=models))] == [False, True]
    shutil.rmtree(cache_folder)
    (planned,) = dry_run(Request(REPO, ["gguf-q8_0"], models_dir=models))
    assert planned.reused
    assert server.requests == []


def _forget_rule(tokenizer: dict[str, Any]) -> None:
    tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "x+"


@pytest.mark.parametrize("act", [dry_run, make_forms])
def test_a_tokenizer_that_gguf_cannot_hold_is_refused_before_any_work(act: Any, tmp_path: Path, models: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    rewrite(folder / "tokenizer.json", _forget_rule)
    with pytest.raises(CheckpointError, match=r"rule that localq does not know: x\+"):
        act(Request(folder, FORMS, models))
    assert Store(models).artifacts() == []


def test_tokenizer_json_is_parsed_once(tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    whole, parsed = (folder / "tokenizer.json").read_text(), []
    plain = json.loads

    def counted(text: Any, **options: Any) -> Any:
        parsed.extend([text] if text == whole else [])
        return plain(text, **options)

    monkeypatch.setattr(json, "loads", counted)
    convert(folder, ["mlx-8bit", "gguf-q8_0", "gguf-q4_0"], models_dir=models)
    assert len(parsed) == 1


MALFORMED: dict[str, Callable[[dict[str, Any]], object]] = {
    "no vocabulary": lambda tokenizer: tokenizer["model"].pop("vocab"),
    "a vocabulary that is a list": lambda tokenizer: tokenizer["model"].update(vocab=["a"]),
    "ids that are text": lambda tokenizer: tokenizer["model"].update(vocab={"a": "b"}),
    "a model that is text": lambda tokenizer: tokenizer.update(model="BPE"),
    "added tokens without an id": lambda tokenizer: tokenizer.update(added_tokens=[{"content": "<x>"}]),
    "added tokens that are text": lambda tokenizer: tokenizer.update(added_tokens=["<x>"]),
    "a post-processor that is text": lambda tokenizer: tokenizer.update(post_processor="none"),
    "no merges": lambda tokenizer: tokenizer["model"].update(merges=7),
}


@pytest.mark.parametrize("fault", MALFORMED)
@pytest.mark.parametrize("name", ["llama-2", "llama-3"])
def test_a_malformed_tokenizer_is_named(name: str, fault: str, tmp_path: Path, models: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", name)
    rewrite(folder / "tokenizer.json", MALFORMED[fault])
    with pytest.raises(CheckpointError, match=str(folder)) as caught:
        dry_run(Request(folder, ["gguf-q8_0"], models_dir=models))
    assert "tokenizer.json" in caught.value.hint


def test_a_file_that_cannot_be_copied_is_named(tmp_path: Path) -> None:
    source = tmp_path / "tokenizer.json"
    source.mkdir()
    with pytest.raises(CheckpointError, match=str(source)):
        hashed_copy(source, tmp_path / "copy")


def test_a_temporary_folder_without_room_is_named_with_what_helps(
    tmp_path: Path, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
    with pytest.raises(ConversionError, match="temporary folder") as caught:
        dry_run(Request("toy-phi", ["gguf-q8_0"], models_dir=models))
    assert "TMPDIR" in caught.value.hint


def test_a_folder_is_converted_further_by_the_name_that_ls_shows(tmp_path: Path, models: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    (first,) = convert(folder, ["gguf-q8_0"], models_dir=models)
    name = first.manifest.model
    assert name == "local/model"
    mlx, again = convert(name, FORMS, models_dir=models)
    assert again == first
    assert (mlx.manifest.model, mlx.manifest.source) == (name, str(folder))
    (forced,) = make_forms(Request(name, ["gguf-q8_0"], models_dir=models, force=True))
    assert not forced.reused

    shutil.rmtree(folder)
    assert convert(name, FORMS, models_dir=models)[0] == mlx
    with pytest.raises(ModelNotFoundError, match=f"{folder}, .* does not exist any more"):
        convert(name, ["gguf-q4_0"], models_dir=models)
    with pytest.raises(ModelNotFoundError, match="local/other is not a repository"):
        convert("local/other", ["gguf-q4_0"], models_dir=models)


def test_source_may_be_text_a_path_or_a_reference(tmp_path: Path, models: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    made = [
        convert(source, "gguf-q8_0", models_dir=models) for source in (folder, str(folder), parse_reference(folder))
    ]
    assert made[0] == made[1] == made[2]
    with pytest.raises(LocalqError, match="no folder or file"):
        convert(tmp_path / "absent", models_dir=models)
