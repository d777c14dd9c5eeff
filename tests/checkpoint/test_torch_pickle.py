"""Hostile pickles: no code runs, nothing large is allocated, and each is an error that names the cause."""

from __future__ import annotations

import io
import pickle
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from localq.checkpoint.torch_archive import read_torch_archive
from localq.errors import CheckpointError
from tests.checkpoint.torch_writer import (
    ORDERED_DICT,
    call,
    dict_of,
    name,
    number,
    storage,
    tensor,
    text,
    write_archive,
)

TEN = {"0": np.arange(10, dtype=np.float32).tobytes()}
PLAIN = tensor(storage(10), 0, (10,), (1,))


def failure(folder: Path, pickled: bytes) -> CheckpointError:
    file = write_archive(folder / "pytorch_model.bin", pickled, TEN)
    with pytest.raises(CheckpointError) as caught:
        read_torch_archive(file)
    assert caught.value.hint
    assert len(caught.value.message) < 500 + len(str(file))
    return caught.value


SYSTEM = name("posix", "system")
LIVE = {
    "reduce": lambda run: SYSTEM + text(run) + b"\x85R.",
    "os.system": lambda run: name("os", "system") + text(run) + b"\x85R.",
    "eval": lambda run: name("builtins", "eval") + text(f"__import__('os').system({run!r})") + b"\x85R.",
    "exec": lambda run: name("builtins", "exec") + text(f"import os; os.system({run!r})") + b"\x85R.",
    "inst": lambda run: b"(" + text(run) + b"iposix\nsystem\n.",
    "obj": lambda run: b"(" + name("subprocess", "Popen") + text(run) + b"I-1\nNNNNN\x88\x88o.",
    "stack_global": lambda run: b"\x80\x04" + text("posix") + text("system") + b"\x93" + text(run) + b"\x85R.",
    "dotted": lambda run: b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + text(run) + b"\x85R.",
    "partial": lambda run: call(call(name("functools", "partial"), SYSTEM, text(run))) + b".",
    "in an entry": lambda run: dict_of({"a": call(SYSTEM, text(run))}),
    "as a key": lambda run: b"}" + call(SYSTEM, text(run)) + b"Ns.",
}
"""Pickles that run a command as soon as Python's own unpickler reads them."""


@pytest.mark.parametrize("attack", LIVE)
def test_a_pickle_that_runs_a_command_in_python_runs_none_here(tmp_path: Path, attack: str) -> None:
    canary = tmp_path / "canary"
    pickled = LIVE[attack](f"exec touch '{canary}'")
    error = failure(tmp_path, pickled)
    assert any(word in error.message for word in ("system", "eval", "exec", "Popen", "partial"))
    assert "runs no code" in error.message
    assert not canary.exists()


@pytest.mark.parametrize("attack", LIVE)
def test_these_pickles_are_real_attacks(tmp_path: Path, attack: str) -> None:
    canary = tmp_path / "canary"
    result = pickle.Unpickler(io.BytesIO(LIVE[attack](f"exec touch '{canary}'"))).load()
    if hasattr(result, "wait"):
        result.wait()
    assert canary.exists()


REBUILD = "_rebuild_tensor_v2"


@pytest.mark.parametrize(
    ("pickled", "asked"),
    [
        (name("torch._utils", f"{REBUILD}.__globals__") + b".", f"torch._utils.{REBUILD}.__globals__"),
        (b"\x80\x04" + text("torch._utils") + text(f"{REBUILD}.__code__") + b"\x93.", f"{REBUILD}.__code__"),
        (name("collections", "OrderedDict.__init__.__globals__") + b".", "OrderedDict.__init__"),
        (name("collections", "namedtuple") + b".", "collections.namedtuple"),
        (name("torch", "load") + b".", "torch.load"),
        (name("torch.hub", "load") + b".", "torch.hub.load"),
        (name("torch", "nn.Module") + b".", "torch.nn.Module"),
        (name("torch.storage", "_load_from_bytes") + b".", "_load_from_bytes"),
        (name("numpy.core.multiarray", "_reconstruct") + b".", "_reconstruct"),
        (name("builtins", "getattr") + b".", "builtins.getattr"),
        (name("localq.checkpoint.torch_pickle", "StandIn") + b".", "StandIn"),
        (name("torch.Size", "") + b".", "torch.Size."),
        (name("", "torch.Size") + b".", ".torch.Size"),
        (name("os\x1b[2J", "system") + b".", "os\\x1b[2Jsystem".replace("Js", "J.s")),
        (name("o" * 100_000, "s") + b".", "ooooo"),
        (b"\x82\x01.", "EXT1"),
        (b"\x83\x01\x00.", "EXT2"),
        (b"\x84\x01\x00\x00\x00.", "EXT4"),
        (ORDERED_DICT + b")\x81.", "NEWOBJ"),
        (b"(" + ORDERED_DICT + b"o.", "OBJ"),
        (b"\x8f.", "EMPTY_SET"),
        (b"P0\n.", "PERSID"),
        (b"0.", "POP"),
        (b"\x97.", "NEXT_BUFFER"),
    ],
    ids=range(24),
)
def test_a_name_in_a_pickle_that_tensors_do_not_need_is_refused(tmp_path: Path, pickled: bytes, asked: str) -> None:
    assert asked in failure(tmp_path, pickled).message


@pytest.mark.parametrize(
    "state",
    [
        b"}" + text("__setstate__") + number(1) + b"s",
        b"}" + text("__class__") + name("torch", "Size") + b"s",
        b"}" + text("_metadata") + ORDERED_DICT + b"s" + text("weight") + PLAIN + b"s",
        b"N}" + text("x") + number(1) + b"s\x86",
        number(1),
    ],
)
@pytest.mark.parametrize("target", [ORDERED_DICT, PLAIN, name("torch", "Size"), storage(10), b"]"])
def test_attributes_of_other_values_than_a_state_dict_are_refused(tmp_path: Path, target: bytes, state: bytes) -> None:
    assert "attributes" in failure(tmp_path, target + state + b"b.").message


@pytest.mark.parametrize(
    "function",
    [text("posix.system"), number(1), PLAIN, storage(10), b"]", ORDERED_DICT, name("torch", "FloatStorage"), b"N"],
)
def test_nothing_but_a_stand_in_is_called(tmp_path: Path, function: bytes) -> None:
    assert "not a function" in failure(tmp_path, function + b")R.").message


HUGE = 2**62


@pytest.mark.parametrize(
    "pickled",
    [
        b"Nr\xff\xff\xff\x7f.",
        b"Nr\xff\xff\xff\xff.",
        b"Np999999999999\n.",
        b"j\xff\xff\xff\xff.",
        b"X\xff\xff\xff\xffabc.",
        b"\x8d" + HUGE.to_bytes(8, "little") + b"abc.",
        b"\x8e" + HUGE.to_bytes(8, "little") + b"abc.",
        b"\x96" + HUGE.to_bytes(8, "little") + b"abc.",
        b"B\xff\xff\xff\x7fabc.",
        b"T\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\xffabc.",
        b"\x95" + HUGE.to_bytes(8, "little") + b"N.",
        b"I" + b"9" * 100_000 + b"\n.",
        b"L" + b"9" * 100_000 + b"L\n.",
        call(name("torch", "Size"), b"\x8a\x08" + HUGE.to_bytes(8, "little")) + b".",
    ],
    ids=range(16),
)
def test_a_large_number_in_a_pickle_allocates_nothing(tmp_path: Path, pickled: bytes) -> None:
    tracemalloc.start()
    failure(tmp_path, pickled)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


DEEP = 200_000


@pytest.mark.parametrize(
    "pickled",
    [
        b")" + b"\x85" * DEEP + b".",
        b"}" + b")" + b"\x85" * DEEP + b"Ns.",
        dict_of({"a": b")" + b"\x85" * DEEP}),
        dict_of({"a": b"]" * DEEP + b"a" * (DEEP - 1)}),
        b"}" + text("a") + b"}" + text("a") + b"Nss.",
        b"(" * DEEP + b"t" * DEEP + b".",
        b"}q\x00" + text("a") + b"h\x00s.",
        b"]q\x00h\x00a.",
        (b"}" + text("a")) * DEEP + b"N" + b"s" * DEEP + b".",
        b")" + b"\x85" * DEEP + b"Q.",
        ORDERED_DICT + b")" + b"\x85" * DEEP + b"b.",
        tensor(b")" + b"\x85" * DEEP, 0, (1,), (1,)) + b".",
    ],
    ids=range(12),
)
def test_deep_nesting_is_an_error_and_not_a_crash(tmp_path: Path, pickled: bytes) -> None:
    failure(tmp_path, pickled)


@pytest.mark.parametrize(
    "pickled",
    [
        b"", b".", b"N", b"\xff", b"(", b"t.", b"\x85.", b"\x87.", b"R.", b"b.", b"Q.", b"s.", b"u.", b"a.", b"e.",
        b"q\x00.", b"h\x00.", b"\x94.", b"\x93.", b"N\x93.", b"(N.", b"}(Nu.", b"}(NNu.", b"]Ns.", b"}Na.", b"N(Ne.",
        b"NNs.", b"NNNs.", b"ctorch\nSize", b"N.", b"].", b"(t.", b"X\x02\x00\x00\x00\xff\xff.",
        b"}" + (text("a") + PLAIN + b"s") * 2 + b".",
        b"}" + number(1) + PLAIN + b"s.",
        b"}((N" + b"tttu.",
    ],
)  # fmt: skip
def test_a_damaged_pickle_is_an_error(tmp_path: Path, pickled: bytes) -> None:
    assert "dict of tensors" in failure(tmp_path, pickled).message


def test_a_pickle_larger_than_any_checkpoints_is_not_read(tmp_path: Path) -> None:
    assert "5,000,000" in failure(tmp_path, b"N" * 5_000_000).message


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    """Python's own pickler writes the frames, memos and short strings of a newer protocol around a tensor."""
    raw = pickle.dumps({"weight": None, "x" * 300: None}, protocol)
    raw = raw.replace(b"N", PLAIN)
    start = raw.find(b"\x95")  # the length of a frame, which nobody needs
    raw = raw if protocol < 4 else raw[:start] + raw[start + 9 :]
    file = write_archive(tmp_path / "pytorch_model.bin", raw, TEN)
    assert [found.name for found in read_torch_archive(file)] == ["weight", "x" * 300]


def test_a_pickle_with_changed_bytes_is_read_or_refused(tmp_path: Path) -> None:
    whole = dict_of({"a": PLAIN, "b": tensor(storage(10), 2, (2, 3), (1, 2))})
    chance = random.Random(0)
    refused = 0
    for _ in range(3000):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 2, 6))):
            damaged[chance.randrange(len(damaged))] = chance.choice((*whole, *range(256)))
        file = write_archive(tmp_path / "pytorch_model.bin", bytes(damaged), TEN)
        try:
            read_torch_archive(file)
        except CheckpointError:
            refused += 1
    assert 100 < refused < 3000
