"""Write `reference_logits.npz`: what transformers computes for the toys, in single precision.

    python -m tests.make_reference_logits

Run by hand, with torch and transformers. Tokens come from the held-out text; some positions are kept of each
sequence, within and beyond the original context (toy-phi takes its long factors from 257 tokens on).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from localq.demo.questions import read_held_out_text

FILE = Path(__file__).with_name("reference_logits.npz")
DEMO = Path(__file__).parents[1] / "localq" / "demo"
CASES = {"toy-llama-short": 200, "toy-llama-long": 700, "toy-phi-short": 250, "toy-phi-long": 700}
"""Model and regime -> number of tokens."""


def token_ids(toy: str, count: int) -> list[int]:
    """The beginning of the held-out text, as the toy's tokenizer splits it."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(DEMO / toy / "tokenizer.json"))
    return list(tokenizer.encode(read_held_out_text()).ids[:count])


def positions(count: int) -> np.ndarray:
    """Which positions of a sequence are kept."""
    return np.linspace(0, count - 1, 20).astype(int)


def main() -> None:
    """Compute and write."""
    import torch
    import transformers

    logits = {}
    for case, count in CASES.items():
        toy = case.rpartition("-")[0]
        model = transformers.AutoModelForCausalLM.from_pretrained(
            DEMO / toy, dtype=torch.float32, attn_implementation="eager"
        )
        with torch.no_grad():
            logits[case] = model(torch.tensor([token_ids(toy, count)])).logits[0].numpy()[positions(count)]
    np.savez_compressed(FILE, **logits)


if __name__ == "__main__":
    main()
