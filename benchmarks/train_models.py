"""Train two models of ten million parameters, plainly: their weights were never rounded while they were trained.

    python benchmarks/train_models.py FOLDER [--only lessons|library]

Quality of formats is measured on them; the two toys that come with localq learned with their weights rounded to 4 bits,
and would flatter every 4-bit format. `lessons` is a Phi-3 that learns the toys' lessons; `library` is a Llama that
reads the source code of Python's standard library, and remains weak: a model of real text. Beside them,
`lessons-heldout.txt` and `library-heldout.txt` have text of the same kind that was not trained on. Needs torch and
safetensors; about half an hour for each on one core.
"""

from __future__ import annotations

import argparse
import math
import random
import sysconfig
import time
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional

from localq.demo import corpus, toy_vocabulary
from localq.demo.toy_lessons import Ids
from localq.demo.toy_network import Config, Rotary, ToyNetwork, llama3_rotary, long_rotary
from localq.demo.train_toys import encoded_documents, llama_toy, phi_toy, write_configuration

SEED = 7
STEPS = {"lessons": 250, "library": 1000}
ROWS, LENGTH = 8, 256
PEAK_LEARNING_RATE = 2e-3
SIZES = {
    "hidden_size": 512,
    "intermediate_size": 1280,
    "num_attention_heads": 8,
    "num_hidden_layers": 4,
}
LIBRARY_VOCABULARY = 4096
HELD_OUT_BYTES = 400_000


def lessons(folder: Path) -> tuple[Config, Rotary, list[Ids]]:
    """Configuration, rotary frequencies and documents of the Phi-3."""
    toy = phi_toy(folder)
    config = {**toy.config, **SIZES, "num_key_value_heads": 8}
    held_out = corpus.held_out_documents(1500, SEED)
    (folder.parent / "lessons-heldout.txt").write_text("\n\n".join(held_out)[:HELD_OUT_BYTES], encoding="utf-8")
    return config, long_rotary(config, "short"), toy.lessons.documents


def library(folder: Path) -> tuple[Config, Rotary, list[Ids]]:
    """Configuration, rotary frequencies and documents of the Llama; every 20th module is held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [file for file in sorted(root.rglob("*.py")) if not {"site-packages", "test", "tests"} & {*file.parts}]
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    held_out = "\n\n".join(texts[::20])[:HELD_OUT_BYTES]
    (folder.parent / "library-heldout.txt").write_text(held_out, encoding="utf-8")
    texts = [text for number, text in enumerate(texts) if number % 20]
    toy_vocabulary.LLAMA_VOCABULARY_SIZE = LIBRARY_VOCABULARY
    config = {**llama_toy(folder).config, **SIZES, "num_key_value_heads": 2}
    tokenizer = toy_vocabulary.write_llama_vocabulary(texts, folder)
    return config, llama3_rotary(config), encoded_documents(tokenizer, texts)


def batch(stream: list[int], rng: random.Random, begin: int) -> torch.Tensor:
    """Rows of running text, shape (ROWS, LENGTH + 1), each after a beginning-of-text token."""
    starts = [rng.randrange(len(stream) - LENGTH) for _ in range(ROWS)]
    return torch.tensor([[begin, *stream[start : start + LENGTH]] for start in starts])


def learning_rate(step: int, steps: int) -> float:
    """A short rise, then half a cosine."""
    return PEAK_LEARNING_RATE * min((step + 1) / 50, 0.01 + 0.99 * (1 + math.cos(math.pi * step / steps)) / 2)


def train(config: Config, rotary: Rotary, documents: list[Ids], steps: int) -> ToyNetwork:
    """From scratch, in bfloat16 with float32 weights."""
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    rng = random.Random(SEED)
    stream = [token for document in documents for token in (*document, config["bos_token_id"])]
    network = ToyNetwork(config)
    count = sum(parameter.numel() for parameter in network.parameters())
    print(f"{count:,} parameters, {len(stream):,} tokens to learn from", flush=True)
    optimizer = torch.optim.AdamW(network.parameters(), betas=(0.9, 0.98), weight_decay=0.1)
    started = time.monotonic()
    for step in range(steps):
        tokens = batch(stream, rng, config["bos_token_id"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = network(tokens[:, :-1], rotary)
        loss = functional.cross_entropy(logits.float().flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 25 == 0:
            spent = time.monotonic() - started
            print(f"step {step + 1} of {steps}, loss {loss.item():.3f}, {spent:.0f} s", flush=True)
    return network


def main() -> None:
    """Train, and write checkpoints in Hugging Face's format."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=["lessons", "library"])
    arguments = parser.parse_args()
    for name, prepare in (("lessons", lessons), ("library", library)):
        if arguments.only in (None, name):
            folder = arguments.folder / name
            folder.mkdir(parents=True, exist_ok=True)
            config, rotary, documents = prepare(folder)
            network = train(config, rotary, documents, STEPS[name])
            weights = {key: value.detach().bfloat16() for key, value in network.state_dict().items()}
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
            write_configuration(folder, config, {"eos_token_id": config["eos_token_id"], "do_sample": False})


if __name__ == "__main__":
    main()
