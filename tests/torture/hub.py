"""Pulls from a hub that breaks, lies and throttles: right bytes, or an error that names the file.

    python -m tests.torture.hub [--cases 200] [--seed 1]

Each case is a repository of random files and a few pulls. In each pull some answers have a fault: for one answer, for
a few, or for ever. Between pulls the cache is damaged, and some pulls are interrupted. The last pull, without faults,
must always end with the right bytes.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from localq.checkpoint import hub
from localq.errors import LocalqError
from tests.hub_client import contents, use_only
from tests.hub_server import Fault, HubServer, etag_of

REPO = "org/name"
_SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
_Maker = Callable[[random.Random], Fault]


def _flip(dice: random.Random) -> Callable[[bytes], bytes]:
    place, bit = dice.random(), 1 << dice.randrange(8)

    def flipped(content: bytes) -> bytes:
        at = int(place * len(content))
        return content[:at] + bytes([content[at] ^ bit]) + content[at + 1 :] if content else content

    return flipped


def _part(dice: random.Random) -> Callable[[bytes], bytes]:
    share = dice.random()
    return lambda content: content[: int(share * len(content))]


def _other_listing(dice: random.Random) -> Callable[[bytes], bytes]:
    """Another size or hash of one file."""

    def changed(content: bytes) -> bytes:
        listing = json.loads(content)
        file = dice.choice(listing["siblings"])
        if dice.random() < 0.5:
            file["size"] += dice.choice([-1, 1, 1000])
            file.get("lfs", {})["size"] = file["size"]
        else:
            file["blobId"] = dice.randbytes(20).hex()
            file.get("lfs", {})["sha256"] = dice.randbytes(32).hex()
        return json.dumps(listing).encode()

    return lambda content: changed(content) if b'"siblings"' in content else content


FAULTS: dict[str, _Maker] = {
    "wrong bit": lambda dice: Fault(body=_flip(dice)),
    "shorter": lambda dice: Fault(body=_part(dice)),
    "longer": lambda dice: Fault(body=lambda content: content + bytes(dice.randrange(1, 5000))),
    "other bytes": lambda dice: Fault(body=lambda content: dice.randbytes(len(content))),
    "429": lambda dice: Fault(status=429, headers=dice.choice([{}, {"Retry-After": "2"}, {"Retry-After": "soon"}])),
    "5xx": lambda dice: Fault(status=dice.choice([500, 502, 503, 504])),
    "closed": lambda dice: Fault(cut_after_bytes=0),
    "cut": lambda dice: Fault(cut_after_bytes=dice.randrange(1, 60_000)),
    "wrong length": lambda dice: Fault(headers={"Content-Length": str(dice.randrange(200_000))}),
    "other etag": lambda dice: Fault(headers=dict.fromkeys(("ETag", "X-Linked-Etag"), f'"{dice.randbytes(32).hex()}"')),
    "other size": lambda dice: Fault(headers={"X-Linked-Size": str(dice.randrange(200_000))}),
    "range ignored": lambda dice: Fault(cut_after_bytes=dice.choice([None, 20_000]), ignores_range=True),
    "wrong range": lambda dice: Fault(headers={"Content-Range": "bytes 7-9/10"}, body=lambda content: content[3:]),
    "login page": lambda dice: Fault(body=lambda _: b"<html>log in to this network</html>"),
    "other listing": lambda dice: Fault(body=_other_listing(dice)),
    "404": lambda dice: Fault(status=404),
}


@dataclass
class Result:
    """What pulls came to."""

    faults: Counter[str] = field(default_factory=Counter)
    """Answers with each fault."""
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """What must not happen."""


def run(cases: int, seed: int, folder: Path) -> Result:
    """Run cases; `folder` is an empty one."""
    result = Result()
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        patch.setattr(time, "sleep", lambda _: None)
        patch.setenv("HF_HUB_OFFLINE", "0")
        for case in range(cases):
            home = folder / str(case)
            patch.setenv("XDG_CACHE_HOME", str(home / "cache"))
            use_only(patch, server, home / "hub")
            _case(server, random.Random(f"{seed} {case}"), result, f"seed {seed} case {case}")
    return result


def _case(server: HubServer, dice: random.Random, result: Result, name: str) -> None:
    files = _files(dice)
    server.repositories.clear()
    repository = server.add(REPO, files)
    for _ in range(3):
        if dice.random() < 0.2:
            files = files | {dice.choice(_SHARDS): dice.randbytes(dice.randrange(1, 150_000))}
            repository.commit(files)
        faulty = _choose_faults(server, dice, result)
        _pull(dice, files, faulty, result, name)
        _damage_cache(dice)
    server.fault = lambda method, path: None
    folder = hub.pull(REPO, verify=True)
    if contents(folder) != files:
        result.wrong.append(f"{name}: the last pull has wrong bytes")


def _files(dice: random.Random) -> dict[str, bytes]:
    names = ["config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", *_SHARDS]
    files = {name: dice.randbytes(dice.randrange(1, 150_000)) for name in names}
    index = {"weight_map": {str(number): name for number, name in enumerate(_SHARDS)}}
    return files | {"model.safetensors.index.json": json.dumps(index).encode()}


def _choose_faults(server: HubServer, dice: random.Random, result: Result) -> set[str]:
    """Let answers to some paths be faulty; returns the last parts of the paths to which that happened."""
    kind = dice.choice(list(FAULTS))
    targets = dice.sample(["/revision/", "config.json", "tokenizer.json", *_SHARDS], dice.choice([1, 1, 2]))
    left = dice.choice([1, 2, 4, 1_000_000])
    happened: set[str] = set()

    def fault(_method: str, path: str) -> Fault | None:
        nonlocal left
        if not left or not any(target in path for target in targets):
            return None
        left -= 1
        result.faults[kind] += 1
        happened.add("listing" if "/revision/" in path else path.rpartition("/")[2])
        return FAULTS[kind](dice)

    server.fault = fault
    return happened


def _pull(dice: random.Random, files: dict[str, bytes], faulty: set[str], result: Result, name: str) -> None:
    stop_at = dice.random() if dice.random() < 0.2 else 2.0

    def progress(done_bytes: int, total_bytes: int) -> None:
        if done_bytes > stop_at * total_bytes:
            raise KeyboardInterrupt

    try:
        folder = hub.pull(REPO, progress=progress, verify=dice.random() < 0.3)
    except KeyboardInterrupt:
        result.ends["interrupted"] += 1
    except LocalqError as error:
        result.ends["error"] += 1
        named = any(file in error.message for file in (faulty | set(files)) - {"listing"})
        if not named and not ("listing" in faulty and (REPO in error.message or "127.0.0.1" in error.message)):
            result.wrong.append(f"{name}: names no file of {sorted(faulty)}: {error.message}")
    except Exception as error:
        result.wrong.append(f"{name}: {type(error).__name__}: {error}")
    else:
        result.ends["right bytes"] += 1
        found = contents(folder)
        # Without a listing the cache's older commit is taken, which must be whole too: its blobs have their hashes.
        is_right = found == files if "listing" not in faulty else _is_whole(folder)
        if not is_right:
            result.wrong.append(f"{name}: ended well with wrong bytes, {sorted(faulty)}")


def _is_whole(folder: Path) -> bool:
    links = [path for path in folder.rglob("*") if path.is_file()]
    return all(path.resolve().name == etag_of(path.name, path.read_bytes()) for path in links)


def _damage_cache(dice: random.Random) -> None:
    from huggingface_hub import constants

    blobs = sorted(Path(constants.HF_HUB_CACHE).glob("models--*/blobs/*"))
    if not blobs or dice.random() < 0.5:
        return
    blob = dice.choice(blobs)
    content = blob.read_bytes()
    blob.write_bytes(dice.choice([_flip(dice), _part(dice), bytes])(content))
    if dice.random() < 0.2:
        blob.unlink()


def main() -> None:
    """Run the cases that were asked for, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture.hub", description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=200, help="repositories, each with four pulls (default: 200)")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    logging.disable(logging.CRITICAL)
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        result = run(given.cases, given.seed, Path(folder))
    pulls = sum(result.ends.values())
    ends = ", ".join(f"{count} {end}" for end, count in sorted(result.ends.items()))
    faults = ", ".join(f"{kind} {count}" for kind, count in sorted(result.faults.items()))
    lines = [
        f"{pulls} pulls in {time.monotonic() - begun:.0f} s: {ends}; {len(result.wrong)} failed",
        f"faulty answers: {faults}",
        *result.wrong,
    ]
    sys.stdout.write("\n".join(lines) + "\n")
    raise SystemExit(1 if result.wrong else 0)


if __name__ == "__main__":
    main()
