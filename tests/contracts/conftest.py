"""Tiny random-weight models, each as an MLX folder and as a GGUF file with the same float32 weights.

Written without localq's converter, except one: so the tests of the engines do not depend on it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from localq.conversion.convert import convert
from localq.engines import llamacpp, mlx
from localq.engines.base import Engine
from localq.options import LoadOptions
from tests.scripted_engine import ScriptedEngine
from tests.tiny_checkpoints import write_checkpoint

VOCABULARY_SIZE = 320
HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, HEAD_DIM = 64, 96, 2, 4, 2, 16
ORIGINAL_CONTEXT, LONGEST_CONTEXT = 256, 1024
"""LongRoPE's regimes meet at 256, a multiple of 256: llama.cpp rounds context lengths up to those."""

Weights = dict[str, np.ndarray]
EngineMaker = Callable[[int], Engine]


@dataclass(frozen=True)
class TinyModel:
    """The same weights in both formats."""

    mlx_folder: Path
    gguf_file: Path

    def open(self, name: str, context_length: int, sequences: int = 1, reproducible: bool = False) -> Engine:
        options = LoadOptions(sequences=sequences, reproducible=reproducible)
        if name == "mlx":
            pytest.importorskip("mlx_lm")  # not on every platform
            return mlx.open_engine(self.mlx_folder, options, context_length)
        return llamacpp.open_engine(self.gguf_file, replace(options, threads=1), context_length)


class _RandomWeights:
    def __init__(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def matrix(self, rows: int, columns: int) -> np.ndarray:
        # Wide enough apart for logits without near ties, on which two runtimes may differ.
        scale = 2 / math.sqrt(columns)
        return (self._random.standard_normal((rows, columns)) * scale).astype(np.float32)

    def norm(self) -> np.ndarray:
        return (1 + 0.1 * self._random.standard_normal(HIDDEN)).astype(np.float32)


def _llama_weights() -> Weights:
    random = _RandomWeights(seed=1)
    weights = {
        "model.embed_tokens.weight": random.matrix(VOCABULARY_SIZE, HIDDEN),
        "lm_head.weight": random.matrix(VOCABULARY_SIZE, HIDDEN),
        "model.norm.weight": random.norm(),
    }
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.self_attn.q_proj.weight": random.matrix(HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.k_proj.weight": random.matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.v_proj.weight": random.matrix(KV_HEADS * HEAD_DIM, HIDDEN),
            f"{name}.self_attn.o_proj.weight": random.matrix(HIDDEN, HEADS * HEAD_DIM),
            f"{name}.mlp.gate_proj.weight": random.matrix(INNER, HIDDEN),
            f"{name}.mlp.up_proj.weight": random.matrix(INNER, HIDDEN),
            f"{name}.mlp.down_proj.weight": random.matrix(HIDDEN, INNER),
            f"{name}.input_layernorm.weight": random.norm(),
            f"{name}.post_attention_layernorm.weight": random.norm(),
        }
    return weights


def _as_phi3(llama: Weights) -> Weights:
    """The same projections, fused as Phi-3 has them."""
    weights = {name: value for name, value in llama.items() if "_proj" not in name}
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        qkv = [llama[f"{attention}.{part}_proj.weight"] for part in "qkv"]
        weights[f"{attention}.qkv_proj.weight"] = np.concatenate(qkv)
        weights[f"{attention}.o_proj.weight"] = llama[f"{attention}.o_proj.weight"]
        gate_up = [llama[f"{mlp}.{part}_proj.weight"] for part in ("gate", "up")]
        weights[f"{mlp}.gate_up_proj.weight"] = np.concatenate(gate_up)
        weights[f"{mlp}.down_proj.weight"] = llama[f"{mlp}.down_proj.weight"]
    return weights


def _config(model_type: str, **extra: Any) -> dict[str, Any]:
    return {
        "model_type": model_type,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "vocab_size": VOCABULARY_SIZE,
        "max_position_embeddings": LONGEST_CONTEXT,
        "tie_word_embeddings": False,
    } | extra


def _write_mlx(folder: Path, config: dict[str, Any], weights: Weights) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "lm_head": "output",
    "model.norm": "output_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def _gguf_name(name: str) -> str:
    for theirs, ours in GGUF_NAMES.items():
        name = name.replace(theirs, ours)
    return name


def _neighbours_rotate(rows: np.ndarray, heads: int) -> np.ndarray:
    """From the order in which a head's halves rotate against each other to GGUF's order for Llama."""
    return rows.reshape(heads, 2, HEAD_DIM // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _gguf_writer(path: Path, architecture: str) -> gguf.GGUFWriter:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_block_count(LAYERS)
    writer.add_context_length(LONGEST_CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCABULARY_SIZE)
    writer.add_tokenizer_model("no_vocab")
    return writer


def _write_gguf(writer: gguf.GGUFWriter, weights: Weights) -> None:
    for name, value in weights.items():
        writer.add_tensor(_gguf_name(name), value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Llama with grouped heads."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    weights = _llama_weights()
    _write_mlx(folder / "mlx", _config("llama"), weights)
    heads = {"q_proj": HEADS, "k_proj": KV_HEADS}
    rotated = {
        name: _neighbours_rotate(value, heads[part]) if (part := name.split(".")[-2]) in heads else value
        for name, value in weights.items()
    }
    _write_gguf(_gguf_writer(folder / "llama.gguf", "llama"), rotated)
    return TinyModel(folder / "mlx", folder / "llama.gguf")


@pytest.fixture(scope="session")
def tiny_longrope(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """A Phi-3 whose short and long rotary factors are far apart."""
    folder = tmp_path_factory.mktemp("tiny-phi3")
    weights = _as_phi3(_llama_weights())
    short, long = np.linspace(1, 1.2, HEAD_DIM // 2), np.linspace(1, 40, HEAD_DIM // 2)
    scaling = {"type": "longrope", "short_factor": short.tolist(), "long_factor": long.tolist()}
    config = _config("phi3", rope_scaling=scaling, original_max_position_embeddings=ORIGINAL_CONTEXT)
    _write_mlx(folder / "mlx", config, weights)
    writer = _gguf_writer(folder / "phi3.gguf", "phi3")
    writer.add_rope_scaling_orig_ctx_len(ORIGINAL_CONTEXT)
    scale = LONGEST_CONTEXT / ORIGINAL_CONTEXT
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(ORIGINAL_CONTEXT)))
    writer.add_tensor("rope_factors_short.weight", short.astype(np.float32))
    writer.add_tensor("rope_factors_long.weight", long.astype(np.float32))
    _write_gguf(writer, weights)
    return TinyModel(folder / "mlx", folder / "phi3.gguf")


@pytest.fixture(scope="session")
def heads_of_64(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A Llama in half precision by format, with heads as large as in real models; made by localq's converter."""
    folder = tmp_path_factory.mktemp("heads-of-64")
    checkpoint = write_checkpoint(folder / "model", "llama-3")
    artifacts = convert(checkpoint, ["mlx-f16", "gguf-f16"], models_dir=folder / "models")
    return {artifact.recipe.format: artifact.path for artifact in artifacts}


@pytest.fixture(params=["scripted", "llamacpp", "mlx"])
def make_engine(request: pytest.FixtureRequest) -> Iterator[EngineMaker]:
    """Opens an engine of each kind with a given context length; closed after the test."""
    opened: list[Engine] = []

    def make(context_length: int) -> Engine:
        if request.param == "scripted":
            script = [token % VOCABULARY_SIZE for token in range(7, 7 + LONGEST_CONTEXT)]
            engine: Engine = ScriptedEngine([script] * 4, context_length, VOCABULARY_SIZE)
        else:
            engine = request.getfixturevalue("tiny_llama").open(request.param, context_length)
        opened.append(engine)
        return engine

    yield make
    for engine in opened:
        engine.close()


@pytest.fixture(params=["scripted", "llamacpp", "llamacpp reproducible", "mlx", "mlx reproducible"])
def four_sequences(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine of each kind and mode with four sequences of 128 tokens; every script counts up from 7."""
    name, _, mode = request.param.partition(" ")
    if name == "scripted":
        engine: Engine = ScriptedEngine([list(range(7, 100))] * 20, 128, VOCABULARY_SIZE, sequences=4)
    else:
        engine = request.getfixturevalue("tiny_llama").open(name, 128, 4, mode == "reproducible")
    yield engine
    engine.close()


@pytest.fixture(params=["llamacpp", "mlx"])
def computing_engine(request: pytest.FixtureRequest, tiny_llama: TinyModel) -> Iterator[Engine]:
    """Each engine that computes, with the tiny Llama and a context of 512 tokens."""
    engine = tiny_llama.open(request.param, 512)
    yield engine
    engine.close()


@pytest.fixture
def both_engines(tiny_llama: TinyModel) -> Iterator[tuple[Engine, Engine]]:
    """llama.cpp and MLX with the same weights and a context of 512 tokens."""
    engines = tiny_llama.open("llamacpp", 512), tiny_llama.open("mlx", 512)
    yield engines
    for engine in engines:
        engine.close()
