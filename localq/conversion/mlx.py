"""One MLX folder: `model*.safetensors`, config and tokenizer, as stock `mlx_lm.load` wants them.

Worker threads read pieces ahead; MLX quantizes them in the caller's thread, on the device it defaults to.
The packed weights of a tensor stream to the file; its scales and biases (an eighth of that) wait until the
weights are written, so that files are written front to back.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.checkpoint.folder import Checkpoint
from localq.checkpoint.weights import INDEX_NAME, SINGLE_NAME
from localq.conversion.output import HashedOutput, WrittenFile, hashed_copy, hashed_text
from localq.conversion.pieces import WorkerPool, row_ranges
from localq.conversion.plan import MlxPlan, MlxTensor, Progress, stored_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

_MX_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def write_mlx(
    checkpoint: Checkpoint, plan: MlxPlan, folder: Path, pool: WorkerPool, progress: Progress
) -> list[WrittenFile]:
    """Write a whole MLX folder; `checkpoint.weights` must be open."""
    total = sum(checkpoint.stored(layout).nbytes for layout in checkpoint.layouts)
    done = 0

    def advance(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        progress(done, total)

    shards = list(plan.shards())
    files: list[WrittenFile] = []
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = SINGLE_NAME if len(shards) == 1 else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        files.append(_write_shard(checkpoint, shard, folder / name, pool, advance))
        weight_map |= {stored: name for tensor in shard for stored in tensor.stored()}
    index = {"metadata": {"total_size": plan.weight_bytes}, "weight_map": dict(sorted(weight_map.items()))}
    files.append(hashed_text(json.dumps(index, indent=2), folder / INDEX_NAME))
    files.append(hashed_text(json.dumps(_config(checkpoint, plan), indent=2), folder / "config.json"))
    files += [hashed_copy(file, folder / file.name) for file in checkpoint.tokenizer_files()]
    return files


def _config(checkpoint: Checkpoint, plan: MlxPlan) -> dict[str, Any]:
    config = checkpoint.family.mlx_config(checkpoint.config)
    recipe = plan.recipe
    if recipe.bits is not None:
        quantization = {"group_size": recipe.group_size, "bits": recipe.bits, "mode": "affine"}
        config["quantization"] = quantization
        config["quantization_config"] = quantization
    if recipe.dtype is not None:
        config["torch_dtype"] = recipe.dtype
        config.pop("dtype", None)
    return config


def _write_shard(
    checkpoint: Checkpoint, shard: list[MlxTensor], file: Path, pool: WorkerPool, advance: Callable[[int], None]
) -> WrittenFile:
    with HashedOutput(file) as output:
        output.write(_safetensors_header(shard))
        held_back: list[bytes] = []
        biases: list[bytes] = []
        for tensor, ends_tensor, rows in pool.in_order(_tasks(checkpoint, shard)):
            weight, scale, bias = _encoded(rows, tensor, checkpoint.stored(tensor.layout).dtype)
            output.write(weight)
            held_back.append(scale)
            biases.append(bias)
            if ends_tensor:
                for data in (*held_back, *biases):
                    output.write(data)
                held_back.clear()
                biases.clear()
            advance(rows.nbytes)
    return output.written


def _tasks(
    checkpoint: Checkpoint, shard: list[MlxTensor]
) -> Iterator[Callable[[], tuple[MlxTensor, bool, NDArray[Any]]]]:
    for tensor in shard:
        shape = tensor.layout.shape
        columns = shape[1] if len(shape) == 2 else 1
        for start, stop in row_ranges(shape[0], columns):
            yield partial(_read, checkpoint, tensor, start, stop)


def _read(checkpoint: Checkpoint, tensor: MlxTensor, start: int, stop: int) -> tuple[MlxTensor, bool, NDArray[Any]]:
    rows = checkpoint.weights.read_rows(tensor.layout.name, start, stop)
    return tensor, stop == tensor.layout.shape[0], rows


def _encoded(rows: NDArray[Any], tensor: MlxTensor, source_dtype: str) -> tuple[bytes, bytes, bytes]:
    """Bytes of weight, scales and biases; the last two are empty where the tensor is not quantized."""
    if tensor.bits is None and tensor.dtype == source_dtype:
        return rows.tobytes(), b"", b""
    import mlx.core as mx

    array = mx.array(rows)
    if source_dtype == "BF16":
        array = array.view(mx.bfloat16)
    array = array.astype(getattr(mx, _MX_DTYPES[tensor.dtype]))
    if tensor.bits is None:
        return _to_bytes(array), b"", b""
    weight, scales, biases = mx.quantize(array, group_size=tensor.group_size, bits=tensor.bits)
    mx.eval(weight, scales, biases)
    return _to_bytes(weight), _to_bytes(scales), _to_bytes(biases)


def _to_bytes(array: Any) -> bytes:
    import mlx.core as mx
    import numpy as np

    # numpy has no bfloat16: its bits are taken as uint16.
    plain = array.view(mx.uint16) if array.dtype == mx.bfloat16 else array
    return np.asarray(plain).tobytes()


def _safetensors_header(shard: list[MlxTensor]) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    offset = 0
    for tensor in shard:
        for name, (dtype, shape) in tensor.stored().items():
            nbytes = stored_bytes(dtype, shape)
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + nbytes]}
            offset += nbytes
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw
