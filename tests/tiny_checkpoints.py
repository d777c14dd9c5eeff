"""Random-weight checkpoints of every family, small enough to convert in a fraction of a second.

Written without localq's own tables: names and shapes are stated here a second time, on purpose.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.tiny_tokenizers import byte_level_backend, sentencepiece_backend, write_folder

_BASE: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 768,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
_LLAMA = {**_BASE, "architectures": ["LlamaForCausalLM"], "model_type": "llama"}
_PHI3 = {**_BASE, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None, "pad_token_id": 0}
_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def _longrope(count: int) -> dict[str, Any]:
    return {
        "type": "longrope",
        "short_factor": [round(1.0 + 0.01 * i, 4) for i in range(count)],
        "long_factor": [round(1.0 + 0.4 * i, 4) for i in range(count)],
    }


CONFIGS: dict[str, dict[str, Any]] = {
    "llama-2": {**_LLAMA, "num_key_value_heads": 4},
    "llama-2-linear": {**_LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "llama-3": {**_LLAMA, "rope_theta": 500000.0},
    "llama-3.2": {**_LLAMA, "rope_theta": 500000.0, "rope_scaling": _LLAMA_3_ROPE, "tie_word_embeddings": True},
    # A head width of its own, biases, and a config as transformers 5 writes it.
    "llama-odd": {
        **{key: value for key, value in _LLAMA.items() if key != "rope_theta"},
        "head_dim": 32,
        "attention_bias": True,
        "mlp_bias": True,
        "rope_parameters": {**_LLAMA_3_ROPE, "rope_theta": 500000.0},
    },
    "phi-3-4k": {**_PHI3, "num_key_value_heads": 4, "original_max_position_embeddings": 512, "sliding_window": 2047},
    "phi-3.5": {
        **_PHI3,
        "num_key_value_heads": 4,
        "rope_scaling": _longrope(32),
        "original_max_position_embeddings": 256,
        "sliding_window": 262144,
    },
    "phi-4": {**_PHI3, "rope_theta": 250000.0, "original_max_position_embeddings": 512},
    "phi-4-mini": {
        **_PHI3,
        "rope_scaling": _longrope(24),
        "partial_rotary_factor": 0.75,
        "original_max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "sliding_window": 262144,
    },
}
"""Configurations by the public model whose traits they have."""

_SENTENCEPIECE = ("llama-2", "llama-2-linear", "phi-3-4k", "phi-3.5")
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as transformers' own classes have them."""
    hidden, inner, vocabulary = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    head = config.get("head_dim") or hidden // config["num_attention_heads"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    if config["model_type"] == "phi3":
        attention = {"qkv_proj": (query + 2 * key, hidden), "o_proj": (hidden, query)}
        feed_forward = {"gate_up_proj": (2 * inner, hidden), "down_proj": (hidden, inner)}
    else:
        attention = {
            "q_proj": (query, hidden),
            "k_proj": (key, hidden),
            "v_proj": (key, hidden),
            "o_proj": (hidden, query),
        }
        feed_forward = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        for module, shapes, biased in (
            ("self_attn", attention, config.get("attention_bias")),
            ("mlp", feed_forward, config.get("mlp_bias")),
        ):
            for name, shape in shapes.items():
                yield f"{prefix}{module}.{name}.weight", shape
                if biased:
                    yield f"{prefix}{module}.{name}.bias", shape[:1]
        yield f"{prefix}input_layernorm.weight", (hidden,)
        yield f"{prefix}post_attention_layernorm.weight", (hidden,)
    yield "model.norm.weight", (hidden,)
    if not config["tie_word_embeddings"]:
        yield "lm_head.weight", (vocabulary, hidden)


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights as float32 whose values bfloat16 and float16 hold exactly."""
    random = np.random.RandomState(seed)  # numpy keeps its stream the same in all versions
    tensors = {}
    for name, shape in tensor_shapes(config):
        scale, centre = (0.05, 1.0) if "norm" in name else (0.05, 0.0)
        values = centre + scale * random.standard_normal(shape)
        steps = 64 if "norm" in name else 256
        tensors[name] = (np.round(values * steps) / steps).astype(np.float32).clip(-0.5 + centre, 0.5 + centre)
    return tensors


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Bytes of a tensor in a safetensors file."""
    if dtype == "BF16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return values.astype({"F32": np.float32, "F16": np.float16}[dtype]).tobytes()


def write_safetensors(file: Path, tensors: dict[str, np.ndarray], dtype: str = "BF16") -> None:
    """Write a file by the format's description."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = []
    offset = 0
    for name, values in tensors.items():
        raw = encode(values, dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(raw)]}
        data.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data))


def write_checkpoint(folder: Path, name: str, *, dtype: str = "BF16", shards: int = 1, seed: int = 0) -> Path:
    """A whole checkpoint folder of the configuration `name`, with tokenizer and chat template."""
    config = dict(CONFIGS[name])
    if name in _SENTENCEPIECE:
        backend, special = sentencepiece_backend(), {"bos_token": "<s>", "eos_token": "<|endoftext|>"}
    else:
        backend, special = byte_level_backend(), {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
    config["torch_dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[dtype]
    config["bos_token_id"] = backend.token_to_id(special["bos_token"])
    config["eos_token_id"] = backend.token_to_id(special["eos_token"])
    write_folder(folder, backend, {**special, "chat_template": _CHAT_TEMPLATE})
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_weights(folder, random_tensors(config, seed), dtype, shards)
    return folder


def write_weights(folder: Path, tensors: dict[str, np.ndarray], dtype: str, shards: int) -> None:
    """One file, or several with their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return
    names = list(tensors)
    size = math.ceil(len(names) / shards)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[number * size : (number + 1) * size]}
        write_safetensors(folder / file, part, dtype)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
