"""What the tests of pulling share: a client that can reach only the hub double, and a repository to pull."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from localq.checkpoint import hub
from localq.errors import LocalqError
from tests.hub_server import HubServer, Repository

REPO = "org/tiny-llama"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
NEEDED: dict[str, bytes] = {
    "config.json": b'{"model_type": "llama"}',
    "generation_config.json": b'{"do_sample": false}',
    "tokenizer.json": b'{"version": "1.0"}' * 500,
    "tokenizer.model": bytes(range(256)),
    "tokenizer_config.json": b'{"bos_token": null}',
    "chat_template.jinja": b"{{ messages }}",
    "model.safetensors.index.json": json.dumps({"weight_map": {"first": SHARDS[0], "second": SHARDS[1]}}).encode(),
    SHARDS[0]: random.Random(1).randbytes(120_000),
    SHARDS[1]: random.Random(2).randbytes(90_001),
}
UNNEEDED: dict[str, bytes] = {
    "README.md": b"# tiny",
    "modeling_tiny.py": b"print()",
    "pytorch_model.bin": b"pickled",
    "pytorch_model.bin.index.json": b"{}",
    "model.fp16.safetensors": b"not in the index",
    "consolidated.safetensors": b"twice",
    "tiny-q4.gguf": b"GGUF",
    "onnx/model.onnx": b"onnx",
    "onnx/config.json": b"{}",
    "original/params.json": b"{}",
}
FILES = NEEDED | UNNEEDED
NEEDED_BYTES = sum(map(len, NEEDED.values()))


@pytest.fixture
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, server: HubServer) -> Iterator[Path]:
    """An empty cache folder; the client of this process can reach only the double."""
    import huggingface_hub

    folder = tmp_path / "hub"
    use_only(monkeypatch, server, folder)
    yield folder
    huggingface_hub.close_session()


def use_only(monkeypatch: pytest.MonkeyPatch, server: HubServer, folder: Path) -> None:
    """Let the client of this process reach only the double, and give it this cache folder."""
    import huggingface_hub
    from huggingface_hub import constants

    for variable in (
        "HF_TOKEN",
        "HUGGING_FACE_HUB_TOKEN",
        "HTTP_PROXY",
        "http_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.delenv(variable, raising=False)
    settings: dict[str, Any] = {
        "HF_HUB_CACHE": str(folder),
        "HF_TOKEN_PATH": str(folder.parent / "token"),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_TELEMETRY": True,
        "DOWNLOAD_CHUNK_SIZE": 10_000,
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    set_endpoint(monkeypatch, server.endpoint)
    allow_loopback_only(monkeypatch)
    huggingface_hub.close_session()


def set_endpoint(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def allow_loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        assert address[0] == "127.0.0.1", f"a test reached out to {address}"
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


def stop_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the client to a port of this machine on which nothing listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    set_endpoint(monkeypatch, f"http://127.0.0.1:{port}")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def head(repository: Repository) -> str:
    return repository.references["main"]


def failure(repo: str = REPO, revision: str | None = None) -> LocalqError:
    with pytest.raises(LocalqError) as caught:
        hub.pull(repo, revision)
    error = caught.value
    assert "\n" not in error.message + error.hint
    assert error.__cause__ is not None
    return error


def in_fresh_process(server: HubServer, home: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": server.endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", f"from localq.checkpoint import hub\n{code}"]
    return subprocess.run(command, env=environment | variables, capture_output=True, text=True, timeout=60)
