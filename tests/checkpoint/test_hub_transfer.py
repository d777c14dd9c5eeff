"""Damaged and interrupted downloads, with the real huggingface_hub client against a hub on 127.0.0.1."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

from localq.checkpoint import hub, hub_checks
from localq.checkpoint.hub_transfer import HubFile
from localq.errors import DownloadError
from tests.hub_client import FILES, NEEDED, REPO, SHARDS, contents, failure, head, stop_network
from tests.hub_client import cache_folder as cache_folder
from tests.hub_client import server as server
from tests.hub_server import Fault, HubServer, etag_of


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[float]:
    """The waits in seconds, which take no time; and a cache folder of localq's own."""
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return waited


def flipped(content: bytes) -> bytes:
    """One wrong bit in the middle."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


def damage(file: Path, *, keep_time: bool = False) -> None:
    before = file.stat()
    file.write_bytes(flipped(file.read_bytes()))
    later = before.st_mtime_ns if keep_time else before.st_mtime_ns + 1_000_000_000
    os.utime(file, ns=(before.st_atime_ns, later))


def break_answers(server: HubServer, name: str, fault: Fault, times: int = 1000) -> None:
    """Give this fault to the next answers that carry a file."""
    left = [times]

    def choose(method: str, path: str) -> Fault | None:
        if method == "GET" and path.endswith(f"/{name}") and left[0]:
            left[0] -= 1
            return fault
        return None

    server.fault = choose


@pytest.mark.parametrize("name", ["config.json", "tokenizer.model", SHARDS[0]])
def test_a_file_that_always_arrives_damaged_is_named_and_not_kept(
    server: HubServer, cache_folder: Path, name: str
) -> None:
    server.add(REPO, FILES)
    break_answers(server, name, Fault(body=flipped))

    with pytest.raises(DownloadError) as caught:
        hub.pull(REPO)

    assert f"{name} of {REPO} arrived damaged" in caught.value.message
    assert f"localq pull {REPO}" in caught.value.hint
    assert server.fetched().count(name) == 2
    assert hub.find_snapshot(REPO) is None
    assert not list(cache_folder.rglob(f"{etag_of(name, NEEDED[name])}*[!k]"))  # the lock stays
    server.fault = lambda method, path: None
    assert contents(hub.pull(REPO)) == NEEDED


def test_a_file_that_arrives_damaged_once_is_fetched_once_more(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    break_answers(server, SHARDS[1], Fault(body=flipped), times=1)
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched().count(SHARDS[1]) == 2


def test_a_damaged_file_that_another_tool_brought_is_fetched_again(server: HubServer, cache_folder: Path) -> None:
    from huggingface_hub import snapshot_download

    server.add(REPO, FILES)
    folder = Path(snapshot_download(REPO))
    damage((folder / SHARDS[0]).resolve(), keep_time=True)
    server.requests.clear()
    hub.pull(REPO)
    assert server.fetched() == [SHARDS[0]]
    assert (folder / SHARDS[0]).read_bytes() == NEEDED[SHARDS[0]]


def test_a_file_that_changed_since_it_was_checked_is_fetched_again(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    folder = hub.pull(REPO)
    damage((folder / "tokenizer.json").resolve())
    server.requests.clear()
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched() == ["tokenizer.json"]


def test_verify_finds_what_changed_without_a_new_time(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    folder = hub.pull(REPO)
    for name in (SHARDS[0], "config.json"):
        damage((folder / name).resolve(), keep_time=True)
    server.requests.clear()
    assert hub.pull(REPO, verify=True) == folder
    assert contents(folder) == NEEDED
    assert sorted(server.fetched()) == sorted([SHARDS[0], "config.json"])
    server.requests.clear()
    hub.pull(REPO, verify=True)
    assert server.fetched() == []


def test_verify_reads_what_an_older_commit_has(server: HubServer, cache_folder: Path) -> None:
    repository = server.add(REPO, FILES)
    damage((hub.pull(REPO) / SHARDS[0]).resolve(), keep_time=True)
    repository.commit(FILES | {"config.json": b"{}"})
    assert contents(hub.pull(REPO, verify=True))[SHARDS[0]] == NEEDED[SHARDS[0]]


def test_verify_repairs_a_gguf_file(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, {"Name-Q4_0.gguf": b"weights" * 100})
    file = hub.pull_form(REPO, "gguf-q4_0")
    assert file is not None
    damage(file.resolve(), keep_time=True)
    hub.pull_form(REPO, "gguf-q4_0", verify=True)
    assert file.read_bytes() == b"weights" * 100


@pytest.mark.parametrize("verify", [True, False])
def test_without_the_hub_a_damaged_file_is_named(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, verify: bool
) -> None:
    server.add(REPO, FILES)
    folder = hub.pull(REPO)
    stop_network(monkeypatch)
    assert hub.pull(REPO, verify=verify) == folder
    damage((folder / SHARDS[1]).resolve(), keep_time=verify)
    with pytest.raises(DownloadError, match=f"{SHARDS[1]} of {REPO} in the cache is damaged"):
        hub.pull(REPO, verify=verify)


def test_without_the_hub_a_damaged_gguf_file_is_named(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, {"Name-Q4_0.gguf": b"weights" * 100})
    file = hub.pull_form(REPO, "gguf-q4_0")
    assert file is not None
    damage(file.resolve())
    stop_network(monkeypatch)
    with pytest.raises(DownloadError, match="Name-Q4_0.gguf of .* is damaged"):
        hub.pull_form(REPO, "gguf-q4_0")


def test_what_was_checked_is_not_read_again(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.add(REPO, FILES)
    first = hub.pull(REPO)

    def read(*_: object) -> None:
        raise AssertionError("a file was read")

    monkeypatch.setattr(hub_checks, "feed", read)
    assert hub.pull(REPO) == first


def test_ctrl_c_leaves_no_snapshot_and_the_file_goes_on_in_the_next_run(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)

    def interrupt(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > total_bytes / 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hub.pull(REPO, progress=interrupt)
    assert hub.find_snapshot(REPO) is None
    (partial,) = cache_folder.rglob("*.incomplete")
    arrived_bytes = partial.stat().st_size
    assert arrived_bytes > 0

    assert contents(hub.pull(REPO)) == NEEDED
    assert server.ranges == [f"bytes={arrived_bytes}-"]
    assert not list(cache_folder.rglob("*.incomplete"))


@pytest.mark.parametrize("part", ["damaged", "too long", "whole"])
def test_the_beginning_of_a_file_is_checked_too(server: HubServer, cache_folder: Path, part: str) -> None:
    repository, name = server.add(REPO, FILES), SHARDS[0]
    content = NEEDED[name]
    there = {"damaged": flipped(content)[:-1000], "too long": content + b"more", "whole": content}[part]
    file = HubFile(REPO, head(repository), name, len(content), etag_of(name, content), _cache(cache_folder), REPO)
    file.partial.parent.mkdir(parents=True)
    file.partial.write_bytes(there)
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched().count(name) == {"damaged": 2, "too long": 1, "whole": 0}[part]


def test_a_hub_that_ignores_ranges_sends_the_file_from_its_start(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, FILES)
    faults = [Fault(cut_after_bytes=70_000), Fault(ignores_range=True)]
    server.fault = lambda method, path: faults.pop(0) if faults and method == "GET" and SHARDS[0] in path else None
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched().count(SHARDS[0]) == 2 and len(server.ranges) == 1


def test_a_hub_that_breaks_every_answer_is_endured_while_bytes_arrive(
    server: HubServer, cache_folder: Path, waits: list[float]
) -> None:
    server.add(REPO, FILES)
    break_answers(server, SHARDS[0], Fault(cut_after_bytes=10_000))
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched().count(SHARDS[0]) == 12
    break_answers(server, SHARDS[1], Fault(cut_after_bytes=0))
    (next(cache_folder.rglob(SHARDS[1]))).resolve().unlink()
    waits.clear()
    assert SHARDS[1] in failure().message
    assert waits == [1, 2, 4, 8]


@pytest.mark.parametrize("of", ["listing", "file"])
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_hub_is_asked_again(
    server: HubServer, cache_folder: Path, waits: list[float], of: str, status: int
) -> None:
    server.add(REPO, FILES)
    headers: list[dict[str, str]] = [
        {},
        {"Retry-After": "7"},
        {"Retry-After": format_datetime(datetime.now(UTC) + timedelta(seconds=100), usegmt=True)},
        {"RateLimit": '"resolvers";r=0;t=42'},
    ]
    expected = [1, 7, pytest.approx(100, abs=20), 43]

    def busy(_method: str, path: str) -> Fault | None:
        wanted = "/api/models/" in path if of == "listing" else path.endswith("/config.json")
        return Fault(status=status, headers=headers.pop(0)) if wanted and headers else None

    server.fault = busy
    assert contents(hub.pull(REPO)) == NEEDED
    assert waits == expected


def test_a_hub_that_asks_for_too_long_a_wait_is_not_waited_for(
    server: HubServer, cache_folder: Path, waits: list[float]
) -> None:
    server.add(REPO, FILES)
    server.fault = lambda method, path: Fault(status=429, headers={"Retry-After": "3000"})
    assert "429" in failure().message
    assert waits == []


@pytest.mark.parametrize("is_right", [True, False])
def test_what_the_client_brings_by_xet_is_checked_at_its_end(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, is_right: bool
) -> None:
    # No xet server: the client falls back to its own way over HTTP.
    monkeypatch.setattr(HubFile, "_is_xet", lambda file: file.name == SHARDS[0])
    server.add(REPO, FILES)
    if is_right:
        assert contents(hub.pull(REPO)) == NEEDED
        return
    break_answers(server, SHARDS[0], Fault(body=flipped))
    with pytest.raises(DownloadError, match=f"{SHARDS[0]} of {REPO} arrived damaged"):
        hub.pull(REPO)
    assert hub.find_snapshot(REPO) is None


def test_a_listing_without_hashes_leaves_those_that_come_with_the_files(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.hub_server._sibling", lambda name, content: {"rfilename": name, "size": len(content)})
    server.add(REPO, FILES)
    break_answers(server, SHARDS[0], Fault(body=flipped), times=1)
    assert contents(hub.pull(REPO)) == NEEDED
    assert server.fetched().count(SHARDS[0]) == 2


def test_a_file_of_which_the_hub_states_no_hash_is_compared_by_its_length(
    server: HubServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tests.hub_server._sibling", lambda name, content: {"rfilename": name, "size": len(content)})
    monkeypatch.setattr("tests.hub_server.etag_of", lambda name, content: f"{len(content)}-{name}")
    server.add(REPO, FILES)
    assert contents(hub.pull(REPO)) == NEEDED
    assert f"the hub states no hash of {SHARDS[0]}" in caplog.text


def test_a_name_outside_of_the_repository_is_refused(server: HubServer, cache_folder: Path) -> None:
    server.add(REPO, {"../../Name-Q4_0.gguf": b"weights"})
    with pytest.raises(DownloadError, match="a file outside of it"):
        hub.pull_form(REPO, "gguf-q4_0")
    assert server.fetched() == []


def _cache(cache_folder: Path) -> Path:
    return cache_folder / f"models--{REPO.replace('/', '--')}"
