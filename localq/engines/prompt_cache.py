"""What an engine has computed for a prompt, saved to a file for a later run of the same model.

The file: a line that names its type, the length of a JSON header, the header, the bytes of the arrays in its order,
and the SHA-256 of everything before. Each engine has its own arrays.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from localq.disk import reason, replacing
from localq.engines.base import Engine, EngineState
from localq.errors import EngineError, OptionError
from localq.gguf_file import part_names

_MAGIC = b"localq prompt cache 1\n"
_LENGTH_BYTES = 8
_MOST_HEADER_BYTES = 1 << 24
"""Room for a million token ids."""
_DIGEST_BYTES = hashlib.sha256().digest_size
_PIECE_BYTES = 1 << 20


def save_prompt_cache(engine: Engine, file: Path, fingerprint: str) -> None:
    """Save what the engine's cache holds. The file is written whole or not at all; an earlier one is overwritten.

    `fingerprint` identifies the model's weights. Raises EngineError when the file can't be written.
    """
    state = engine.state()
    header = {
        "fingerprint": fingerprint,
        "settings": dict(engine.state_settings),
        "tokens": list(state.tokens),
        "shapes": [array.shape for array in state.arrays],
    }
    text = json.dumps(header).encode()
    with _disk_errors(file), replacing(file) as stream:
        digest = hashlib.sha256()
        for piece in _pieces(text, state):
            digest.update(piece)
            stream.write(piece)
        stream.write(digest.digest())


def load_prompt_cache(engine: Engine, file: Path, fingerprint: str) -> None:
    """Fill the engine's cache from a file; the next prefill uses it as far as it is a prefix of its prompt.

    Raises OptionError when it was made by another model or with other options, EngineError when it can't be read or
    is damaged. Then the engine's cache is as it was, or empty.
    """
    with _disk_errors(file), file.open("rb") as opened:
        header = _read_header(opened, file)
        _require_alike(header, {"fingerprint": fingerprint, "settings": dict(engine.state_settings)}, file)
        if len(header["tokens"]) > engine.context_length:
            raise OptionError(
                f"{file} has {len(header['tokens'])} tokens; the context holds {engine.context_length}",
                "give a larger context with -c/--context-length, or another --prompt-cache",
            )
        _require_whole(opened, file)
        engine.restore(EngineState(tuple(header["tokens"]), tuple(_arrays(opened, header["shapes"]))))


def weights_fingerprint(path: Path) -> str:
    """Identifies a `.gguf` file or an MLX folder by names, sizes and times: reading all of it would take long.

    Raises EngineError for files whose size and time can't be read.
    """
    if path.is_dir():
        files = [path / "config.json", *sorted(path.glob("*.safetensors"))]
    else:
        files = [path.with_name(name) for name in part_names(path.name)]
    digest = hashlib.sha256()
    for file in files:
        with _disk_errors(file):
            found = file.stat()
        digest.update(f"{file.name}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _pieces(header: bytes, state: EngineState) -> Iterator[bytes | memoryview]:
    yield _MAGIC
    yield len(header).to_bytes(_LENGTH_BYTES, "little")
    yield header
    for array in state.arrays:
        yield array.reshape(-1).data


def _read_header(opened: IO[bytes], file: Path) -> dict[str, Any]:
    """The header, checked: its types are right and its sizes add up to the file's. The arrays come next."""
    if opened.read(len(_MAGIC)) != _MAGIC:
        raise EngineError(f"{file} is not a prompt cache of this version of localq", "give --prompt-cache another file")
    length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
    try:
        if length > _MOST_HEADER_BYTES:
            raise ValueError
        header = json.loads(opened.read(length))
        tokens, shapes = header["tokens"], header["shapes"]
        numbers = [*tokens, *(size for shape in shapes for size in shape)]
        if not all(type(number) is int and 0 <= number < 2**40 for number in numbers):
            raise ValueError
        array_bytes = sum(math.prod(shape) for shape in shapes)
        if opened.tell() + array_bytes + _DIGEST_BYTES != os.fstat(opened.fileno()).st_size:
            raise ValueError
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(file) from error
    return dict(header)


def _require_alike(header: Mapping[str, Any], expected: Mapping[str, Any], file: Path) -> None:
    if header.get("fingerprint") != expected["fingerprint"]:
        raise OptionError(
            f"{file} was made with another model, or with another format of it", "give --prompt-cache another file"
        )
    if header.get("settings") != expected["settings"]:
        raise OptionError(
            f"{file} was made with {header.get('settings')}; now it is {expected['settings']}",
            "give the options that it was made with, or another --prompt-cache",
        )


def _require_whole(opened: IO[bytes], file: Path) -> None:
    position, digest = opened.tell(), hashlib.sha256()
    left = os.fstat(opened.fileno()).st_size - _DIGEST_BYTES
    opened.seek(0)
    while left and (piece := opened.read(min(_PIECE_BYTES, left))):
        digest.update(piece)
        left -= len(piece)
    if opened.read() != digest.digest():
        raise _damaged(file)
    opened.seek(position)


def _arrays(opened: IO[bytes], shapes: list[list[int]]) -> Iterator[Any]:
    import numpy as np

    for shape in shapes:
        yield np.fromfile(opened, dtype=np.uint8, count=math.prod(shape)).reshape(shape)


def _damaged(file: Path) -> EngineError:
    return EngineError(f"{file} is damaged", "remove it; the prompt is then computed and saved again")


@contextmanager
def _disk_errors(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EngineError(f"the prompt cache {file} can't be used: {reason(error)}") from error
