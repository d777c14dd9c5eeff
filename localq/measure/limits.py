"""How many bytes of memory a generated token reads: what the memory's speed limits. Loads no weights, runs nothing.

A token reads the keys and values of the tokens before it, and every weight once, except for tables of which it takes
one row and for experts that it is not sent to.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction
from typing import Any

from localq.checkpoint.safetensors_header import read_header
from localq.gguf_file import GgufHeader, read_model_header
from localq.hardware import mlx_runs_on_gpu
from localq.json_files import read_config
from localq.measure.forms import Form
from localq.memory import computes_in_other_memory, gguf_file_kv_bytes_per_token, mlx_folder_memory
from localq.options import LoadOptions
from localq.store.manifest import read_artifact

_GGUF_TABLES = {"token_embd.weight", "per_layer_token_embd.weight"}
"""Tensors with a row for each token of the vocabulary, by llama.cpp's names."""
_GGUF_EXPERTS = "_exps"
"""In the name of a tensor that holds a matrix of every expert."""

_MLX_TABLES = {"embed_tokens", "wte", "tok_embeddings", "word_embeddings", "token_embeddings", "embed_in", "embeddings"}
_MLX_HEADS = {"lm_head", "output", "output_layer", "embed_out"}
"""What mlx_lm's networks call them."""
_MLX_OTHER_PARTS = {"vision_tower", "vision_model", "audio_tower", "multi_modal_projector"}
"""Of models that see or hear: mlx_lm leaves them out, and so do generated tokens."""
_EXPERT_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts")


def bytes_per_token(form: Form, options: LoadOptions, context_tokens: int) -> int | None:
    """Bytes that a token reads whose context has `context_tokens`, as the form lies in memory here.

    None where the form's files do not say which weights a token uses, and where the form runs on a graphics card with
    memory of its own, whose speed is not known. Raises CheckpointError for damaged files.
    """
    if computes_in_other_memory(form.format):
        return None
    if form.format == "mlx":
        # In MLX a context takes only its keys and values.
        context_bytes = mlx_folder_memory(form.path, read_config(form.path), options).context_bytes_per_token
        weight_bytes = _mlx_weight_bytes(form)
    else:
        artifact = None if form.path.is_file() else read_artifact(form.path)
        header = read_model_header(artifact.path if artifact else form.path)
        context_bytes = gguf_file_kv_bytes_per_token(header, options)
        weight_bytes = _gguf_weight_bytes(header)
    return None if weight_bytes is None else weight_bytes + context_tokens * context_bytes


def _gguf_weight_bytes(header: GgufHeader) -> int | None:
    has_experts = any(_GGUF_EXPERTS in name for name in header.tensor_bytes)
    used = _used_experts(has_experts, header.integer("expert_count"), header.integer("expert_used_count"))
    if used is None:
        return None
    # llama.cpp computes the output with the embedding table where the file has no matrix for it.
    whole = set() if "output.weight" in header.tensor_bytes else {"token_embd.weight"}

    def share(name: str) -> Fraction | int:
        if name in _GGUF_TABLES - whole:
            return Fraction(1, max(header.vocabulary_size, 1))
        return used if _GGUF_EXPERTS in name else 1

    return round(sum(nbytes * share(name) for name, nbytes in header.tensor_bytes.items()))


def _mlx_weight_bytes(form: Form) -> int | None:
    config = read_config(form.path)
    tensors = [tensor for file in sorted(form.path.glob("model*.safetensors")) for tensor in read_header(file)]
    modules = {tensor: tensor.name.split(".")[:-1] for tensor in tensors}
    last = {names[-1] for names in modules.values() if names}
    counts = [config[key] for key in _EXPERT_COUNTS if config.get(key)]
    used = _used_experts(
        any(map(_is_expert, modules.values())), counts[0] if counts else None, config.get("num_experts_per_tok")
    )
    has_head = bool(last & _MLX_HEADS)
    knows_head = has_head or config.get("tie_word_embeddings") is not False
    if used is None or not knows_head or not last & _MLX_TABLES:
        return None
    total = Fraction(0)
    for tensor, names in modules.items():
        # On a CPU all floats become float32 where they are loaded (`localq.engines.mlx`).
        nbytes = tensor.nbytes * (2 if tensor.dtype in ("F16", "BF16") and not mlx_runs_on_gpu() else 1)
        if has_head and _MLX_TABLES.intersection(names[-1:]):
            total += Fraction(nbytes, max(tensor.shape[0], 1))
        elif not _MLX_OTHER_PARTS.intersection(names):
            total += nbytes * used if _is_expert(names) else nbytes
    return round(total)


def _is_expert(modules: Iterable[str]) -> bool:
    return any(name.startswith("switch_") or name == "experts" for name in modules)


def _used_experts(has_experts: bool, count: Any, used: Any) -> Fraction | None:
    """Share of them that a token is sent to; 1 for a model without experts, None where tensors and counts disagree."""
    if not has_experts:
        return None if count else Fraction(1)
    if type(count) is not int or type(used) is not int or not 0 < used <= count:
        return None
    return Fraction(used, count)
