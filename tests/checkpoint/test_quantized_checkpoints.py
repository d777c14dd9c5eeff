"""Whole checkpoints that are stored quantized become, byte for byte, what their dequantized floats become.

The packers here are written from what each method's library stores; MLX rounds and reads 8-bit floats.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from localq.checkpoint.folder import open_checkpoint
from localq.conversion.convert import convert
from localq.errors import CheckpointError
from tests.tiny_checkpoints import CONFIGS, encode, random_tensors, write_checkpoint

Array = np.ndarray[Any, Any]
Stored = dict[str, tuple[str, Array]]
"""Name -> (safetensors dtype, values; floats of 16 bits as float32)."""

FORMS = ["gguf-q8_0", "gguf-f16", "gguf-bf16", "mlx-4bit"]
GROUP = 128
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def rounded(values: Array, dtype: str) -> Array:
    """To float16 or bfloat16, as float32."""
    narrow = mx.array(values).astype({"F16": mx.float16, "BF16": mx.bfloat16}[dtype])
    return np.array(narrow.astype(mx.float32))


def packed_words(nibbles: Array) -> Array:
    """Eight integers of 4 bits along the last axis to a word, the first in the lowest bits."""
    eight = nibbles.reshape(*nibbles.shape[:-1], -1, 8).astype(np.uint32)
    return np.bitwise_or.reduce(eight << (4 * np.arange(8, dtype=np.uint32)), axis=-1).view(np.int32)


def grouped(random: np.random.RandomState, shape: tuple[int, int], zeros: Array) -> tuple[Array, Array, Array]:
    """Integers of 4 bits, scales (groups, rows), and the weights that they mean, in half precision."""
    rows, columns = shape
    integers = random.randint(0, 16, shape)
    scales = random.uniform(0.001, 0.02, (columns // GROUP, rows)).astype(np.float16)
    by_column = np.arange(columns) // GROUP
    weights = (integers - zeros.T[:, by_column]).astype(np.float32) * scales.T[:, by_column].astype(np.float32)
    return integers, scales, rounded(weights, "F16")


def gptq(stem: str, shape: tuple[int, int], random: np.random.RandomState) -> tuple[Stored, Array]:
    zeros = random.randint(1, 16, (shape[1] // GROUP, shape[0]))
    integers, scales, weights = grouped(random, shape, zeros)
    return {
        f"{stem}.qweight": (
            "I32",
            np.ascontiguousarray(packed_words(integers.T.reshape(-1, 8, shape[0]).swapaxes(1, 2))[..., 0]),
        ),
        f"{stem}.qzeros": ("I32", packed_words(zeros - 1)),
        f"{stem}.scales": ("F16", scales),
        f"{stem}.g_idx": ("I32", (np.arange(shape[1]) // GROUP).astype(np.int32)),
    }, weights


def awq(stem: str, shape: tuple[int, int], random: np.random.RandomState) -> tuple[Stored, Array]:
    zeros = random.randint(0, 16, (shape[1] // GROUP, shape[0]))
    integers, scales, weights = grouped(random, shape, zeros)

    def packed(matrix: Array) -> Array:
        return packed_words(matrix.reshape(len(matrix), -1, 8)[..., AWQ_ORDER].reshape(len(matrix), -1))

    return {
        f"{stem}.qweight": ("I32", packed(integers.T)),
        f"{stem}.qzeros": ("I32", packed(zeros)),
        f"{stem}.scales": ("F16", scales),
    }, weights


def nf4(stem: str, shape: tuple[int, int], random: np.random.RandomState) -> tuple[Stored, Array]:
    """Doubly quantized: the blocks' largest values are bytes themselves."""
    codes = random.randint(0, 16, (shape[0] * shape[1] // 2, 2)).astype(np.uint8)
    table = np.linspace(-1, 1, 16, dtype=np.float32)
    absmax = random.randint(0, 256, codes.size // 64).astype(np.uint8)
    outer_table = np.linspace(-1, 1, 256, dtype=np.float32)
    outer = random.uniform(0.001, 0.01, -(-absmax.size // 256)).astype(np.float32)
    offset = np.float32(0.03)
    scales = outer_table[absmax] * np.repeat(outer, 256)[: absmax.size] + offset
    weights = (table[codes.reshape(-1)] * np.repeat(scales, 64)).reshape(shape)
    state = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": shape}
    state |= {"nested_blocksize": 256, "nested_offset": float(offset), "nested_dtype": "float32"}
    name = f"{stem}.weight"
    return {
        name: ("U8", (codes[:, :1] << 4) | codes[:, 1:]),
        f"{name}.absmax": ("U8", absmax),
        f"{name}.quant_map": ("F32", table),
        f"{name}.nested_absmax": ("F32", outer),
        f"{name}.nested_quant_map": ("F32", outer_table),
        f"{name}.quant_state.bitsandbytes__nf4": ("U8", np.frombuffer(json.dumps(state).encode(), np.uint8)),
    }, rounded(weights, "BF16")


def int8(stem: str, shape: tuple[int, int], random: np.random.RandomState) -> tuple[Stored, Array]:
    integers = random.randint(-127, 128, shape).astype(np.int8)
    largest = random.uniform(0.1, 0.5, shape[0]).astype(np.float32)
    weights = integers.astype(np.float32) * largest[:, np.newaxis] * np.float32(7.874015718698502e-3)
    stored = {f"{stem}.weight": ("I8", integers), f"{stem}.SCB": ("F32", largest)}
    return stored | {f"{stem}.weight_format": ("U8", np.zeros((), np.uint8))}, rounded(weights, "BF16")


def fp8(stem: str, shape: tuple[int, int], random: np.random.RandomState) -> tuple[Stored, Array]:
    """In blocks of 128 x 128, the last ones smaller."""
    stored = random.randint(0, 127, shape).astype(np.uint8) | (random.randint(0, 2, shape) << 7).astype(np.uint8)
    scales = random.uniform(0.0001, 0.001, [-(-size // 128) for size in shape]).astype(np.float32)
    spread = np.repeat(np.repeat(scales, 128, axis=0), 128, axis=1)[: shape[0], : shape[1]]
    values = np.array(mx.from_fp8(mx.array(stored), dtype=mx.float32))
    tensors = {f"{stem}.weight": ("F8_E4M3", stored), f"{stem}.weight_scale_inv": ("F32", scales)}
    return tensors, rounded(values * spread, "BF16")


@dataclass(frozen=True)
class Method:
    pack: Callable[[str, tuple[int, int], np.random.RandomState], tuple[Stored, Array]]
    dtype: str
    settings: dict[str, Any]


METHODS = {
    "bitsandbytes nf4": Method(nf4, "BF16", {"quant_method": "bitsandbytes", "load_in_4bit": True}),
    "bitsandbytes int8": Method(int8, "BF16", {"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "gptq": Method(gptq, "F16", {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False}),
    "awq": Method(awq, "F16", {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}),
    "fp8": Method(fp8, "BF16", {"quant_method": "fp8", "weight_block_size": [128, 128]}),
}


def write_tensors(folder: Path, tensors: Stored) -> None:
    header, data, offset = {}, [], 0
    for name, (dtype, values) in tensors.items():
        raw = encode(values, dtype) if dtype in ("F16", "BF16") else values.tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(raw)]}
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def write_both(folder: Path, name: str, method: Method) -> tuple[Path, Path, Stored]:
    """A checkpoint that is stored quantized, the floats that it means, and what the first one stores."""
    quantized, plain = (write_checkpoint(folder / kind / "model", name, dtype=method.dtype) for kind in ("q", "f"))
    random = np.random.RandomState(7)
    stored: Stored = {}
    floats: Stored = {}
    for tensor, values in random_tensors(CONFIGS[name]).items():
        if tensor.endswith("_proj.weight"):
            parts, weights = method.pack(tensor.removesuffix(".weight"), values.shape, random)
            stored |= parts
            floats[tensor] = method.dtype, weights
        else:
            stored[tensor] = floats[tensor] = method.dtype, values
    write_tensors(quantized, stored)
    write_tensors(plain, floats)
    config = json.loads((quantized / "config.json").read_text())
    (quantized / "config.json").write_text(json.dumps(config | {"quantization_config": method.settings}))
    return quantized, plain, stored


def form_bytes(checkpoint: Path, models: Path) -> dict[str, bytes]:
    """The bytes of each artifact: the `.gguf` file; weights and config of the MLX folder."""
    files = {}
    for artifact in convert(checkpoint, FORMS, models_dir=models):
        names = [artifact.manifest.main_file] if artifact.manifest.main_file else ["model.safetensors", "config.json"]
        files |= {f"{artifact.manifest.recipe} {name}": (artifact.folder / name).read_bytes() for name in names}
    return files


# With biases; and with fused matrices.
@pytest.mark.parametrize("name", ["llama-odd", "phi-4"])
@pytest.mark.parametrize("method", METHODS)
def test_every_artifact_has_the_bytes_that_the_dequantized_floats_give(tmp_path: Path, method: str, name: str) -> None:
    quantized, plain, _ = write_both(tmp_path, name, METHODS[method])
    expected = form_bytes(plain, tmp_path / "from floats")
    found = form_bytes(quantized, tmp_path / "from quantized")
    assert len(expected) == 5
    for file, content in expected.items():
        assert found[file] == content, file


def test_biases_of_zeros_beside_gptq_change_nothing(tmp_path: Path) -> None:
    quantized, plain, stored = write_both(tmp_path, "llama-3", METHODS["gptq"])
    expected = form_bytes(plain, tmp_path / "from floats")
    rows = {name.removesuffix(".scales"): values.shape[1] for name, (_, values) in stored.items() if "scales" in name}
    biases: Stored = {f"{stem}.bias": ("F16", np.zeros(count, np.float32)) for stem, count in rows.items()}
    write_tensors(quantized, stored | biases)
    assert form_bytes(quantized, tmp_path / "from quantized") == expected
    odd = "model.layers.1.mlp.up_proj.bias"
    write_tensors(quantized, stored | biases | {odd: ("F16", np.ones(rows[odd.removesuffix(".bias")], np.float32))})
    with pytest.raises(CheckpointError, match=odd):
        open_checkpoint(quantized, "model")


COMPANIONS = [
    ("bitsandbytes nf4", "weight.absmax"),
    ("bitsandbytes nf4", "weight.quant_map"),
    ("bitsandbytes nf4", "weight.nested_quant_map"),
    ("bitsandbytes nf4", "weight"),
    ("bitsandbytes int8", "weight"),
    ("gptq", "qzeros"),
    ("gptq", "scales"),
    ("awq", "qzeros"),
    ("awq", "scales"),
    ("fp8", "weight"),
]


@pytest.mark.parametrize(("method", "companion"), COMPANIONS)
def test_scales_that_are_missing_or_of_another_size_are_named(tmp_path: Path, method: str, companion: str) -> None:
    quantized, _, stored = write_both(tmp_path, "llama-3", METHODS[method])
    stem = "model.layers.1.self_attn.k_proj"
    name = f"{stem}.{companion}"
    dtype, values = stored[name]
    for damaged in ({}, {name: (dtype, values[:-1])}):
        write_tensors(quantized, {key: value for key, value in stored.items() if key != name} | damaged)
        with pytest.raises(CheckpointError) as caught:
            open_checkpoint(quantized, "model")
        assert (f"{stem}." if damaged else name) in caught.value.message
        assert caught.value.hint


@pytest.mark.parametrize(("method", "scales"), [("bitsandbytes int8", "SCB"), ("fp8", "weight_scale_inv")])
def test_a_weight_that_lost_its_scales_is_named(tmp_path: Path, method: str, scales: str) -> None:
    quantized, _, stored = write_both(tmp_path, "llama-3", METHODS[method])
    stem = "model.layers.0.mlp.down_proj"
    write_tensors(quantized, {name: value for name, value in stored.items() if name != f"{stem}.{scales}"})
    with pytest.raises(CheckpointError, match=f"{stem}.weight"):
        open_checkpoint(quantized, "model")


def test_infinite_scales_end_a_conversion_and_leave_nothing_behind(tmp_path: Path) -> None:
    quantized, _, stored = write_both(tmp_path, "llama-3", METHODS["gptq"])
    dtype, scales = stored["model.layers.1.mlp.up_proj.scales"]
    scales = scales.copy()
    scales[0, 3] = np.inf
    write_tensors(quantized, stored | {"model.layers.1.mlp.up_proj.scales": (dtype, scales)})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds .* in row 3"):
        convert(quantized, FORMS, models_dir=tmp_path / "models")
    assert not list((tmp_path / "models").glob("local--*"))
