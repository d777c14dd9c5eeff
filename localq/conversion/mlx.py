"""One MLX folder in one pass: `model*.safetensors` and config, as stock `mlx_lm.load` reads them.

Worker threads read pieces ahead; MLX quantizes them on its default device, on a CPU a few side by side: each of its
streams computes in a thread of its own. Where scales are searched, the worker threads quantize. The packed weights of a
tensor are written at once; its scales and biases (an eighth of that) are kept until the weights are written, because
files are written from front to back.
"""

from __future__ import annotations

import json
import math
import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.tensors import row_ranges
from localq.checkpoint.weights import INDEX_NAME, SINGLE_NAME
from localq.conversion.mlx_search import searched_piece
from localq.conversion.output import HashedOutput, WrittenFile, hashed_text
from localq.conversion.pieces import Piece
from localq.conversion.plan_mlx import MlxPlan, MlxTensor, stored_bytes
from localq.hardware import available_logical_cores, mlx_runs_on_gpu

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MOST_STREAMS = 4
_of_this_thread = threading.local()  # MLX's streams serve the thread that made them, and are never given back

_MX_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


class MlxFolder:
    """An MLX folder being written, without the tokenizer; `checkpoint.weights` must be open. A context manager."""

    def __init__(self, checkpoint: Checkpoint, plan: MlxPlan, folder: Path) -> None:
        self._checkpoint = checkpoint
        self._plan = plan
        self._folder = folder
        shards = list(plan.shards())
        names = [SINGLE_NAME]
        if len(shards) > 1:
            names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
        self._streams = deque(_streams())
        self._computing: deque[tuple[_Shard, bool, list[Any]]] = deque()
        self._shards = [_Shard(folder / name, tensors) for name, tensors in zip(names, shards, strict=True)]

    def pieces(self) -> Iterator[Piece]:
        """All weights, in the order of the files."""
        for shard in self._shards:
            for tensor in shard.tensors:
                *leading, columns = tensor.layout.shape
                rows, columns = (math.prod(leading), columns) if leading else (columns, 1)
                nbytes = self._checkpoint.tensor(tensor.layout).nbytes
                for start, stop in row_ranges(rows, columns):
                    read = partial(self._checkpoint.weights.read_rows, tensor.layout.name, start, stop)
                    source_bytes = nbytes * stop // rows - nbytes * start // rows
                    if self._plan.is_searched(tensor):
                        search = partial(self._searched, tensor, start, read)
                        yield Piece(source_bytes, search, partial(self._write_searched, shard, stop == rows))
                    else:
                        yield Piece(source_bytes, read, partial(self._write, shard, tensor, stop == rows))

    def encoded(self, tensor: MlxTensor, rows: NDArray[Any]) -> list[Any]:
        """The weight, and its scales and biases where it is quantized, of some rows: arrays that are being computed."""
        import mlx.core as mx

        with mx.stream(self._streams[0]):
            return _encoded(rows, tensor, self._checkpoint.tensor(tensor.layout).dtype)

    @property
    def written(self) -> list[WrittenFile]:
        """The files, after the `with` block."""
        weight_map = {name: shard.file.name for shard in self._shards for t in shard.tensors for name in t.stored()}
        index = {"metadata": {"total_size": self._plan.weight_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        return [
            *(shard.written for shard in self._shards),
            hashed_text(json.dumps(index, indent=2), self._folder / INDEX_NAME),
            hashed_text(json.dumps(self._config(), indent=2), self._folder / "config.json"),
        ]

    def __enter__(self) -> MlxFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._computing and error is None:
            self._write_next()
        for shard in self._shards:
            shard.close(kind, error, trace)

    def _write(self, shard: _Shard, tensor: MlxTensor, ends_tensor: bool, rows: NDArray[Any]) -> None:
        self._computing.append((shard, ends_tensor, self.encoded(tensor, rows)))
        self._streams.rotate()
        if len(self._computing) > len(self._streams):
            self._write_next()

    def _searched(self, tensor: MlxTensor, start: int, read: Callable[[], NDArray[Any]]) -> list[Any]:
        assert tensor.quantization is not None
        used, layout = self._plan.importance, tensor.layout
        weights = used.of(layout.gguf_name, layout.shape) if used else None
        found = searched_piece(read(), start, tensor.layout.shape, tensor.quantization, weights)
        return [found.weight, found.scales, found.biases]

    def _write_searched(self, shard: _Shard, ends_tensor: bool, parts: list[Any]) -> None:
        while self._computing:
            self._write_next()
        shard.write([part.tobytes() for part in parts], ends_tensor)

    def _write_next(self) -> None:
        shard, ends_tensor, parts = self._computing.popleft()
        shard.write([_to_bytes(part) for part in parts], ends_tensor)

    def _config(self) -> dict[str, Any]:
        config = self._checkpoint.family.mlx_config(self._checkpoint.config)
        quantization = self._plan.quantization_config()
        if quantization is not None:
            config["quantization"] = quantization
            config["quantization_config"] = quantization
        if self._plan.recipe.dtype is not None:
            config["torch_dtype"] = self._plan.recipe.dtype
            config.pop("dtype", None)
        return config


class _Shard:
    """One safetensors file, opened with its first piece."""

    def __init__(self, file: Path, tensors: list[MlxTensor]) -> None:
        self.file = file
        self.tensors = tensors
        self._tensors_left = len(tensors)
        self._output: HashedOutput | None = None
        self._held_back: list[list[bytes]] = []

    @property
    def written(self) -> WrittenFile:
        assert self._output is not None, "every shard has a tensor"
        return self._output.written

    def write(self, parts: list[bytes], ends_tensor: bool) -> None:
        """Append a piece of the current tensor; with the last one its scales and biases."""
        if self._output is None:
            self._output = HashedOutput(self.file)
            self._output.write(safetensors_header(self.tensors))
        self._output.write(parts[0])
        self._held_back.append(parts[1:])
        if ends_tensor:
            for pieces in zip(*self._held_back, strict=True):  # all scales, then all biases
                for data in pieces:
                    self._output.write(data)
            self._held_back.clear()
            self._tensors_left -= 1
            if not self._tensors_left:
                self.close()

    def close(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        trace: TracebackType | None = None,
    ) -> None:
        """Finish the file; a second time does nothing."""
        if self._output is not None:
            self._output.__exit__(kind, error, trace)


def _streams() -> list[Any]:
    import mlx.core as mx

    if mlx_runs_on_gpu():
        return [mx.default_stream(mx.default_device())]
    if not hasattr(_of_this_thread, "streams"):
        count = min(available_logical_cores(), _MOST_STREAMS)
        _of_this_thread.streams = [mx.new_stream(mx.cpu) for _ in range(count)]
    return list(_of_this_thread.streams)


def _encoded(rows: NDArray[Any], tensor: MlxTensor, source_dtype: str) -> list[Any]:
    if tensor.quantization is None and tensor.dtype == source_dtype:
        return [rows]
    import mlx.core as mx

    array = mx.array(rows)
    if source_dtype == "BF16":
        array = array.view(mx.bfloat16)
    array = array.astype(getattr(mx, _MX_DTYPES[tensor.dtype]))
    how = tensor.quantization
    parts: list[Any] = [array]
    if how is not None:
        parts = list(mx.quantize(array, group_size=how.group_size, bits=how.bits, mode=how.mode))
    mx.async_eval(*parts)  # type: ignore[no-untyped-call]
    return parts


def _to_bytes(array: Any) -> bytes:
    import mlx.core as mx
    import numpy as np

    # numpy has no bfloat16: its bits are taken as uint16.
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.asarray(plain).tobytes()  # waits until it is computed


def safetensors_header(tensors: list[MlxTensor]) -> bytes:
    """What a weight file with these tensors begins with."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in tensors:
        for name, (dtype, shape) in tensor.stored().items():
            nbytes = stored_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            offset += nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
