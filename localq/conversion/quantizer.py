"""Quantizes rows to ggml's bytes: with localq's own kernels where they were seen to write those, with ggml elsewhere.

The kernels (kquants.c) are several times as fast. Which bytes ggml writes depends on how its library was compiled, so
they are compared with that library: before its first use on some thousands of blocks of every kind, and on a sample of
every piece that is converted. Verdicts stand in the user's cache folder for as long as both libraries stay the same.
LOCALQ_QUANTIZER=ggml leaves the kernels out.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.tensors import to_float32
from localq.conversion import ggml
from localq.conversion.compiled import Compiled, widest_library
from localq.disk import replacing
from localq.errors import OptionError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SWITCH = "LOCALQ_QUANTIZER"
_SOURCES = {"float32": 0, "float16": 1, "uint16": 2}
"""The enum of kquants.c, by the dtypes of `read_rows`; uint16 holds the bits of bfloat16."""

_SAMPLE_WEIGHTS = 2048
"""Compared in each piece of about a million weights."""


class OtherBytesFound(Exception):
    """A sample of a conversion is not what ggml makes of it: what was written must be thrown away."""


@dataclass(frozen=True, slots=True)
class Kernels(Compiled):
    """A compiled kquants.c."""

    @classmethod
    def of(cls, compiled: Compiled) -> Kernels:
        """The library, told what its function takes."""
        quantize, pointer, count = compiled.library.localq_quantize, ctypes.c_void_p, ctypes.c_int64
        quantize.restype = count
        quantize.argtypes = [ctypes.c_int, ctypes.c_int, pointer, pointer, count, count, pointer, pointer]
        return cls(compiled.file, compiled.lanes, compiled.library)

    def quantize(
        self, type_number: int, rows: NDArray[Any], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8] | None:
        """The bytes of (rows, columns) as `read_rows` gives them; None for a type without a kernel.

        Blocks of unusual values are handed to ggml. Releases Python's lock.
        """
        import numpy as np

        rows = np.ascontiguousarray(rows)
        result = np.empty((rows.shape[0], ggml.row_bytes(type_number, rows.shape[1])), dtype=np.uint8)
        given_to_ggml = self.library.localq_quantize(
            type_number,
            _SOURCES[rows.dtype.name],
            rows.ctypes.data,
            result.ctypes.data,
            *rows.shape,
            None if importance is None else importance.ctypes.data,
            ggml.quantize_chunk_address(),
        )
        return result if given_to_ggml >= 0 else None


@cache
def widest_kernels() -> Kernels | None:
    """For the widest vectors that this processor has, of the kernels that were compiled with localq."""
    found = widest_library("_kquants")
    return Kernels.of(found) if found else None


class Quantizer:
    """Quantizes to some types; thread-safe. Compares what was not compared before, which takes a second at most.

    Raises OptionError where LOCALQ_QUANTIZER is neither `ggml` nor empty.
    """

    def __init__(self, type_numbers: Iterable[int]) -> None:
        kernels = _chosen_kernels()
        self._kernels = kernels
        self._own_types = _types_with_equal_bytes(kernels, set(type_numbers)) if kernels else frozenset()
        self._pieces = itertools.count()

    @property
    def name(self) -> str:
        """For people: `localq (AVX-512)`, or `ggml` where that does all the work."""
        return f"localq ({self._kernels.name})" if self._kernels and self._own_types else "ggml"

    def quantize(
        self, type_number: int, rows: NDArray[Any], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """The bytes of (rows, columns) as `read_rows` gives them, shape (rows, bytes per row).

        `importance` has a weight for each column. Raises OtherBytesFound.
        """
        if self._kernels is None or type_number not in self._own_types:
            return ggml.quantize_rows(type_number, to_float32(rows), importance)
        result = self._kernels.quantize(type_number, rows, importance)
        assert result is not None, "the type was compared"
        if not self._sample_is_equal(type_number, rows, importance, result):
            _remember(_identity(self._kernels), None)
            raise OtherBytesFound
        return result

    def _sample_is_equal(
        self, type_number: int, rows: NDArray[Any], importance: NDArray[np.float32] | None, result: NDArray[np.uint8]
    ) -> bool:
        """Whether ggml makes the same of some blocks of one row: others in each piece, in all lanes over time."""
        block = ggml.block_weights(type_number)
        blocks = rows.shape[1] // block
        count = min(blocks, max(1, _SAMPLE_WEIGHTS // block))
        turn = next(self._pieces) * 2654435761  # spreads over rows and blocks
        row, first = turn % len(rows), turn % (blocks - count + 1)
        part = slice(first * block, (first + count) * block)
        expected = ggml.quantize_rows(
            type_number, to_float32(rows[row : row + 1, part]), None if importance is None else importance[part].copy()
        )
        size = result.shape[1] // blocks
        return bool((expected == result[row, first * size : (first + count) * size]).all())


def describe_quantizer() -> str:
    """Who quantizes GGUF files here, and why, for people. Raises OptionError as `Quantizer` does."""
    kernels = _chosen_kernels()
    if os.environ.get(_SWITCH):
        return f"ggml, because {_SWITCH} says so"
    if kernels is not None:
        return f"localq ({kernels.name}), compared with ggml at first use and in every conversion"
    if widest_kernels() is None:
        return "ggml: localq's faster kernels were not compiled"
    return "ggml: localq's faster kernels do not give its bytes here"


def _chosen_kernels() -> Kernels | None:
    switch = os.environ.get(_SWITCH, "")
    if switch not in ("", "ggml"):
        raise OptionError(f"{_SWITCH} is '{switch}'", "set it to ggml, or leave it out")
    kernels = None if switch else widest_kernels()
    return None if kernels is None or _verdicts(_identity(kernels)) is None else kernels


def _types_with_equal_bytes(kernels: Kernels, type_numbers: set[int]) -> frozenset[int]:
    identity = _identity(kernels)
    verdicts = dict(_verdicts(identity) or {})
    unknown = {number: str(number) for number in type_numbers if str(number) not in verdicts}
    if unknown:
        verdicts |= {key: gives_ggmls_bytes(kernels, number) for number, key in unknown.items()}
        _remember(identity, verdicts)
    return frozenset(number for number in type_numbers if verdicts[str(number)])


def gives_ggmls_bytes(kernels: Kernels, type_number: int) -> bool:
    """Whether there is a kernel for the type that gives ggml's bytes for some thousands of blocks of every kind."""
    import numpy as np

    generator = np.random.default_rng(0)
    for importance in (None, generator.lognormal(0, 3, 512).astype(np.float32)):
        for values in kinds_of_weights(generator, 32):
            result = kernels.quantize(type_number, values, importance)
            if result is None or (result != ggml.quantize_rows(type_number, to_float32(values), importance)).any():
                return False
    return True


def kinds_of_weights(generator: np.random.Generator, rows: int) -> list[NDArray[Any]]:
    """Weights that meet every branch of ggml's quantizers, each (rows, 512), as `read_rows` gives them."""
    import numpy as np

    shape, lines = (rows, 512), (rows, 1)
    normal = generator.standard_normal(shape)

    def powers(least: float, most: float, size: tuple[int, ...]) -> NDArray[Any]:
        repeated = 10 ** generator.uniform(least, most, size)
        return np.repeat(repeated, shape[1] // size[1], axis=1)

    groups, chosen = (rows, 32), generator.random(shape)
    signs = np.where(chosen < 0.5, -1.0, 1.0)
    kinds = [
        normal,
        normal * powers(-7, 3, lines),
        normal * powers(-6, 2, groups),
        normal * powers(-8, 2, shape),
        normal * powers(-6, 0, lines) + signs[:, :1] * powers(-3, 3, lines),
        normal / 100 + np.repeat(generator.standard_normal(groups), 16, axis=1),
        normal * (chosen < 0.1),
        normal * (chosen < 0.01),
        normal * np.where(chosen < 0.01, 50, 1),
        signs * 0.0,
        signs * 0.5,
        np.repeat(normal[:, :16], 32, axis=1),
        np.abs(normal),
        -np.abs(normal) - 0.1,
        generator.integers(-8, 9, shape) / 4,
        (generator.integers(-63, 64, shape) + 0.5) / 63,
        generator.standard_t(2, shape) / 50,
        normal * powers(-45, -10, lines),
        normal * powers(3, 37, lines),
    ]
    single = [kind.astype(np.float32) for kind in kinds]
    with np.errstate(over="ignore"):
        half = [np.nan_to_num(kind.astype(np.float16)) for kind in single[:9]]
    bfloat = [(kind.view(np.uint32) >> 16).astype(np.uint16) for kind in single]
    return [*single, *half, *bfloat]


def _identity(kernels: Kernels) -> str:
    """Of this file's comparison, of the kernels and of ggml's libraries."""
    parts = ["1"]
    for file in (kernels.file, *ggml.library_files()):
        status = file.stat()
        parts += [str(file), str(status.st_size), str(status.st_mtime_ns)]
    return "|".join(parts)


_in_this_process: dict[str, dict[str, bool] | None] = {}
"""By identity: the verdicts by type, or None once a conversion found other bytes."""


def _verdict_file() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("localq")) / "quantizer.json"


def _verdicts(identity: str) -> dict[str, bool] | None:
    if identity not in _in_this_process:
        found: dict[str, bool] | None = {}
        with suppress(OSError, ValueError, AttributeError):
            found = json.loads(_verdict_file().read_text(encoding="utf-8")).get(identity, {})
        _in_this_process[identity] = found if isinstance(found, dict) else None
    return _in_this_process[identity]


def _remember(identity: str, verdicts: dict[str, bool] | None) -> None:
    """For this process, and for later ones where the cache folder can be written."""
    _in_this_process[identity] = verdicts
    with suppress(OSError):
        _verdict_file().parent.mkdir(parents=True, exist_ok=True)
        with replacing(_verdict_file()) as stream:
            stream.write(json.dumps({identity: verdicts}, indent=2).encode())
