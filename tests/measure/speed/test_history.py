from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localq.errors import LocalqError
from localq.measure.speed.history import (
    append_entries,
    entry_time,
    history_entries,
    history_file,
    read_history,
    select_entries,
)
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from tests.measure.speed.bench_reports import form_result, report

_REPORT = report([form_result("toy:mlx-4bit", [9.0, 10.0, 12.0]), form_result("toy:gguf-q4_k_m", [7.0])])
_ENTRIES = history_entries(_REPORT, "localq bench toy")


def test_a_run_leaves_a_line_for_each_form_and_test(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "history.jsonl"
    append_entries(file, _ENTRIES)
    lines = file.read_text(encoding="utf-8").splitlines()
    assert [(json.loads(line)["recipe"], json.loads(line)["test"]) for line in lines] == [
        ("mlx-4bit", "pp64"),
        ("mlx-4bit", "tg16"),
        ("gguf-q4_k_m", "pp64"),
        ("gguf-q4_k_m", "tg16"),
    ]
    append_entries(file, _ENTRIES)
    history = read_history(file)
    assert json.loads(json.dumps(_ENTRIES * 2)) == list(history.entries)
    assert history.damaged_lines == ()


def test_an_entry_says_what_is_needed_to_compare_it_and_to_repeat_it() -> None:
    entry = _ENTRIES[1]
    assert (entry["started"], entry["model"], entry["recipe"]) == (_REPORT.started, "toy", "mlx-4bit")
    assert entry["tokens_per_second"]["samples"] == (9.0, 10.0, 12.0)
    assert entry["machine"]["cpu"] == "Test CPU" and entry["machine"]["memory_bytes"] == 16 << 30
    assert entry["versions"] == {"localq": "9.9", "mlx": "0.1", "llama-cpp-python": "0.3"}
    assert entry["settings"]["threads"] == 4 and entry["generated_tokens"] == 16
    assert (entry["load_seconds"], entry["peak_memory_bytes"]) == (0.25, 700 << 20)
    assert (entry["artifact_bytes"], entry["bits_per_weight"]) == (3 << 29, 4.5)
    assert entry["command"] == "localq bench toy"


def test_a_line_that_a_crash_left_unfinished_does_not_spoil_the_next_run(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append_entries(file, _ENTRIES)
    file.write_bytes(file.read_bytes()[:-40])
    append_entries(file, _ENTRIES)
    history = read_history(file)
    assert history.damaged_lines == (4,)
    assert len(history.entries) == 3 + 4


def _without(*keys: str) -> dict[str, Any]:
    entry = json.loads(json.dumps(_ENTRIES[0]))
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    del inner[keys[-1]]
    return dict(entry)


def _with(value: object, *keys: str) -> dict[str, Any]:
    entry = json.loads(json.dumps(_ENTRIES[0]))
    inner = entry
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    return dict(entry)


@pytest.mark.parametrize(
    "line",
    [
        b"nonsense",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 100_000,
        b'{"started": ' + b"9" * 5000 + b"}",
        *(
            json.dumps(entry).encode()
            for entry in (
                _without("started"),
                _without("machine", "cpu"),
                _without("tokens_per_second", "median"),
                _with("yesterday", "started"),
                _with("0001-01-01T00:00:00+12:00", "started"),
                _with(7, "model"),
                _with(None, "settings"),
                _with("fast", "tokens_per_second", "median"),
                _with(0, "tokens_per_second", "median"),
                _with(float("nan"), "tokens_per_second", "stdev"),
                _with([1.0], "tokens_per_second", "confidence_interval"),
                _with([1.0, "2"], "tokens_per_second", "confidence_interval"),
                _with(10**400, "machine", "memory_bytes"),
                _with({"localq": 1}, "versions"),
            )
        ),
    ],
)
def test_a_damaged_line_is_named_and_left_out(line: bytes, tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    append_entries(file, _ENTRIES[:1])
    with file.open("ab") as stream:
        stream.write(b"\n" + line + b"\n")
    append_entries(file, _ENTRIES[1:])
    history = read_history(file)
    assert history.damaged_lines == (3,)
    assert len(history.entries) == 4


def test_runs_at_the_same_time_do_not_mix_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "history.jsonl"
    code = (
        "import sys; from pathlib import Path; from localq.measure.speed.history import append_entries\n"
        "for number in range(40): append_entries(Path(sys.argv[1]), [{'from': sys.argv[2], 'filling': 'x' * 9000}] * 3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, file, name]) for name in ("a", "b", "c")]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    names = [json.loads(line)["from"] for line in file.read_text(encoding="utf-8").split("\n") if line]
    assert sorted(names) == sorted("abc" * 120)
    assert all(len(set(names[start : start + 3])) == 1 for start in range(0, len(names), 3))


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with pytest.raises(LocalqError, match=r"can't write /dev/full: No space left on device"):
        append_entries(full, _ENTRIES)


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalqError, match="can't read"):
        read_history(tmp_path)


def test_a_name_that_is_no_utf_8_comes_back(tmp_path: Path) -> None:
    strange = {**_ENTRIES[0], "model": b"caf\xe9".decode(errors="surrogateescape")}
    append_entries(tmp_path / "history.jsonl", [strange, {**_ENTRIES[0], "model": "café"}])
    models = [entry["model"] for entry in read_history(tmp_path / "history.jsonl").entries]
    assert models == [strange["model"], "café"]


def test_models_and_forms_are_found_by_their_names() -> None:
    assert select_entries(_ENTRIES, []) == _ENTRIES
    assert select_entries(_ENTRIES, ["toy"]) == _ENTRIES
    assert select_entries(_ENTRIES, ["toy:mlx-4bit", "other"]) == _ENTRIES[:2]
    assert select_entries(_ENTRIES, ["to"]) == []


def test_a_time_without_a_zone_is_taken_for_utc() -> None:
    times = [entry_time({"started": text}) for text in ("2026-11-21T04:05:06", "2026-11-21T05:05:06+01:00")]
    assert times[0] == times[1]


def test_the_history_lies_in_the_models_folder_and_troubles_nobody_there(tmp_path: Path) -> None:
    file = history_file(tmp_path)
    append_entries(file, _ENTRIES)
    store = Store(tmp_path)
    assert file.parent == store.folder
    assert (store.artifacts(), store.damaged(), remove_leftovers(store)) == ([], [], [])
    assert len(read_history(file).entries) == 4
