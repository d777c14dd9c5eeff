"""Pulling checkpoints, with the real huggingface_hub against a hub on 127.0.0.1."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest

from localq.checkpoint import hub
from localq.errors import DownloadError
from tests.hub_client import (
    FILES,
    NEEDED,
    NEEDED_BYTES,
    REPO,
    SHARDS,
    contents,
    failure,
    head,
    in_fresh_process,
)
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import HubServer


def test_a_pull_brings_the_needed_files_byte_for_byte_into_the_shared_cache(
    server: HubServer, cache_folder: Path
) -> None:
    repository = server.add(REPO, FILES)

    snapshot = hub.pull(REPO)

    commit = head(repository)
    assert snapshot == cache_folder / "models--org--tiny-llama" / "snapshots" / commit
    assert contents(snapshot) == NEEDED


def test_files_that_localq_does_not_read_are_never_requested(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    hub.pull(REPO)
    assert sorted(server.fetched()) == sorted(NEEDED)


def test_other_tools_find_what_was_pulled(server: HubServer, cache_folder: Path) -> None:
    from huggingface_hub import snapshot_download

    server.add(REPO, FILES)
    pulled = hub.pull(REPO)
    assert snapshot_download(REPO, local_files_only=True) == str(pulled)


def test_what_another_tool_downloaded_is_found(server: HubServer, cache_folder: Path) -> None:
    from huggingface_hub import snapshot_download

    server.add(REPO, FILES)
    folder = snapshot_download(REPO)
    found = hub.find_snapshot(REPO)
    assert found is not None
    assert str(found) == folder


def test_one_weight_file_without_an_index_is_enough(server: HubServer, cache_folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        (source / name).write_bytes(NEEDED[name])
    (source / "model.safetensors").write_bytes(NEEDED[SHARDS[0]])
    server.add(REPO, source)

    assert contents(hub.pull(REPO)) == contents(source)
    assert hub.find_snapshot(REPO) is not None


def test_a_second_pull_fetches_nothing(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    first = hub.pull(REPO)
    server.requests.clear()
    assert hub.pull(REPO) == first
    assert server.fetched() == []


def test_a_new_commit_fetches_only_what_changed(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = server.add(REPO, FILES)
    first = hub.pull(REPO)
    server.requests.clear()
    commit = repository.commit(FILES | {"config.json": b'{"model_type": "phi3"}'})
    # Weights that are in the cache already need no room.
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))

    second = hub.pull(REPO)

    assert second.name == commit != first.name
    assert server.fetched() == ["config.json"]
    assert contents(second) == NEEDED | {"config.json": b'{"model_type": "phi3"}'}


def test_a_snapshot_is_found_again_without_any_request(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    pulled = hub.pull(REPO)
    server.requests.clear()
    assert hub.find_snapshot(REPO) == pulled
    assert hub.find_snapshot(REPO, pulled.name) == pulled
    assert server.requests == []


def test_what_was_never_pulled_is_not_found(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    assert hub.find_snapshot(REPO) is None
    hub.pull(REPO)
    assert hub.find_snapshot(REPO, "v2") is None
    assert hub.find_snapshot("org/other") is None


@pytest.mark.parametrize(
    "lost",
    [
        ("config.json",),
        ("tokenizer_config.json",),
        ("tokenizer.json",),
        SHARDS[:1],
        SHARDS[1:],
    ],
)
def test_a_half_snapshot_is_not_found_and_a_pull_completes_it(
    server: HubServer, cache_folder: Path, lost: tuple[str, ...]
) -> None:
    server.add(REPO, FILES)
    pulled = hub.pull(REPO)
    for name in lost:
        (pulled / name).resolve().unlink()

    assert hub.find_snapshot(REPO) is None
    assert hub.pull(REPO) == pulled
    assert contents(pulled) == NEEDED


@pytest.mark.parametrize("index", ["{", "[]", '{"weight_map": {}}', '{"weight_map": {"first": 1}}'])
def test_a_snapshot_with_an_unreadable_index_is_not_found(server: HubServer, cache_folder: Path, index: str) -> None:
    server.add(REPO, FILES)
    folder = hub.pull(REPO)
    (folder / "model.safetensors.index.json").write_text(index)
    assert hub.find_snapshot(REPO) is None


def test_a_truncated_file_in_the_cache_is_fetched_again(server: HubServer, cache_folder: Path) -> None:
    repository = server.add(REPO, FILES)
    pulled = hub.pull(REPO)
    (pulled / SHARDS[0]).resolve().write_bytes(NEEDED[SHARDS[0]][:-1])
    repository.commit(FILES | {"config.json": b"{}"})
    server.requests.clear()

    # The truncated blob is shared by the two commits: neither may keep it.
    assert contents(hub.pull(REPO))[SHARDS[0]] == NEEDED[SHARDS[0]]
    assert contents(pulled) == NEEDED
    assert sorted(server.fetched()) == ["config.json", SHARDS[0]]


@pytest.mark.parametrize("by_hash", [False, True])
def test_a_revision_can_be_given_as_tag_or_commit(server: HubServer, cache_folder: Path, by_hash: bool) -> None:
    repository = server.add(REPO, FILES)
    commit = repository.commit(FILES | {"config.json": b'{"old": true}'}, "v1.0")
    revision = commit if by_hash else "v1.0"

    snapshot = hub.pull(REPO, revision)

    assert snapshot.name == commit
    assert (snapshot / "config.json").read_bytes() == b'{"old": true}'
    assert hub.find_snapshot(REPO, revision) == snapshot
    assert hub.find_snapshot(REPO) is None


def test_progress_rises_to_the_total(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    reports: list[tuple[int, int]] = []
    hub.pull(REPO, progress=lambda done, total: reports.append((done, total)))
    done = [report[0] for report in reports]
    assert {report[1] for report in reports} == {NEEDED_BYTES}
    assert done == sorted(done)
    assert (done[0], done[-1]) == (0, NEEDED_BYTES)
    assert len(set(done)) > 2 * len(NEEDED)  # also within the weight files


def test_progress_of_a_second_pull_is_complete_too(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    hub.pull(REPO)
    reports: list[tuple[int, int]] = []
    hub.pull(REPO, progress=lambda done, total: reports.append((done, total)))
    assert reports[-1] == (NEEDED_BYTES, NEEDED_BYTES)


def test_a_pull_continues_after_a_short_break_of_the_connection(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add(REPO, FILES)
    server.cut_after_bytes = 50_000
    reports: list[int] = []
    folder = hub.pull(REPO, progress=lambda done, total: reports.append(done))
    assert contents(folder) == NEEDED
    assert server.fetched().count(SHARDS[0]) == 2
    assert max(reports) == NEEDED_BYTES


def test_a_broken_download_leaves_no_snapshot_and_the_next_pull_completes_it(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    server.add(REPO, FILES)
    server.cut_after_bytes, server.stays_down_after_cut = 50_000, True

    error = failure()

    assert isinstance(error, DownloadError)
    assert server.endpoint in error.message
    assert "finished files are kept" in error.hint
    assert hub.find_snapshot(REPO) is None
    server.repair()
    server.requests.clear()
    assert contents(hub.pull(REPO)) == NEEDED
    assert sorted(server.fetched()) == sorted(SHARDS)


def test_after_a_broken_update_the_older_snapshot_is_found(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda _: None)
    repository = server.add(REPO, FILES)
    first = hub.pull(REPO)
    repository.commit(FILES | {SHARDS[0]: random.Random(3).randbytes(120_000)})
    server.cut_after_bytes, server.stays_down_after_cut = 50_000, True
    assert isinstance(failure(), DownloadError)
    assert hub.find_snapshot(REPO) == first


def test_the_environment_decides_hub_and_cache_and_nothing_else_is_printed(server: HubServer, tmp_path: Path) -> None:
    repository = server.add(REPO, FILES)
    # At the break the client would log a warning.
    server.cut_after_bytes = 50_000
    done = in_fresh_process(server, tmp_path, f"print(hub.pull({REPO!r}))", HF_TOKEN="")
    folder = tmp_path / "hub" / "models--org--tiny-llama" / "snapshots" / head(repository)
    assert (done.stdout, done.stderr) == (f"{folder}\n", "")
    assert contents(folder) == NEEDED


def test_weights_of_torch_are_pulled_where_there_are_no_safetensors(server: HubServer, cache_folder: Path) -> None:
    kept = {name: data for name, data in FILES.items() if "safetensors" not in name}
    shards = {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}
    index = json.dumps({"weight_map": shards})
    torch = {
        "pytorch_model.bin.index.json": index.encode(),
        "pytorch_model-00001-of-00002.bin": b"first",
        "pytorch_model-00002-of-00002.bin": b"second",
        "training_args.bin": b"no weights",
    }
    server.add(REPO, {**kept, **torch})
    pulled = hub.pull(REPO)
    there = {path.name for path in pulled.iterdir()}
    assert there >= torch.keys() - {"training_args.bin"}
    assert "training_args.bin" not in there
    assert hub.find_snapshot(REPO) == pulled
    (pulled / "pytorch_model-00002-of-00002.bin").unlink()
    assert hub.find_snapshot(REPO) is None


def test_safetensors_are_taken_where_a_repository_has_both(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, {**FILES, "pytorch_model.bin": b"the same once more"})
    assert not (hub.pull(REPO) / "pytorch_model.bin").exists()


def test_older_tokenizer_files_are_enough(server: HubServer, cache_folder: Path) -> None:
    kept = {name: data for name, data in FILES.items() if name not in ("tokenizer.json", "tokenizer.model")}
    server.add(REPO, {**kept, "vocab.json": b"{}", "merges.txt": b""})
    assert {"vocab.json", "merges.txt"} <= {path.name for path in hub.pull(REPO).iterdir()}
    assert hub.find_snapshot(REPO) is not None
    server.add("org/bare", kept)
    with pytest.raises(DownloadError, match="no tokenizer.json"):
        hub.pull("org/bare")
