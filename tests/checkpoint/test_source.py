"""From references to checkpoints: what is pulled, and what is refused before it is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from localq.checkpoint.source import cached_checkpoint, fetch_snapshot, pull_checkpoint, resolve_checkpoint
from localq.errors import ModelNotFoundError, UnsupportedModelError
from localq.reference import parse_reference
from tests.checkpoint.torch_writer import write_torch_archive
from tests.hub_client import FILES, REPO
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import HubServer
from tests.tiny_checkpoints import CONFIGS, random_tensors, write_checkpoint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"architectures": ["Gemma3ForCausalLM"]}, "Gemma3ForCausalLM"),
        ({"quantization_config": {"quant_method": "hqq"}}, "hqq"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
@pytest.mark.parametrize("bring", [fetch_snapshot, pull_checkpoint, resolve_checkpoint])
def test_a_model_of_another_kind_is_refused_before_its_weights_are_downloaded(
    server: HubServer, cache_folder: Path, bring: Any, change: dict[str, Any], words: str
) -> None:
    server.add(REPO, FILES | {"config.json": json.dumps(CONFIGS["llama-3"] | change).encode()})
    with pytest.raises(UnsupportedModelError, match=words):
        bring(parse_reference(REPO))
    assert server.fetched() == ["config.json"]


def test_a_repository_is_pulled_once_and_opened(server: HubServer, cache_folder: Path, tmp_path: Path) -> None:
    repository = server.add(REPO, write_checkpoint(tmp_path / "model", "llama-3", shards=2))
    with pytest.raises(ModelNotFoundError, match=REPO) as caught:
        cached_checkpoint(parse_reference(f"{REPO}@main"))
    assert f"localq pull {REPO}@main" in caught.value.hint
    assert server.requests == []
    checkpoint = resolve_checkpoint(parse_reference(REPO))
    assert (checkpoint.name, checkpoint.revision) == (REPO, repository.references["main"])
    server.requests.clear()
    assert resolve_checkpoint(parse_reference(REPO)).revision == checkpoint.revision
    assert cached_checkpoint(parse_reference(REPO)).folder == checkpoint.folder
    assert server.requests == []


def test_a_repository_with_weights_of_pytorch_is_pulled_and_opened(
    server: HubServer, cache_folder: Path, tmp_path: Path
) -> None:
    expected = resolve_checkpoint(parse_reference(write_checkpoint(tmp_path / "safetensors", "llama-3")))
    folder = write_checkpoint(tmp_path / "pytorch", "llama-3")
    (folder / "model.safetensors").unlink()
    write_torch_archive(folder / "pytorch_model.bin", random_tensors(CONFIGS["llama-3"]), "BF16")
    server.add(REPO, folder)
    checkpoint = resolve_checkpoint(parse_reference(REPO))
    assert "pytorch_model.bin" in server.fetched()
    assert checkpoint.layouts == expected.layouts
    with checkpoint.weights as found, expected.weights as stored:
        for layout in checkpoint.layouts:
            assert (found.read_rows(layout.name, 0, 8) == stored.read_rows(layout.name, 0, 8)).all()


@pytest.mark.parametrize("bring", [pull_checkpoint, resolve_checkpoint, cached_checkpoint])
def test_the_name_of_a_converted_folder_is_never_a_repository(
    server: HubServer, cache_folder: Path, bring: Any
) -> None:
    server.add("local/model", FILES)
    with pytest.raises(ModelNotFoundError, match="local/model is not a repository") as caught:
        bring(parse_reference("local/model"))
    assert "localq ls" in caught.value.hint
    assert server.requests == []
