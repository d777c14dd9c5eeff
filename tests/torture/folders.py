"""`python -m tests.torture.folders`: hostile checkpoint folders for `localq doctor` and `localq convert`.

Each verb runs in a process forked from one that has imported the libraries, so the figures are the folder's own. It
must end within two seconds (`--most-seconds`, for a machine with other work) and two of CPU time, take at most 256 MiB
more than before, say what is wrong without control characters, and fail with no other error than localq's. The folders
follow from `--seed`.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localq.hardware import peak_memory_bytes

MOST_MEMORY_BYTES = 256 << 20
_MOST_CPU_SECONDS = 2.0
_GIVE_UP_SECONDS = 60
_MOST_SHOWN_CHARACTERS = 20_000
_BASE = Path(__file__).parents[2] / "localq" / "demo" / "toy-llama"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_OPTIONAL = ("added_tokens.json", "chat_template.jinja", "chat_template.json", "model.safetensors.index.json")
FILES = (*sorted(file.name for file in _BASE.iterdir()), *_OPTIONAL, "localq.json")


def special_file(random_: random.Random, folder: Path) -> str:
    """Something that is no regular file in the place of one."""
    name = random_.choice(FILES)
    kind = random_.choice(sorted(SPECIAL))
    path = folder / name
    path.unlink(missing_ok=True)
    SPECIAL[kind](path)
    return f"{name} is {kind}"


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as opened:
        here = Path.cwd()
        os.chdir(path.parent)  # the name of a socket is at most 107 bytes long
        opened.bind(path.name)
        os.chdir(here)


def _large(path: Path) -> None:
    with path.open("wb") as stream:
        stream.truncate(20 << 30)


SPECIAL: dict[str, Callable[[Path], Any]] = {
    "a named pipe": os.mkfifo,
    "a socket": _socket,
    "a folder": Path.mkdir,
    "a dangling link": lambda path: path.symlink_to("nowhere"),
    "a circular link": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to /dev/tty": lambda path: path.symlink_to("/dev/tty"),
    "a link to a folder": lambda path: path.symlink_to("/"),
    "20 GiB of zeros": _large,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(bytes(1000)),
}


def huge_json(random_: random.Random, folder: Path) -> str:
    """JSON that is long, deep, or holds absurdly much."""
    name = random_.choice([name for name in FILES if name.endswith("json")])
    count = random_.choice((10_000, 1_000_000, 5_000_000))
    content = {
        "deep lists": lambda: b"[" * count,
        "deep objects": lambda: b'{"a":' * min(count, 1_000_000) + b"1" + b"}" * min(count, 1_000_000),
        "empty lists": lambda: b'{"a": [' + b"[]," * count + b"[]]}",
        "short texts": lambda: b'{"a": [' + b'"bb",' * count + b'"b"]}',
        "a long number": lambda: b'{"a": ' + b"9" * count + b"}",
        "a long text": lambda: b'{"a": "' + b"x" * count * 10 + b'"}',
        "many keys": lambda: b"{" + b",".join(b'"%d":1' % number for number in range(min(count, 1_000_000))) + b"}",
        "other text": lambda: "{\ud83d}".encode("utf-16", "surrogatepass") * (count // 10),
    }
    kind = random_.choice(sorted(content))
    (folder / name).write_bytes(content[kind]())
    return f"{name} is {kind}, {count:,}"


_VALUES = (
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    None,
    True,
    "x",
    "\x1b[31m" * 50,
    "y" * 10**6,
    [],
    [1, 2],
    {},
    {"a": 1},
)


def other_values(random_: random.Random, folder: Path) -> str:
    """Other values of keys in the JSON files."""
    name = random_.choice([name for name in FILES if name.endswith(".json") and (folder / name).is_file()])
    content = json.loads((folder / name).read_text())
    said = []
    for _ in range(random_.choice((1, 1, 2, 4))):
        inner = content
        while True:
            key = random_.choice(list(inner))
            if not isinstance(inner[key], dict) or not inner[key] or random_.random() < 0.3:
                break
            inner = inner[key]
        inner[key] = random_.choice(_VALUES)
        said.append(f"{key} = {str(inner[key])[:20]!r}")
    (folder / name).write_text(json.dumps(content))
    return f"{name}: {', '.join(said)}"


def other_header(random_: random.Random, folder: Path) -> str:
    """A safetensors header with absurd counts, names, shapes or lengths."""
    file = folder / "model.safetensors"
    data = file.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header: dict[str, Any] = json.loads(data[8 : 8 + length])
    name = random_.choice([name for name in header if name != "__metadata__"])
    kind = random_.choice(("count", "name", "escape", "shape", "offset", "dtype", "length", "cut", "flip"))
    if kind == "count":
        number = random_.choice((20_000, 300_000, 2_000_000))
        header |= {f"t{position}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for position in range(number)}
    elif kind in ("name", "escape"):
        header["n" * 10**6 if kind == "name" else "\x1b]0;title\x07\x1b[2J" * 3] = header.pop(name)
    elif kind == "shape":
        header[name]["shape"] = random_.choice(([0], [-1], [2**62, 4], [1] * 100, [1.5], "x", [10**100], None))
    elif kind == "offset":
        header[name]["data_offsets"] = random_.choice(([0, 2**63], [-1, 5], [5, 1], [2**70, 2**71], "x", [1]))
    elif kind == "dtype":
        header[name]["dtype"] = random_.choice(("F4", "F64", "I8", "\x1b[1m", "x" * 10**6, 1, None))
    raw = json.dumps(header).encode()
    if kind == "length":
        raw, length = data[8 : 8 + length], random_.choice((0, 1, 2**31, 2**63, 2**64 - 1, len(data)))
        file.write_bytes(struct.pack("<Q", length) + data[8:])
        return f"safetensors: length {length}"
    content = bytearray(struct.pack("<Q", len(raw)) + raw + data[8 + length :])
    if kind == "cut":
        del content[random_.randrange(len(content)) :]
    elif kind == "flip":
        content[random_.randrange(8 + len(raw))] ^= 1 << random_.randrange(8)
    file.write_bytes(content)
    return f"safetensors: {kind}"


def other_index(random_: random.Random, folder: Path) -> str:
    """An index of shards that are not there, outside, or named to harm."""
    number = random_.choice((1, 10, 300_000))
    name = random_.choice(("model.safetensors", "../x", "/etc/passwd", "\x1b[31mred", "z" * 10**6, "a\0b", "", "."))
    number = min(number, 10**8 // max(1, len(name)))  # long names for many tensors would fill this machine itself
    content = {"weight_map": {f"t{position}": name for position in range(number)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content))
    return f"index: {number} x {name[:20]!r}"


TEMPLATES = (
    "{{ 'a' * 10**9 }}",
    "{% set ns = namespace(x='a') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{% for i in range(99999) %}aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa{% endfor %}",
    "{{ 10**100000000 }}",
    "{{ [1] | tojson(indent=10**9) }}",
    "{{ strftime_now('%Y' * 10**6) }}",
    "{{ '%1000000000d' % 1 }}",
    "{{ '{:>1000000000}'.format(1) }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ " + "(" * 100_000 + "1" + ")" * 100_000 + " }}",
    "{{ " + "[" * 3000 + "]" * 3000 + " }}",
    "{% if 1 %}" * 5000,
    "{{ raise_exception('\\x1b[2J' * 1000000) }}",
    "{{ raise_exception('x' * 100000) }}",
    "{{ [0] * 10**9 }}",
    "{{ lipsum(n=10**8) }}",
    "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "{{ ('a' * 10**5) | wordwrap(1) | indent(10**6) }}",
    "{{ range(10**9) | list }}",
    "{{ 'x' | center(10**10) }}",
    "{% set ns = namespace(x=[1]) %}{% for i in range(50) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
    "{{ self.__init__.__globals__ }}",
    "{{ cycler.__init__.__globals__.os.system('true') }}",
    "x" * 10_000_000,
)


def other_template(random_: random.Random, folder: Path) -> str:
    """A chat template that takes time, memory or the terminal."""
    template = random_.choice(TEMPLATES)
    if random_.random() < 0.5:
        (folder / "chat_template.jinja").write_text(template)
    else:
        file = folder / "tokenizer_config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": template}))
    return f"template {template[:60]}"


CHANGES: tuple[Callable[[random.Random, Path], str], ...] = (
    special_file,
    huge_json,
    other_values,
    other_values,
    other_header,
    other_index,
    other_template,
)


@dataclass(frozen=True)
class Result:
    """How one verb ended."""

    verb: str
    seconds: float
    cpu_seconds: float
    memory_bytes: int
    fault: str
    """Empty where it ended as it should."""
    said: str


def run(verb: list[str], folder: Path, most_seconds: float = 2.0) -> Result:
    """Run a verb in a forked process, and judge how it ended."""
    output = folder.parent / "output"
    started = time.monotonic()
    process = os.fork()
    if process == 0:
        _child(verb, output)
    ended, usage = 0, None
    while not ended and time.monotonic() - started < _GIVE_UP_SECONDS:
        time.sleep(0.005)
        ended, _, usage = os.wait4(process, os.WNOHANG)
    seconds, has_ended = time.monotonic() - started, bool(ended)
    if not has_ended:
        os.kill(process, signal.SIGKILL)
        _, _, usage = os.wait4(process, 0)
    assert usage is not None
    cpu_seconds = usage.ru_utime + usage.ru_stime
    said, _, figures = output.read_text(errors="surrogateescape").rpartition("\nFIGURES ")
    code, _, memory = figures.partition(" ")
    memory_bytes = int(memory or 0)
    faults = {
        "does not end": not has_ended,
        "ended the process": has_ended and not figures,
        "failed unexpectedly": "failed unexpectedly" in said or "Traceback" in said or code not in ("0", "1"),
        "slow": seconds > most_seconds or cpu_seconds > _MOST_CPU_SECONDS,
        "takes memory": memory_bytes > MOST_MEMORY_BYTES,
        "shows control characters": bool(_CONTROL.search(said)),
        "says too much": len(said) > _MOST_SHOWN_CHARACTERS,
    }
    fault = ", ".join(name for name, is_so in faults.items() if is_so)
    return Result(verb[0], seconds, cpu_seconds, memory_bytes, fault, said)


def _child(verb: list[str], output: Path) -> None:
    """Run the verb with its output in a file, whose last line are status and memory; ends the process."""
    descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    before, code = _resident_bytes(), 1
    try:
        from localq.cli.main import main

        main(verb)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException as error:
        os.write(1, f"failed unexpectedly: {error!r}".encode(errors="replace"))
    sys.stdout.flush()
    os.write(1, f"\nFIGURES {code} {max(0, peak_memory_bytes() - before)}".encode())
    os._exit(0)


def _resident_bytes() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _import_all() -> None:
    import gguf  # noqa: F401
    import llama_cpp  # noqa: F401
    import numpy  # noqa: F401
    import tokenizers  # noqa: F401

    import localq.cli.convert
    import localq.cli.doctor
    import localq.conversion.convert  # noqa: F401


def write_case(seed: int, folder: Path) -> str:
    """The folder of a number; returns what is hostile in it."""
    random_ = random.Random(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(_BASE, folder)
    return random_.choice(CHANGES)(random_, folder)


def main() -> int:
    """Run the cases; 1 where one did not end as it should."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--most-seconds", type=float, default=2.0)
    parser.add_argument("--verbose", action="store_true")
    given = parser.parse_args()
    _import_all()
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        os.environ |= {"XDG_CACHE_HOME": f"{name}/cache", "LOCALQ_MODELS": f"{name}/models", "HF_HUB_OFFLINE": "1"}
        folder = Path(name) / "checkpoint"
        for seed in range(given.seed, given.seed + given.count):
            what = write_case(seed, folder)
            for verb in (["doctor", str(folder)], ["convert", str(folder), "--to", "gguf-q8_0"]):
                result = run(verb, folder, given.most_seconds)
                results.append(result)
                if result.fault or given.verbose:
                    figures = f"{result.seconds:.1f} s, CPU {result.cpu_seconds:.1f} s, {result.memory_bytes >> 20} MiB"
                    said = result.said[-600:] if result.fault else result.said[-200:]
                    sys.stdout.write(
                        f"{seed} {verb[0]} ({what}): {result.fault or 'as it should'}, {figures}\n{said!r}\n"
                    )
                    sys.stdout.flush()
    faults = [result for result in results if result.fault]
    busiest = max(result.cpu_seconds for result in results)
    slowest, largest = max(result.seconds for result in results), max(result.memory_bytes for result in results)
    sys.stdout.write(
        f"{given.count} folders, {len(results)} runs, {len(faults)} not as they should; "
        f"slowest {slowest:.1f} s, most work {busiest:.1f} s of CPU time, largest {largest >> 20} MiB\n"
    )
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
