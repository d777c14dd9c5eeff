"""The toys' network in PyTorch: a Llama or Phi-3 decoder whose parameters have the names of Hugging Face.

It is written out here, instead of taken from transformers, so that training can choose the rotary frequencies
of each batch and look at its own weights through a 4-bit grid. It computes what `LlamaForCausalLM` and
`Phi3ForCausalLM` compute. The configuration is the content of `config.json`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

Config = dict[str, Any]


@dataclass(frozen=True)
class Rotary:
    """Inverse frequencies, shape (head size / 2,), and the factor on cosine and sine."""

    inverse_frequencies: Tensor
    scale: float = 1.0

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """Return cosine and sine for positions 0 to `length` - 1, each of shape (length, head size)."""
        angles = torch.outer(torch.arange(length, dtype=torch.float32), self.inverse_frequencies)
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos() * self.scale, angles.sin() * self.scale


def _plain_frequencies(config: Config) -> Tensor:
    head_size = config["hidden_size"] // config["num_attention_heads"]
    return config["rope_theta"] ** (-torch.arange(0, head_size, 2, dtype=torch.float32) / head_size)


def llama3_rotary(config: Config) -> Rotary:
    """Return Llama 3.1's frequencies: long waves slowed down by `factor`, a smooth passage in the middle."""
    scaling = config["rope_scaling"]
    frequencies = _plain_frequencies(config)
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    turns = scaling["original_max_position_embeddings"] * frequencies / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return Rotary(frequencies * (kept + (1 - kept) / scaling["factor"]))


def long_rotary(config: Config, which: str) -> Rotary:
    """Return LongRoPE's frequencies with the "short" or the "long" factors."""
    original = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / original
    factors = torch.tensor(config["rope_scaling"][f"{which}_factor"], dtype=torch.float32)
    return Rotary(_plain_frequencies(config) / factors, math.sqrt(1 + math.log(stretch) / math.log(original)))


def _rotate(vectors: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    first, second = vectors.chunk(2, dim=-1)
    return vectors * cosine + torch.cat([-second, first], dim=-1) * sine


class Attention(nn.Module):
    """Causal attention; Phi-3 keeps its three input matrices in one."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.head_size = width // config["num_attention_heads"]
        self.sizes = [width] + [config["num_key_value_heads"] * self.head_size] * 2
        self.fused = config["model_type"] == "phi3"
        if self.fused:
            self.qkv_proj = nn.Linear(width, sum(self.sizes), bias=False)
        else:
            self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, n, bias=False) for n in self.sizes)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map states of shape (rows, length, width) to the same shape."""
        if self.fused:
            parts = self.qkv_proj(states).split(self.sizes, dim=-1)
        else:
            parts = (self.q_proj(states), self.k_proj(states), self.v_proj(states))
        query, key, value = (part.unflatten(-1, (-1, self.head_size)).transpose(1, 2) for part in parts)
        mixed = functional.scaled_dot_product_attention(
            _rotate(query, cosine, sine), _rotate(key, cosine, sine), value, is_causal=True, enable_gqa=True
        )
        return self.o_proj(mixed.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    """SwiGLU; Phi-3 keeps gate and up in one matrix."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, inner = config["hidden_size"], config["intermediate_size"]
        self.fused = config["model_type"] == "phi3"
        if self.fused:
            self.gate_up_proj = nn.Linear(width, 2 * inner, bias=False)
        else:
            self.gate_proj = nn.Linear(width, inner, bias=False)
            self.up_proj = nn.Linear(width, inner, bias=False)
        self.down_proj = nn.Linear(inner, width, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        """Map states of shape (rows, length, width) to the same shape."""
        if self.fused:
            gate, up = self.gate_up_proj(states).chunk(2, dim=-1)
        else:
            gate, up = self.gate_proj(states), self.up_proj(states)
        return self.down_proj(functional.silu(gate) * up)


class Layer(nn.Module):
    """One decoder layer."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width, epsilon = config["hidden_size"], config["rms_norm_eps"]
        self.self_attn = Attention(config)
        self.mlp = FeedForward(config)
        self.input_layernorm = nn.RMSNorm(width, eps=epsilon)
        self.post_attention_layernorm = nn.RMSNorm(width, eps=epsilon)

    def forward(self, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """Map states of shape (rows, length, width) to the same shape."""
        states = states + self.self_attn(self.input_layernorm(states), cosine, sine)
        return states + self.mlp(self.post_attention_layernorm(states))


class ToyNetwork(nn.Module):
    """The decoder: token ids of shape (rows, length) in, logits of shape (rows, length, vocabulary) out."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        width = config["hidden_size"]
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config["vocab_size"], width)
        self.model.layers = nn.ModuleList(Layer(config) for _ in range(config["num_hidden_layers"]))
        self.model.norm = nn.RMSNorm(width, eps=config["rms_norm_eps"])
        if not config["tie_word_embeddings"]:
            self.lm_head = nn.Linear(width, config["vocab_size"], bias=False)
        for parameter in self.parameters():
            if parameter.dim() == 2:
                nn.init.normal_(parameter, std=0.02)

    def forward(self, token_ids: Tensor, rotary: Rotary) -> Tensor:
        """Return the logits; row `i` predicts token `i + 1`."""
        cosine, sine = rotary.tables(token_ids.shape[1])
        states = self.model.embed_tokens(token_ids)
        for layer in self.model.layers:
            states = layer(states, cosine, sine)
        head = self.lm_head if hasattr(self, "lm_head") else self.model.embed_tokens
        return functional.linear(self.model.norm(states), head.weight)


@torch.no_grad()
def four_bit(weight: Tensor, group: int) -> Tensor:
    """Return `weight` rounded to 16 evenly spaced values per group of `group` neighbours in a row."""
    groups = weight.unflatten(-1, (-1, group))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    step = ((high - low) / 15).clamp_min(1e-8)
    return (((groups - low) / step).round() * step + low).flatten(-2)


def seen_through_four_bits(network: ToyNetwork, group: int) -> dict[str, Tensor]:
    """Return the network's matrices in 4 bits, with gradients that go to the matrices themselves."""
    return {
        name: parameter + (four_bit(parameter, group) - parameter).detach()
        for name, parameter in network.named_parameters()
        if parameter.dim() == 2
    }
