"""Write `reference_logits.npz`: what transformers computes for the random checkpoints, in single precision.

    python -m tests.families.make_reference_logits

Run by hand, with torch and transformers. Some positions are kept of each sequence, within and beyond the original
context of the configurations that have one. PhiMoE is computed twice: as it was trained, and with what llama.cpp
puts in its place, RMS norms and softmax routing.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from tests.tiny_checkpoints import write_checkpoint

FILE = Path(__file__).with_name("reference_logits.npz")
NAMES = ("llama-yarn", "phi-2", "phi-3.5-moe", "phi-mini-moe")
CONTEXT_LENGTHS = (256, 512)


def token_ids(context_length: int) -> list[int]:
    """A sequence that almost fills a context."""
    return np.random.RandomState(5).randint(0, 500, context_length - 20).tolist()


def positions(context_length: int) -> np.ndarray:
    """Which positions of a sequence are kept."""
    return np.linspace(0, context_length - 21, 4).astype(int)


def _rms_norm(norm: Any) -> Any:
    import torch

    class RmsNorm(torch.nn.Module):
        def forward(self, values: torch.Tensor) -> torch.Tensor:
            scale = torch.rsqrt(values.pow(2).mean(-1, keepdim=True) + norm.eps)
            return values * scale * norm.weight + norm.bias

    return RmsNorm()


def _softmax_routing(scores: Any, jitter_eps: float, training: bool, top_k: int) -> Any:
    import torch

    weights, experts = torch.topk(torch.softmax(scores, -1), top_k, -1)
    return weights / weights.sum(-1, keepdim=True), experts


def _open(folder: Path, context_length: int) -> Any:
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    if model.config.model_type == "phimoe":
        rope = model.model.rotary_emb
        if rope.rope_type == "longrope":  # transformers 5.23 takes the short factors for every length
            compute = rope.rope_init_fn
            rope.rope_init_fn = lambda config: compute(config, seq_len=context_length)
        model.config.sliding_window = None  # as both runtimes do
    return model


def _as_in_llama_cpp(model: Any) -> None:
    model.model.norm = _rms_norm(model.model.norm)
    for layer in model.model.layers:
        layer.input_layernorm = _rms_norm(layer.input_layernorm)
        layer.post_attention_layernorm = _rms_norm(layer.post_attention_layernorm)


def _logits(model: Any, context_length: int) -> np.ndarray:
    import torch

    with torch.inference_mode():
        rows = model(torch.tensor([token_ids(context_length)])).logits[0].numpy()
    return rows[positions(context_length)]


def main() -> None:
    """Compute and write."""
    logits = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in NAMES:
            folder = write_checkpoint(Path(scratch) / name, name)
            for length in CONTEXT_LENGTHS:
                model = _open(folder, length)
                logits[f"{name}-{length}"] = _logits(model, length)
                if model.config.model_type == "phimoe":
                    _as_in_llama_cpp(model)
                    with patch("transformers.models.phimoe.modeling_phimoe.sparsemixer", _softmax_routing):
                        logits[f"{name}-{length}-gguf"] = _logits(model, length)
    np.savez_compressed(FILE, **logits)


if __name__ == "__main__":
    main()
