"""GPTQ: integers along the input features, with a scale and a zero point for each group of them.

The format is AutoGPTQ's and GPTQModel's (`TorchLinear`): `qweight` (inputs * bits / 32, outputs) packs input
features into 32-bit words, `qzeros` (groups, outputs * bits / 32) packs output features, `scales` is
(groups, outputs), and `g_idx`, if there is one, is the group of each input feature. A weight is
(integer - zero) * scale, rounded to the dtype of the scales.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localq.checkpoint.quantized.parts import (
    TAKE_THE_ORIGINAL,
    QuantizedTensor,
    StoredParts,
    group_count,
    group_size_of,
    integer_setting,
    packed_name,
    read_columns,
    scale_groups,
    unpack,
)
from localq.checkpoint.tensors import FLOAT_DTYPES, StoredTensor, WeightFiles, WeightTensor, to_float32
from localq.errors import CheckpointError, UnsupportedModelError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_BITS = (2, 3, 4, 8)
_FORMATS = ("gptq", "gptq_v2")


@dataclass(frozen=True, slots=True, eq=False)
class GptqTensor(QuantizedTensor):
    """Parts: `qweight`, `qzeros`, `scales`, and `g_idx` where the groups are not in order."""

    bits: int
    group_size: int
    zeros_less_one: bool
    """Format `gptq` stores every zero point minus one; `gptq_v2` stores it as it is."""
    zeros_borrow: bool
    """The one was subtracted from whole words, so that a zero point of 0 borrowed from the next."""

    def values(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.float32]:
        import numpy as np

        words = read_columns(files, self.parts["qweight"], start, stop)
        integers = unpack(np.ascontiguousarray(words.T), self.bits)
        scales = to_float32(read_columns(files, self.parts["scales"], start, stop)).T
        zeros = self._zeros(files, start, stop).T
        return scale_groups(integers, zeros, scales, self.group_size, self._groups(files, len(scales.T)))

    def _zeros(self, files: WeightFiles, start: int, stop: int) -> NDArray[np.uint8]:
        """Shape (groups, rows)."""
        import numpy as np

        stored = self.parts["qzeros"]
        # For every number of bits, 32 integers fill `bits` words.
        first_word, last_word = start // 32 * self.bits, min(-(-stop // 32) * self.bits, stored.shape[1])
        words = read_columns(files, stored, first_word, last_word).view(np.uint32)
        if self.zeros_less_one and self.zeros_borrow:
            words = words + np.uint32(sum(1 << bit for bit in range(0, 32, self.bits)))
        first = start // 32 * 32
        zeros = unpack(words, self.bits)[:, start - first : stop - first]
        if self.zeros_less_one and not self.zeros_borrow:
            if int(zeros.max()) == (1 << self.bits) - 1:
                raise CheckpointError(
                    f"tensor {stored.name} has zero points of {int(zeros.max())} + 1: more than {self.bits} bits",
                    f"runtimes read it differently; {TAKE_THE_ORIGINAL}",
                )
            zeros = zeros + np.uint8(1)
        return zeros

    def _groups(self, files: WeightFiles, count: int) -> NDArray[Any] | None:
        stored = self.parts.get("g_idx")
        if stored is None:
            return None
        groups = stored.read(files)
        if int(groups.min()) < 0 or int(groups.max()) >= count:
            raise CheckpointError(
                f"tensor {stored.name} has groups {groups.min()} to {groups.max()}; there are {count}",
                "the checkpoint is damaged: download it again: `localq pull --verify REPO`",
            )
        return groups


def gptq_name(settings: Mapping[str, Any]) -> str:
    """For people: `GPTQ, 4 bits, groups of 128`."""
    return packed_name("GPTQ", settings)


def gptq_weights(stored: StoredParts, settings: Mapping[str, Any], dtype: str) -> Iterator[WeightTensor]:
    """Every `X.qweight` with its zero points and scales as `X.weight`, of the dtype of the scales.

    Raises CheckpointError, and UnsupportedModelError for another packing that is also called GPTQ.
    """
    bits = integer_setting(settings, "bits")
    _refuse_variants(settings, bits)
    for stem in stored.stems(".qweight"):
        yield _tensor(stored, stem, settings, bits)


def _tensor(stored: StoredParts, stem: str, settings: Mapping[str, Any], bits: int) -> GptqTensor:
    qweight = stored.take_matrix(f"{stem}.qweight", ("I32", "U32"))
    words, outputs = qweight.shape
    inputs = words * 32 // bits
    if words * 32 % bits or outputs * bits % 32:
        raise CheckpointError(
            f"tensor {qweight.name} has shape {qweight.shape}, which integers of {bits} bits do not fill",
            "download it again: `localq pull --verify REPO`",
        )
    group_size = group_size_of(settings, inputs)
    groups = group_count(inputs, group_size)
    parts: dict[str, StoredTensor] = {
        "qweight": qweight,
        "qzeros": stored.take(f"{stem}.qzeros", ("I32", "U32"), (groups, outputs * bits // 32)),
        "scales": stored.take(f"{stem}.scales", FLOAT_DTYPES, (groups, outputs)),
    }
    if stored.has(f"{stem}.g_idx"):
        parts["g_idx"] = stored.take(f"{stem}.g_idx", ("I32", "I64"), (inputs,))
    elif settings.get("desc_act"):
        raise CheckpointError(
            f'the checkpoint has no tensor {stem}.g_idx, which "desc_act" in its settings needs',
            "download it again: `localq pull --verify REPO`",
        )
    less_one = _format(settings) == "gptq"
    # GPTQModel alone subtracts from whole words (`convert_gptq_v2_to_v1_format_module`), except of 3 bits.
    borrow = bits != 3 and "gptqmodel" in str(settings.get("meta")).lower()
    shape = (outputs, inputs)
    return GptqTensor(f"{stem}.weight", parts["scales"].dtype, shape, parts, bits, group_size, less_one, borrow)


def _refuse_variants(settings: Mapping[str, Any], bits: int) -> None:
    if _format(settings) not in _FORMATS:
        raise UnsupportedModelError(
            f"the checkpoint is GPTQ in the format {_format(settings)}, which localq does not read", TAKE_THE_ORIGINAL
        )
    if bits not in _BITS:
        raise UnsupportedModelError(
            f"the checkpoint is GPTQ with {bits} bits; localq reads 2, 3, 4 and 8", TAKE_THE_ORIGINAL
        )
    dynamic = settings.get("dynamic") or {}
    # Rules that begin with "-:" name modules that stay floats; others give some modules other settings.
    if not isinstance(dynamic, dict) or any(not str(rule).startswith("-:") for rule in dynamic):
        raise UnsupportedModelError("the checkpoint is GPTQ with different settings for some layers", TAKE_THE_ORIGINAL)


def _format(settings: Mapping[str, Any]) -> object:
    """AutoGPTQ's first checkpoints name no format: they are `gptq`."""
    if settings.get("is_marlin_format"):
        return "marlin"
    return settings.get("checkpoint_format") or settings.get("format") or "gptq"
