"""What a GGUF conversion will write: the type, order and exact size of every tensor, as llama.cpp chooses them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from localq.checkpoint.folder import Checkpoint
from localq.conversion import ggml
from localq.conversion.gguf_header import GgufTensor, gguf_metadata, header, padded, temporary_folder
from localq.errors import ConversionError
from localq.recipes import GgufRecipe
from localq.store.manifest import Fallback

_OUTPUT_NAMES = ("output.weight", "token_embd.weight")
_K_BLOCK = 256  # weights per block of the types that have a fallback


@dataclass(frozen=True, slots=True)
class GgufPlan:
    """The tensors of one GGUF file, in file order."""

    recipe: GgufRecipe
    tensors: tuple[GgufTensor, ...]
    fallbacks: tuple[Fallback, ...] = ()

    @property
    def weight_bytes(self) -> int:
        """Bytes of tensor data, padding included."""
        return sum(padded(tensor.nbytes) for tensor in self.tensors)


def plan_gguf(checkpoint: Checkpoint, recipe: GgufRecipe) -> GgufPlan:
    """Types and order as llama.cpp's quantizer would choose them, asked of the quantizer itself.

    Raises ConversionError for what the quantizer refuses.
    """
    metadata = gguf_metadata(checkpoint, with_vocabulary=False)  # the quantizer asks for no tokens
    unquantized = {tensor.name: tensor for tensor in _unquantized(checkpoint)}
    with temporary_folder() as folder:
        probe = folder / "probe.gguf"
        data = header(metadata, recipe.file_type_number, tuple(unquantized.values()))
        probe.write_bytes(data)
        with probe.open("r+b") as stream:  # a hole instead of weights: the dry run looks at the header only
            stream.truncate(len(data) + sum(padded(tensor.nbytes) for tensor in unquantized.values()))
        planned = ggml.planned_types(probe, recipe.file_type_number)
    if planned.types.keys() != unquantized.keys():
        differing = sorted(planned.types.keys() ^ unquantized.keys())
        raise ConversionError(
            f"llama.cpp's plan does not cover the model's tensors: {', '.join(differing[:3])}",
            "this llama-cpp-python words its log in another way than localq knows: report its version",
        )
    tensors = tuple(replace(unquantized[name], type_name=kind) for name, kind in planned.types.items())
    fallbacks = tuple(Fallback(name, wanted, used) for name, (wanted, used) in planned.fallbacks.items())
    return GgufPlan(recipe, tensors, (*_silent_fallbacks(recipe, tensors), *fallbacks))


def _unquantized(checkpoint: Checkpoint) -> list[GgufTensor]:
    tensors = []
    for layout in checkpoint.layouts:
        # llama.cpp keeps vectors in single precision whatever the file type.
        is_single = len(layout.shape) < 2 or layout.is_float32_in_gguf
        type_name = "f32" if is_single else checkpoint.tensor(layout).dtype.lower()
        tensors.append(GgufTensor(layout.gguf_name, layout.shape, type_name, layout=layout))
    for name, values in checkpoint.family.gguf_extra_tensors(checkpoint.config).items():
        tensors.append(GgufTensor(name, values.shape, "f32", values=values))
    return tensors


def _silent_fallbacks(recipe: GgufRecipe, tensors: tuple[GgufTensor, ...]) -> list[Fallback]:
    """The output layer becomes Q8_0 where its rows fit no K-quant, of which the quantizer's log says nothing.

    Source: `llama_tensor_get_type_impl` in llama.cpp's src/llama-quant.cpp.
    """
    if recipe.file_type in ("Q8_0", "MXFP4_MOE"):
        return []
    return [
        Fallback(tensor.name, "q6_K", "q8_0")
        for tensor in tensors
        if tensor.name in _OUTPUT_NAMES and tensor.type_name == "q8_0" and tensor.columns % _K_BLOCK
    ]
