"""What a pull says when it fails, with the real huggingface_hub against a hub on 127.0.0.1."""

from __future__ import annotations

import errno
import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest

from localq.checkpoint import hub
from localq.errors import DownloadError, ModelNotFoundError
from tests.hub_client import (
    FILES,
    NEEDED,
    REPO,
    SHARDS,
    contents,
    failure,
    in_fresh_process,
    set_endpoint,
    stop_network,
)
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import HubServer


def test_a_gated_repository_names_its_licence_page_and_how_to_log_in(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES).gated = True
    error = failure()
    assert isinstance(error, DownloadError)
    assert "gated" in error.message
    assert f"{server.endpoint}/{REPO}" in error.hint
    assert "hf auth login" in error.hint and "HF_TOKEN" in error.hint


def test_a_logged_in_user_of_a_gated_repository_reads_that_the_licence_is_to_be_accepted(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES).gated = True
    server.tokens = {"hf_known"}
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    error = failure()
    assert isinstance(error, DownloadError)
    assert "your token's account" in error.message
    assert f"{server.endpoint}/{REPO}" in error.hint


@pytest.mark.parametrize("kind", ["gated", "private"])
def test_a_token_with_access_opens_the_repository(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    repository = server.add(REPO, FILES)
    setattr(repository, kind, True)
    repository.readers = server.tokens = {"hf_reader"}
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    assert contents(hub.pull(REPO)) == NEEDED


def test_a_missing_repository_without_a_token_may_be_a_private_one(server: HubServer, cache_folder: Path) -> None:
    error = failure("org/nothing")
    assert isinstance(error, ModelNotFoundError)
    assert "no public repository org/nothing" in error.message
    assert "hf auth login" in error.hint


def test_a_missing_repository_with_a_token_is_one_that_the_token_may_not_read(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES).private = True
    server.tokens = {"hf_known"}
    monkeypatch.setenv("HF_TOKEN", "hf_known")
    error = failure()
    assert isinstance(error, ModelNotFoundError)
    assert f"{REPO} that your token may read" in error.message
    assert "hf auth login" not in error.hint


def test_a_name_that_no_repository_can_have_is_not_found(server: HubServer, cache_folder: Path) -> None:
    assert isinstance(failure("org/a--b"), ModelNotFoundError)
    assert server.requests == []


def test_a_missing_revision_is_named(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    error = failure(REPO, "v9")
    assert isinstance(error, ModelNotFoundError)
    assert "'v9'" in error.message
    assert server.endpoint in error.hint


def test_a_refused_token_is_not_called_a_missing_repository(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES)
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    error = failure()
    assert isinstance(error, DownloadError)
    assert "refuses your token" in error.message
    assert "hf_expired" not in error.message + error.hint


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_failing_hub_is_named_with_its_status(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add(REPO, FILES)
    server.failing_status = status
    error = failure()
    assert isinstance(error, DownloadError)
    assert str(status) in error.message
    assert "later" in error.hint


def test_without_network_and_cache_the_endpoint_is_named(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop_network(monkeypatch)
    error = failure()
    assert isinstance(error, DownloadError)
    assert "no connection to http://127.0.0.1:" in error.message
    assert REPO in error.message


def test_a_hub_that_never_answers_ends_in_an_error(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        set_endpoint(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        error = failure()
    assert isinstance(error, DownloadError)
    assert "no connection" in error.message


@pytest.mark.parametrize("outage", ["network", "offline", "server"])
def test_a_complete_snapshot_is_enough_when_the_hub_cannot_answer(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, outage: str
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add(REPO, FILES)
    pulled = hub.pull(REPO)
    if outage == "network":
        stop_network(monkeypatch)
    elif outage == "offline":
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    else:
        server.failing_status = 502
    assert hub.pull(REPO) == pulled

    (pulled / SHARDS[1]).unlink()
    assert isinstance(failure(), DownloadError)


def test_a_cached_snapshot_does_not_hide_that_the_repository_is_gone(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    hub.pull(REPO)
    del server.repositories[REPO]
    assert isinstance(failure(), ModelNotFoundError)


def test_too_small_a_disk_is_refused_before_the_weights_are_downloaded(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES | {SHARDS[0]: bytes(3_000_000)})
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    with pytest.raises(DownloadError, match=r"needs 0\.003 GB more in .*hub, which has 0\.002 GB free"):
        hub.pull(REPO)
    assert server.fetched() == ["config.json", "model.safetensors.index.json"]


def test_a_disk_that_fills_up_is_named_with_its_folder(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    server.add(REPO, FILES)
    monkeypatch.setattr("localq.checkpoint.hub_transfer.HubFile._receive", full)
    error = failure()
    assert isinstance(error, DownloadError)
    assert str(cache_folder) in error.message
    assert "No space left" in error.message
    assert "HF_HOME" in error.hint


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (
            ["config.json", "tokenizer.json", "consolidated.00.pth", "rust_model.ot"],
            "no model.safetensors and no pytorch_model.bin; its weights are .pth",
        ),
        (
            ["tiny.gguf", "README.md"],
            r"has no checkpoint, only .gguf files, which are converted already; it has gguf-tiny \(2 B\)",
        ),
        (["README.md"], "no model.safetensors and no pytorch_model.bin; it has no other weights either"),
        (["model.safetensors", "tokenizer.json"], "no config.json"),
        (["pytorch_model.bin", "tokenizer.json"], "no config.json"),
        (["model.safetensors", "config.json", "vocab.json"], "no tokenizer.json and no other tokenizer"),
    ],
)
def test_a_repository_that_is_not_a_checkpoint_is_refused_with_what_it_has(
    server: HubServer, cache_folder: Path, names: list[str], expected: str
) -> None:
    server.add(REPO, {name: b"{}" for name in names})
    with pytest.raises(DownloadError, match=expected):
        hub.pull(REPO)
    assert server.fetched() == []


@pytest.mark.parametrize("shard", ["model-00002-of-00002.safetensors", "../../../elsewhere.safetensors"])
def test_an_index_that_names_a_file_the_repository_does_not_have_is_refused(
    server: HubServer, cache_folder: Path, shard: str
) -> None:
    index = json.dumps({"weight_map": {"first": SHARDS[0], "second": shard}}).encode()
    files = {name: content for name, content in FILES.items() if name != SHARDS[1]}
    server.add(REPO, files | {"model.safetensors.index.json": index})
    with pytest.raises(DownloadError, match=f"does not have {shard}"):
        hub.pull(REPO)


def test_an_endpoint_that_is_not_a_hub_is_a_download_error(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES)
    monkeypatch.setattr("json.dumps", lambda *_, **__: "<html>log in to this network</html>")
    error = failure()
    assert isinstance(error, DownloadError)
    assert server.endpoint in error.message


@pytest.mark.parametrize(("revision", "named"), [("main", REPO), ("v2", f"{REPO}@v2")])
def test_offline_mode_is_named_with_the_variable_that_set_it(
    server: HubServer, tmp_path: Path, revision: str, named: str
) -> None:
    server.add(REPO, FILES)
    code = (
        "from localq.errors import DownloadError\n"
        f"try: hub.pull({REPO!r}, {revision!r})\n"
        "except DownloadError as error: print(error.message, error.hint, sep='\\n')"
    )
    done = in_fresh_process(server, tmp_path, code, HF_HUB_OFFLINE="1")
    expected = f"HF_HUB_OFFLINE is set, and {REPO}@{revision} is not complete in {tmp_path / 'hub'}\n"
    expected += f"unset it and run `localq pull {named}`\n"
    assert (done.stdout, done.stderr) == (expected, "")
    assert server.requests == []
