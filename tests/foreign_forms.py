"""Tiny random models of families that localq does not convert, as llama.cpp and mlx_lm have them."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.tiny_tokenizers import byte_level_backend, write_folder

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, HEAD_WIDTH = 64, 128, 2, 4, 2, 16
CONTEXT_LENGTH = 300
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
GGUF_ARCHITECTURES = ("llama", "qwen2", "gemma2", "mamba")

_Tensor = tuple[str, tuple[int, ...]]


def write_gguf(
    path: Path, architecture: str, metadata: Mapping[str, Any] | None = None, tensors_per_part: int = 0
) -> Path:
    """A GGUF file, or the first part of a split one; `metadata` adds keys of any name, and replaces texts."""
    backend = byte_level_backend()
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=tensors_per_part)
    _add_shape(writer, architecture)
    _add_vocabulary(writer, backend)
    texts = {"tokenizer.chat_template": TEMPLATE, **(metadata or {})}
    for key, value in texts.items():
        if value is not None:
            writer.add_key_value(key, value, _gguf_type(value))
    random = np.random.RandomState(0)
    for name, shape in _tensors(architecture, backend.get_vocab_size()):
        values = 0.3 * random.standard_normal(shape) + ("norm" in name)
        writer.add_tensor(name, values.astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path if path.exists() else sorted(path.parent.glob(f"{path.stem}-00001-of-*.gguf"))[0]


def _gguf_type(value: object) -> gguf.GGUFValueType:
    kinds = {bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32, str: gguf.GGUFValueType.STRING}
    return kinds[type(value)]


def _add_shape(writer: gguf.GGUFWriter, architecture: str) -> None:
    has_attention = architecture != "mamba"
    writer.add_context_length(CONTEXT_LENGTH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS if has_attention else 0)
    writer.add_head_count_kv(KV_HEADS if has_attention else 0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(0)
    if architecture == "gemma2":
        writer.add_key_length(HEAD_WIDTH)
        writer.add_value_length(HEAD_WIDTH)
        writer.add_sliding_window(64)
    if architecture == "mamba":
        writer.add_ssm_conv_kernel(4)
        writer.add_ssm_inner_size(2 * WIDTH)
        writer.add_ssm_state_size(16)
        writer.add_ssm_time_step_rank(8)


def _add_vocabulary(writer: gguf.GGUFWriter, backend: Any) -> None:
    added = backend.get_added_tokens_decoder()
    pieces = range(backend.get_vocab_size())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list([backend.id_to_token(number) for number in pieces])
    types = gguf.TokenType
    writer.add_token_types([int(types.CONTROL if number in added else types.NORMAL) for number in pieces])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]])
    writer.add_bos_token_id(backend.token_to_id("<|begin_of_text|>"))
    writer.add_eos_token_id(backend.token_to_id("<|eot_id|>"))
    writer.add_add_bos_token(True)


def _tensors(architecture: str, vocabulary: int) -> Iterator[_Tensor]:
    yield "token_embd.weight", (vocabulary, WIDTH)
    yield "output_norm.weight", (WIDTH,)
    if architecture in ("llama", "qwen2"):
        yield "output.weight", (vocabulary, WIDTH)
    for layer in range(LAYERS):
        for name, shape in _mamba_layer() if architecture == "mamba" else _attention_layer(architecture):
            yield f"blk.{layer}.{name}", shape


def _attention_layer(architecture: str) -> Iterator[_Tensor]:
    yield "attn_norm.weight", (WIDTH,)
    for name, heads in (("attn_q", HEADS), ("attn_k", KV_HEADS), ("attn_v", KV_HEADS)):
        yield f"{name}.weight", (heads * HEAD_WIDTH, WIDTH)
        if architecture == "qwen2":
            yield f"{name}.bias", (heads * HEAD_WIDTH,)
    yield "attn_output.weight", (WIDTH, HEADS * HEAD_WIDTH)
    if architecture == "gemma2":
        yield "post_attention_norm.weight", (WIDTH,)
        yield "post_ffw_norm.weight", (WIDTH,)
    yield "ffn_norm.weight", (WIDTH,)
    yield "ffn_gate.weight", (INNER, WIDTH)
    yield "ffn_up.weight", (INNER, WIDTH)
    yield "ffn_down.weight", (WIDTH, INNER)


def _mamba_layer() -> Iterator[_Tensor]:
    inner, state, rank = 2 * WIDTH, 16, 8
    yield "attn_norm.weight", (WIDTH,)
    yield "ssm_in.weight", (2 * inner, WIDTH)
    yield "ssm_conv1d.weight", (inner, 4)
    yield "ssm_conv1d.bias", (inner,)
    yield "ssm_x.weight", (rank + 2 * state, inner)
    yield "ssm_dt.weight", (inner, rank)
    yield "ssm_dt.bias", (inner,)
    yield "ssm_a", (inner, state)
    yield "ssm_d", (inner,)
    yield "ssm_out.weight", (WIDTH, inner)


_MLX_SHAPE = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_WIDTH,
    "vocab_size": 416,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": CONTEXT_LENGTH,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
}
_GEMMA_3 = {**_MLX_SHAPE, "query_pre_attn_scalar": 16, "sliding_window": 64, "sliding_window_pattern": 2}
MLX_CONFIGS: dict[str, dict[str, Any]] = {
    "qwen2": _MLX_SHAPE,
    "gemma2": {
        **_MLX_SHAPE,
        "query_pre_attn_scalar": 16,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    # A model that also sees pictures: what it writes text with stands in a configuration of its own.
    "gemma3": {"text_config": {**_GEMMA_3, "model_type": "gemma3_text"}, "vocab_size": 416},
}
"""By mlx_lm's model type."""


def write_mlx(folder: Path, model_type: str, bits: int | None) -> Path:
    """An MLX folder as mlx_lm's converter leaves it: quantized, or in bfloat16."""
    import mlx.core as mx
    from mlx_lm.utils import quantize_model, save_config, save_model

    config = {"model_type": model_type, "architectures": ["Foreign"], **MLX_CONFIGS[model_type]}
    config["eos_token_id"] = byte_level_backend().token_to_id("<|eot_id|>")
    folder.mkdir(parents=True)
    module = importlib.import_module(f"mlx_lm.models.{model_type}")
    mx.random.seed(1)
    model = module.Model(module.ModelArgs.from_dict(config))
    model.set_dtype(mx.bfloat16)
    if bits is not None:
        model, config = quantize_model(model, config, 64, bits)
    save_model(folder, model)
    save_config(config, folder / "config.json")
    settings = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "chat_template": TEMPLATE}
    return write_folder(folder, byte_level_backend(), settings)
