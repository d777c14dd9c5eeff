"""compressed-tensors: a container of several formats. localq reads these:

`float-quantized`, `int-quantized` and `naive-quantized` are 8-bit weights with scales, as in `fp8`.
`pack-quantized` packs the integers of each row without gaps into 32-bit words, `weight_packed` (outputs,
inputs * bits / 32), with `weight_scale` (outputs, groups) and, unless it is symmetric, `weight_zero_point`
(outputs * bits / 32, groups). Integers and zero points are stored plus 2^(bits - 1); a weight is
(integer - zero) * scale, rounded to the dtype of the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localq.checkpoint.quantized.fp8 import FLOATS_OF_8_BITS, drop_activation_scales, scaled_weights
from localq.checkpoint.quantized.parts import (
    TAKE_THE_ORIGINAL,
    QuantizedTensor,
    StoredParts,
    group_count,
    group_size_of,
    integer_setting,
    scale_groups,
    unpack,
)
from localq.checkpoint.tensors import FLOAT_DTYPES, WeightFiles, WeightTensor, opened, to_float32
from localq.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_SCALED_FORMATS = ("float-quantized", "int-quantized", "naive-quantized")
_PACKED_BITS = (2, 4, 8)
"""Those that every release packed in the same way."""


@dataclass(frozen=True, slots=True, eq=False)
class PackedTensor(QuantizedTensor):
    """Parts: `weight_packed`, `weight_scale`, and `weight_zero_point` unless it is symmetric."""

    bits: int
    group_size: int

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        integers = unpack(self.parts["weight_packed"].read_rows(files, start, stop), self.bits)
        scales = to_float32(self.parts["weight_scale"].read_rows(files, start, stop))
        zeros = self._zeros(files, start, stop)
        return scale_groups(integers[:, : self.shape[1]], zeros, scales, self.group_size)

    def _zeros(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.uint8]:
        """Shape (rows, groups)."""
        import numpy as np

        stored = self.parts.get("weight_zero_point")
        if stored is None:
            return np.full((stop - start, self.parts["weight_scale"].shape[1]), 1 << (self.bits - 1), np.uint8)
        in_a_word = 32 // self.bits
        first_word = start // in_a_word
        words = stored.read_rows(files, first_word, group_count(stop, in_a_word))
        first = first_word * in_a_word
        return unpack(words.T, self.bits)[:, start - first : stop - first].T


def compressed_name(settings: Mapping[str, Any]) -> str:
    """For people: `compressed-tensors, float-quantized`."""
    return f"compressed-tensors, {settings.get('format')}"


def compressed_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """Every quantized weight; 8-bit ones become `dtype`, packed ones the dtype of their scales.

    Raises CheckpointError, and UnsupportedModelError for other formats and for settings that differ between modules.
    """
    scheme = _scheme(settings)
    if settings.get("format") == "pack-quantized":
        return _packed_weights(stored, scheme)
    if scheme.get("symmetric", True) is not True:
        raise _unsupported(settings)
    return scaled_weights(stored, (*FLOATS_OF_8_BITS, "I8"), scheme.get("block_structure"), dtype)


def _packed_weights(stored: StoredParts, scheme: Mapping[str, Any]) -> Iterator[WeightTensor]:
    bits = integer_setting(scheme, "num_bits")
    if bits not in _PACKED_BITS or stored.stems(".weight_g_idx"):
        raise UnsupportedModelError(
            f"the checkpoint is pack-quantized with {bits} bits, groups {scheme.get('actorder') or 'in order'}",
            TAKE_THE_ORIGINAL,
        )
    shapes = [stored.take(f"{stem}.weight_shape", ("I64", "I32"), (2,)) for stem in stored.stems(".weight_packed")]
    with opened(shapes) as files:
        for shape in shapes:
            rows, columns = (int(size) for size in shape.read(files))
            yield _packed_tensor(stored, shape.name.removesuffix("_shape"), (rows, columns), scheme)
    drop_activation_scales(stored)


def _packed_tensor(stored: StoredParts, name: str, shape: tuple[int, int], scheme: Mapping[str, Any]) -> PackedTensor:
    rows, columns = shape
    if rows <= 0 or columns <= 0:
        raise CheckpointError(f"tensor {name}_shape says {shape}", "download the checkpoint again")
    bits = integer_setting(scheme, "num_bits")
    group_size = group_size_of(scheme, columns) if scheme.get("strategy") == "group" else columns
    groups = group_count(columns, group_size)
    in_a_word = 32 // bits
    parts = {
        "weight_packed": stored.take(f"{name}_packed", ("I32",), (rows, group_count(columns, in_a_word))),
        "weight_scale": stored.take(f"{name}_scale", FLOAT_DTYPES, (rows, groups)),
    }
    if scheme.get("symmetric", True) is not True:
        zeros = group_count(rows, in_a_word), groups
        parts["weight_zero_point"] = stored.take(f"{name}_zero_point", ("I32",), zeros)
    return PackedTensor(name, parts["weight_scale"].dtype, shape, parts, bits, group_size)


def _scheme(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """How weights are quantized: the one scheme of all groups of modules."""
    groups = settings.get("config_groups")
    each = groups.values() if isinstance(groups, dict) else ()
    schemes = [group.get("weights") if isinstance(group, dict) else None for group in each]
    sparsity = settings.get("sparsity_config") or {"format": "dense"}
    if (
        settings.get("format") not in (*_SCALED_FORMATS, "pack-quantized")
        or not schemes
        or not isinstance(schemes[0], dict)
        or any(scheme != schemes[0] for scheme in schemes)
        or not isinstance(sparsity, dict)
        or sparsity.get("format") != "dense"
        or settings.get("transform_config")
    ):
        raise _unsupported(settings)
    return schemes[0]


def _unsupported(settings: Mapping[str, Any]) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the checkpoint is quantized ({compressed_name(settings)}) in a way that localq does not read",
        TAKE_THE_ORIGINAL,
    )
