"""Phi-3-small's facts, against mlx_lm and against the network computed from Microsoft's description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from localq.errors import CheckpointError, UnsupportedModelError
from localq.families.config import ModelConfig, parse_config
from localq.families.phi3small import FAMILY
from tests.tiny_checkpoints import MLX_CONFIGS, random_tensors, tensor_shapes

RAW = MLX_CONFIGS["phi-3-small"]
MASKED_FROM = 100256  # ids from here on stand for no text


def config_with(**changes: Any) -> ModelConfig:
    return parse_config({**RAW, **changes})


def test_tensors_are_those_of_the_checkpoint() -> None:
    layouts = FAMILY.tensors(config_with())
    assert {layout.name: layout.shape for layout in layouts} == dict(tensor_shapes(RAW))


def test_its_own_names_of_settings_are_read() -> None:
    config = config_with()
    assert (config.intermediate_size, config.norm_epsilon, config.rope.theta) == (128, 1e-5, 1_000_000)
    assert config.tied_embeddings


def rotated(values: np.ndarray) -> np.ndarray:
    half = values.shape[-1] // 2
    frequencies = RAW["rope_embedding_base"] ** (-np.arange(half) / half)
    angles = np.arange(values.shape[1])[:, None] * frequencies
    first, second = values[..., :half], values[..., half:]
    cosine, sine = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cosine - second * sine, second * cosine + first * sine], axis=-1)


def seen(length: int, head: int, sparse: bool) -> np.ndarray:
    """Which keys each query attends to: the blocks just before it, and every third block, shifted for each head."""
    query, key = np.arange(length)[:, None], np.arange(length)[None]
    size, local, stride = (RAW[f"blocksparse_{name}"] for name in ("block_size", "num_local_blocks", "vert_stride"))
    near = query // size - key // size < local
    vertical = (key // size + head + 1) % stride == 0
    return (query >= key) & (near | vertical | (not sparse))


class Reference:
    """The network in double precision."""

    def __init__(self) -> None:
        self.tensors = {name: values.astype(np.float64) for name, values in random_tensors(RAW).items()}
        self.heads, self.kv_heads = RAW["num_attention_heads"], RAW["num_key_value_heads"]

    def linear(self, values: np.ndarray, name: str) -> np.ndarray:
        return values @ self.tensors[f"{name}.weight"].T + self.tensors[f"{name}.bias"]

    def norm(self, values: np.ndarray, name: str) -> np.ndarray:
        centred = values - values.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + RAW["layer_norm_epsilon"])
        return scaled * self.tensors[f"{name}.weight"] + self.tensors[f"{name}.bias"]

    def attention(self, values: np.ndarray, name: str, sparse: bool) -> np.ndarray:
        length, group = len(values), self.heads // self.kv_heads
        fused = self.linear(values, f"{name}.query_key_value").reshape(length, self.kv_heads, group + 2, -1)
        queries = rotated(fused[:, :, :group].reshape(length, self.heads, -1).swapaxes(0, 1))
        keys, weights = (np.repeat(fused[:, :, group + i].swapaxes(0, 1), group, axis=0) for i in (0, 1))
        scores = queries @ rotated(keys).swapaxes(1, 2) / queries.shape[-1]
        mask = np.stack([seen(length, head, sparse) for head in range(self.heads)])
        shares = np.exp(np.where(mask, scores, -np.inf))
        shares /= shares.sum(-1, keepdims=True)
        return self.linear((shares @ weights).swapaxes(0, 1).reshape(length, -1), f"{name}.dense")

    def feed_forward(self, values: np.ndarray, name: str) -> np.ndarray:
        inner = self.linear(values, f"{name}.up_proj")
        gate, linear = np.minimum(inner[:, ::2], 20), inner[:, 1::2].clip(-20, 20)
        return self.linear(gate / (1 + np.exp(-1.702 * gate)) * (linear + 1), f"{name}.down_proj")

    def logits(self, ids: list[int]) -> np.ndarray:
        values = 10 * self.tensors["model.embed_tokens.weight"][ids]
        for layer in range(RAW["num_hidden_layers"]):
            name = f"model.layers.{layer}"
            values += self.attention(self.norm(values, f"{name}.input_layernorm"), f"{name}.self_attn", layer % 2 == 0)
            values += self.feed_forward(self.norm(values, f"{name}.post_attention_layernorm"), f"{name}.mlp")
        last = self.norm(values[-3:], "model.final_layernorm")
        return last @ self.tensors["model.embed_tokens.weight"][:MASKED_FROM].T / 8


@pytest.fixture(scope="module")
def mlx_model() -> Any:
    phi3small = pytest.importorskip("mlx_lm.models.phi3small")
    mx = pytest.importorskip("mlx.core")
    model = phi3small.Model(phi3small.ModelArgs.from_dict(FAMILY.mlx_config(config_with())))
    model.load_weights([(name, mx.array(values)) for name, values in random_tensors(RAW).items()])
    return model


def test_mlx_lm_is_correct_token_by_token(mlx_model: Any) -> None:
    mx = pytest.importorskip("mlx.core")
    cache = pytest.importorskip("mlx_lm.models.cache").make_prompt_cache(mlx_model)
    ids = np.random.RandomState(2).randint(0, 500, 260).tolist()  # beyond the two blocks that every head sees
    rows = []
    for index, token in enumerate(ids):
        hidden = mlx_model(mx.array([[token]]), cache=cache) if index >= len(ids) - 3 else None
        if hidden is None:
            mx.eval(mlx_model.model(mx.array([[token]]), cache=cache))
        else:
            rows.append(np.array(hidden[0, 0, :MASKED_FROM]))
    np.testing.assert_allclose(np.stack(rows), Reference().logits(ids), atol=2e-5)


def test_its_caveat_is_true_in_mlx_lm_earlier_tokens_of_a_pass_attend_to_later_ones(mlx_model: Any) -> None:
    mx = pytest.importorskip("mlx.core")
    make_prompt_cache = pytest.importorskip("mlx_lm.models.cache").make_prompt_cache
    first = [
        np.array(mlx_model(mx.array([[5, 6, last]]), cache=make_prompt_cache(mlx_model))[0, 0, :9]) for last in (7, 8)
    ]
    assert np.abs(first[0] - first[1]).max() > 1e-4, "mlx_lm has mended it: prompts may be computed in chunks again"
    (sentence,) = FAMILY.caveats(config_with())
    assert "token by token" in sentence


def test_gguf_is_refused_with_the_format_that_works() -> None:
    assert FAMILY.formats == ("mlx",)
    for asked in (FAMILY.gguf_metadata, FAMILY.gguf_extra_tensors):
        with pytest.raises(UnsupportedModelError, match="GGUF") as caught:
            asked(config_with())
        assert "--to mlx-4bit" in caught.value.hint
    with pytest.raises(UnsupportedModelError):
        FAMILY.gguf_architecture()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rope_scaling": {"type": "su", "short_factor": [1.0], "long_factor": [1.0]}}, "LongRoPE"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "'linear'"),
        ({"rope_position_scale": 2.0}, "rope_position_scale 2.0"),
        ({"dense_attention_every_n_layers": 3}, "dense_attention_every_n_layers 3"),
        ({"dense_attention_every_n_layers": None}, "dense_attention_every_n_layers None"),
        ({"blocksparse_homo_head_pattern": True}, "blocksparse_homo_head_pattern True"),
        ({"blocksparse_block_size": 128}, "blocksparse_block_size 128"),
        ({"blocksparse_vert_stride": 8}, "blocksparse_vert_stride 8 and 4 heads"),
        ({"blocksparse_vert_stride": 0}, "blocksparse_vert_stride"),
        ({"vocab_size": 32064}, "32064"),
        ({"hidden_act": "silu"}, "'silu'"),
        ({"tie_word_embeddings": False}, "tied embeddings"),
        ({"gegelu_limit": None}, "gegelu_limit"),
        ({"mup_width_multiplier": 0}, "mup_width_multiplier"),
        ({"ff_intermediate_size": None}, "ff_intermediate_size"),
    ],
)
def test_variants_that_mlx_would_run_incorrectly_are_refused(changes: dict[str, Any], named: str) -> None:
    FAMILY.check(config_with())
    with pytest.raises(CheckpointError, match=named) as caught:
        FAMILY.check(config_with(**changes))
    assert caught.value.hint
