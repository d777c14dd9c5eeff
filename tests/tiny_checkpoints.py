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
_PHI = {
    **{key: value for key, value in _BASE.items() if key != "rms_norm_eps"},
    "architectures": ["PhiForCausalLM"],
    "model_type": "phi",
    "hidden_act": "gelu_new",
    "intermediate_size": 1024,
    "layer_norm_eps": 1e-5,
    "num_key_value_heads": None,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": False,
    "rope_scaling": None,
}
_PHI3 = {**_BASE, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": None, "pad_token_id": 0}
_PHIMOE = {
    **_BASE,
    "architectures": ["PhiMoEForCausalLM"],
    "model_type": "phimoe",
    "attention_bias": True,
    "intermediate_size": 256,
    "lm_head_bias": True,
    "num_experts_per_tok": 2,
    "num_local_experts": 4,
    "router_jitter_noise": 0.01,
}
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


_LONGROPE_SCALE = math.sqrt(1 + math.log(512 / 256) / math.log(256))

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
    # As the first conversions of Llama 1 wrote it: no key-value heads, no rotary base, another key for the context.
    "llama-1": {
        **{key: _LLAMA[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")},
        "architectures": ["LLaMAForCausalLM"],
        "model_type": "llama",
        "intermediate_size": 512,
        "hidden_act": "silu",
        "max_sequence_length": 2048,
        "rms_norm_eps": 1e-6,
    },
    "llama-dynamic": {**_LLAMA, "rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama-yarn": {
        **_LLAMA,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "finetuned": True},
    },
    "code-llama": {**_LLAMA, "num_key_value_heads": 4, "rope_theta": 1000000, "max_position_embeddings": 16384},
    "phi-4-llamafied": {**_LLAMA, "rope_theta": 250000, "attention_bias": False, "mlp_bias": False},
    "phi-1.5": _PHI,
    # A head of 80, of which 32 are rotated.
    "phi-2": {**_PHI, "hidden_size": 320, "intermediate_size": 1280, "partial_rotary_factor": 0.4},
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
    # The scale that follows from both context lengths; the real one differs, which llama.cpp's converter overlooks.
    "phi-3.5-moe": {
        **_PHIMOE,
        "rope_scaling": {
            **_longrope(32),
            "short_mscale": _LONGROPE_SCALE,
            "long_mscale": _LONGROPE_SCALE,
            "original_max_position_embeddings": 256,
        },
        "original_max_position_embeddings": 256,
        "sliding_window": 512,
    },
    "phi-mini-moe": {**_PHIMOE, "rope_scaling": None, "original_max_position_embeddings": 512, "sliding_window": 255},
}
"""Configurations by the public model whose traits they have."""

MLX_CONFIGS: dict[str, dict[str, Any]] = {
    "phi-3-small": {
        "architectures": ["Phi3SmallForCausalLM"],
        "model_type": "phi3small",
        "blocksparse_block_size": 64,
        "blocksparse_homo_head_pattern": False,
        "blocksparse_num_local_blocks": 2,
        "blocksparse_vert_stride": 3,
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 128,
        "gegelu_limit": 20.0,
        "hidden_act": "gegelu",
        "hidden_size": 64,
        "layer_norm_epsilon": 1e-5,
        "max_position_embeddings": 512,
        "mup_attn_multiplier": 1.0,
        "mup_embedding_multiplier": 10.0,
        "mup_use_scaling": True,
        "mup_width_multiplier": 8.0,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "rope_embedding_base": 1000000,
        "rope_position_scale": 1.0,
        "vocab_size": 100352,
    },
}
"""Configurations of families that MLX alone runs."""

_SENTENCEPIECE = (
    "code-llama",
    "llama-1",
    "llama-2",
    "llama-2-linear",
    "llama-dynamic",
    "llama-yarn",
    "phi-3-4k",
    "phi-3.5",
    "phi-3.5-moe",
    "phi-mini-moe",
)
_CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}</{{ m.role }}>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def tensor_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes as transformers' own classes have them."""
    kind, hidden, vocabulary = config["model_type"], config["hidden_size"], config["vocab_size"]
    modules, outer = _MODULES[kind](config), _OUTER[kind]
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(config["num_hidden_layers"]):
        for name, shape, biased in modules:
            yield from _weight_and_bias(f"model.layers.{layer}.{name}", shape, biased)
    yield from _weight_and_bias(outer["norm"], (hidden,), outer["biased"])
    if not config.get("tie_word_embeddings", kind == "phi3small"):
        yield from _weight_and_bias("lm_head", (vocabulary, hidden), outer["biased"])


_Modules = list[tuple[str, tuple[int, ...], bool]]
"""Name within a layer, shape of the weight, whether there is a bias."""

_OUTER: dict[str, dict[str, Any]] = {
    "llama": {"norm": "model.norm", "biased": False},
    "phi": {"norm": "model.final_layernorm", "biased": True},
    "phi3": {"norm": "model.norm", "biased": False},
    "phi3small": {"norm": "model.final_layernorm", "biased": True},
    "phimoe": {"norm": "model.norm", "biased": True},
}


def _weight_and_bias(name: str, shape: tuple[int, ...], biased: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", shape
    if biased:
        yield f"{name}.bias", shape[:1]


def _attention_rows(config: dict[str, Any]) -> tuple[int, int]:
    heads = config["num_attention_heads"]
    head = config.get("head_dim") or config["hidden_size"] // heads
    return heads * head, (config.get("num_key_value_heads") or heads) * head


def _attention(config: dict[str, Any], biased: bool, output: str = "o_proj") -> _Modules:
    hidden, (query, key) = config["hidden_size"], _attention_rows(config)
    shapes = {"q_proj": (query, hidden), "k_proj": (key, hidden), "v_proj": (key, hidden), output: (hidden, query)}
    return [(f"self_attn.{name}", shape, biased) for name, shape in shapes.items()]


def _norms(config: dict[str, Any], biased: bool) -> _Modules:
    return [(name, (config["hidden_size"],), biased) for name in ("input_layernorm", "post_attention_layernorm")]


def _llama_modules(config: dict[str, Any]) -> _Modules:
    hidden, inner, biased = config["hidden_size"], config["intermediate_size"], bool(config.get("mlp_bias"))
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    feed_forward = [(f"mlp.{name}", shape, biased) for name, shape in shapes.items()]
    return _attention(config, bool(config.get("attention_bias"))) + feed_forward + _norms(config, False)


def _phi_modules(config: dict[str, Any]) -> _Modules:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    feed_forward: _Modules = [("mlp.fc1", (inner, hidden), True), ("mlp.fc2", (hidden, inner), True)]
    return _attention(config, True, "dense") + feed_forward + _norms(config, True)[:1]


def _phi3_modules(config: dict[str, Any]) -> _Modules:
    hidden, inner, (query, key) = config["hidden_size"], config["intermediate_size"], _attention_rows(config)
    fused: _Modules = [
        ("self_attn.qkv_proj", (query + 2 * key, hidden), False),
        ("self_attn.o_proj", (hidden, query), False),
        ("mlp.gate_up_proj", (2 * inner, hidden), False),
        ("mlp.down_proj", (hidden, inner), False),
    ]
    return fused + _norms(config, False)


def _phi3small_modules(config: dict[str, Any]) -> _Modules:
    hidden, inner, (query, key) = config["hidden_size"], config["ff_intermediate_size"], _attention_rows(config)
    fused: _Modules = [
        ("self_attn.query_key_value", (query + 2 * key, hidden), True),
        ("self_attn.dense", (hidden, query), True),
        ("mlp.up_proj", (2 * inner, hidden), True),
        ("mlp.down_proj", (hidden, inner), True),
    ]
    return fused + _norms(config, True)


def _phimoe_modules(config: dict[str, Any]) -> _Modules:
    hidden, inner, count = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    feed_forward: _Modules = [("block_sparse_moe.gate", (count, hidden), False)]
    for expert in range(count):
        for name, shape in {"w1": (inner, hidden), "w2": (hidden, inner), "w3": (inner, hidden)}.items():
            feed_forward.append((f"block_sparse_moe.experts.{expert}.{name}", shape, False))
    return _attention(config, True) + feed_forward + _norms(config, True)


_MODULES = {
    "llama": _llama_modules,
    "phi": _phi_modules,
    "phi3": _phi3_modules,
    "phi3small": _phi3small_modules,
    "phimoe": _phimoe_modules,
}


def random_tensors(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """Weights as float32 whose values bfloat16 and float16 hold exactly."""
    random = np.random.RandomState(seed)  # numpy keeps its stream the same in all versions
    tensors = {}
    for name, shape in tensor_shapes(config):
        centre = 1.0 if "norm.weight" in name else 0.0
        values = centre + 0.05 * random.standard_normal(shape)
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
    config = dict((CONFIGS | MLX_CONFIGS)[name])
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
