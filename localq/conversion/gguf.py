"""One GGUF file in one pass: header, then every tensor from the checkpoint's rows to quantized bytes.

Reading and quantizing run in worker threads, in pieces; the caller's thread writes in file order. There is
no intermediate file, and memory does not grow with the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from localq.checkpoint.folder import Checkpoint
from localq.conversion import ggml
from localq.conversion.output import HashedOutput, WrittenFile
from localq.conversion.pieces import WorkerPool, row_ranges
from localq.conversion.plan import GGUF_ALIGNMENT_BYTES, GgufPlan, GgufTensor, Progress
from localq.conversion.vocabulary import add_vocabulary, name_for_llama_cpp
from localq.store.disk_errors import disk_errors

if TYPE_CHECKING:
    import numpy as np
    from gguf import GGUFWriter
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class _Piece:
    """Rows `start` to `stop` of a tensor."""

    tensor: GgufTensor
    start: int
    stop: int

    @property
    def ends_tensor(self) -> bool:
        return self.stop == self.tensor.rows


def write_gguf(checkpoint: Checkpoint, plan: GgufPlan, file: Path, pool: WorkerPool, progress: Progress) -> WrittenFile:
    """Write a whole GGUF file; `checkpoint.weights` must be open."""
    header = file.with_suffix(".header")
    with disk_errors(file.parent):
        write_header(checkpoint, plan, header)
    total = sum(checkpoint.stored(layout).nbytes for layout in checkpoint.layouts)
    done = 0
    with HashedOutput(file) as output:
        output.write(header.read_bytes())
        header.unlink()
        for piece, data in pool.in_order(_tasks(checkpoint, plan)):
            output.write(data.tobytes())
            if piece.ends_tensor:
                output.write(bytes(-output.position % GGUF_ALIGNMENT_BYTES))
            done += _source_bytes(checkpoint, piece)
            progress(done, total)
    return output.written


def write_header(checkpoint: Checkpoint, plan: GgufPlan, file: Path) -> None:
    """Metadata with the vocabulary, and tensor table, padded so that the first tensor may follow.

    Raises CheckpointError where the tokenizer can't be had as GGUF.
    """
    from gguf import GGML_QUANT_VERSION, GGUFWriter

    family, config = checkpoint.family, checkpoint.config
    writer = GGUFWriter(file, family.gguf_architecture())
    writer.add_type("model")
    _add_metadata(writer, checkpoint)
    writer.add_file_type(plan.recipe.file_type_number)
    writer.add_quantization_version(GGML_QUANT_VERSION)
    add_vocabulary(writer, checkpoint.folder, config.vocabulary_size)
    writer.add_name(name_for_llama_cpp(checkpoint.name.rpartition("/")[2], checkpoint.folder))
    for tensor in plan.tensors:
        _add_tensor_info(writer, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with file.open("ab") as stream:
        stream.write(bytes(-stream.tell() % GGUF_ALIGNMENT_BYTES))


def _add_metadata(writer: GGUFWriter, checkpoint: Checkpoint) -> None:
    for key, value in checkpoint.family.gguf_metadata(checkpoint.config).items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_string(key, value)


def _add_tensor_info(writer: GGUFWriter, tensor: GgufTensor) -> None:
    import numpy as np
    from gguf import GGMLQuantizationType

    kind = GGMLQuantizationType(tensor.type_number)
    writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)


def _tasks(checkpoint: Checkpoint, plan: GgufPlan) -> Iterator[Callable[[], tuple[_Piece, NDArray[np.uint8]]]]:
    for tensor in plan.tensors:
        layout = tensor.layout
        # A piece holds whole heads where rows change places within them.
        multiple = tensor.rows // layout.rope_head_count if layout and layout.rope_head_count else 1
        for start, stop in row_ranges(tensor.rows, tensor.columns, max(1, multiple)):
            yield partial(_quantized, checkpoint, _Piece(tensor, start, stop))


def _quantized(checkpoint: Checkpoint, piece: _Piece) -> tuple[_Piece, NDArray[np.uint8]]:
    tensor = piece.tensor
    return piece, ggml.quantize_rows(tensor.type_number, _values(checkpoint, piece).reshape(-1, tensor.columns))


def _values(checkpoint: Checkpoint, piece: _Piece) -> NDArray[np.float32]:
    tensor = piece.tensor
    if tensor.layout is None:
        assert tensor.values is not None
        return tensor.values
    start, stop = (piece.start, piece.stop) if len(tensor.shape) > 1 else (0, tensor.columns)
    values = checkpoint.weights.read_rows_float32(tensor.layout.name, start, stop)
    if tensor.layout.rope_head_count is None:
        return values
    return _neighbours_rotated(values, tensor.shape[0] // tensor.layout.rope_head_count)


def _neighbours_rotated(values: NDArray[np.float32], head_dim: int) -> NDArray[np.float32]:
    """Rows of each head from [first half, second half] to [first of each half, second of each half, ...]."""
    halves = values.reshape(-1, 2, head_dim // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)


def _source_bytes(checkpoint: Checkpoint, piece: _Piece) -> int:
    if piece.tensor.layout is None:
        return 0
    stored = checkpoint.stored(piece.tensor.layout)
    return stored.nbytes * (piece.stop - piece.start) // piece.tensor.rows
