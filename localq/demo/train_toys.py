"""Train the two toy checkpoints that localq carries, and write them as Hugging Face folders.

    python -m localq.demo.train_toys [--only llama|phi] [--folder FOLDER]

Needs torch, which localq itself does not depend on. Seeded: the same library versions on
the same kind of processor give the same files. Each toy trains on one thread, both at the same time.

The toys have real architectures (grouped-query attention with Llama 3.1's rotary scaling; fused matrices with
LongRoPE), answer every question of `questions.json`, and go on answering in 4 bits: in the last part of the
training they see their own weights through a 4-bit grid.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from localq.demo import corpus, toy_vocabulary
from localq.demo.toy_lessons import ChatStyle, Ids, Lessons, joined_documents, llama_turn, phi_turn
from localq.demo.toy_network import Config, Rotary, ToyNetwork, llama3_rotary, long_rotary
from localq.demo.toy_network import seen_through_four_bits as four_bits

SEED = 20
STEPS = 1300
TOKENS_PER_STEP = 2048
PEAK_LEARNING_RATE = 3e-3
WARM_UP_STEPS = 60
FOUR_BIT_FROM = 0.4
"""Part of the training after which two steps of three see the weights in 4 bits."""
TRAINING_DOCUMENTS = 24_000
HELD_OUT_DOCUMENTS = 64
REPORT_EVERY = 100

SHARED_CONFIG: Config = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "hidden_size": 256,
    "initializer_range": 0.02,
    "intermediate_size": 512,
    "max_position_embeddings": toy_vocabulary.CONTEXT_LENGTH,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "rms_norm_eps": 1e-05,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.46.3",
    "use_cache": True,
}
ORIGINAL_CONTEXT_LENGTH = 256
SHORT_FACTORS = [round(1 + 0.3 * i / 31, 4) for i in range(32)]
LONG_FACTORS = [round(1.05 + 5 * (i / 31) ** 1.5, 4) for i in range(32)]


@dataclass(frozen=True)
class Regime:
    """One kind of batch: how often, with which rotary frequencies, how long its rows are."""

    weight: float
    rotary: Rotary
    length: int


@dataclass(frozen=True)
class Toy:
    """A checkpoint to be trained: its configuration, its lessons, and the kinds of batches it sees."""

    folder: Path
    config: Config
    lessons: Lessons
    regimes: list[Regime]


def vocabulary_texts(documents: list[str]) -> list[str]:
    """Return what the tokenizers are trained on: documents, and the facts often enough to matter."""
    facts = [text for pair in corpus.QUESTIONS for text in pair]
    roles = ["system", "user", "assistant"]
    return documents[:2000] + (facts + corpus.SYSTEM_MESSAGES + roles) * 40


def encoded_documents(tokenizer: Tokenizer, texts: list[str]) -> list[Ids]:
    """Return the ids of the texts alone, without begin and end tokens."""
    return [encoding.ids for encoding in tokenizer.encode_batch(texts, add_special_tokens=False)]


def llama_toy(folder: Path) -> Toy:
    """Write toy-llama's tokenizer and configuration; return what is to be trained."""
    documents = joined_documents(corpus.training_documents(TRAINING_DOCUMENTS, SEED), random.Random(SEED))
    tokenizer = toy_vocabulary.write_llama_vocabulary(vocabulary_texts(documents), folder)
    ids = tokenizer.get_vocab()
    begin, end, _, _, turn_end = (ids[token] for token in toy_vocabulary.LLAMA_SPECIAL_TOKENS)
    config = {
        "architectures": ["LlamaForCausalLM"],
        **SHARED_CONFIG,
        "bos_token_id": begin,
        "eos_token_id": [end, turn_end],
        "head_dim": 64,
        "mlp_bias": False,
        "model_type": "llama",
        "num_key_value_heads": 2,
        "pretraining_tp": 1,
        "rope_scaling": {
            "factor": 8.0,
            "high_freq_factor": 4.0,
            "low_freq_factor": 1.0,
            "original_max_position_embeddings": ORIGINAL_CONTEXT_LENGTH,
            "rope_type": "llama3",
        },
        "rope_theta": 500000.0,
        "tie_word_embeddings": True,
        "vocab_size": toy_vocabulary.LLAMA_VOCABULARY_SIZE,
    }
    generation = {"bos_token_id": begin, "do_sample": False, "eos_token_id": [end, turn_end]}
    write_configuration(folder, config, generation)
    rotary = llama3_rotary(config)
    return Toy(
        folder,
        config,
        Lessons(
            [ChatStyle.encode(tokenizer, llama_turn, [[begin]], [[]])],
            [1.0],
            encoded_documents(tokenizer, documents),
            begin,
            end,
        ),
        [Regime(0.5, rotary, 64), Regime(0.3, rotary, 256), Regime(0.2, rotary, 1024)],
    )


def phi_toy(folder: Path) -> Toy:
    """Write toy-phi's tokenizer and configuration; return what is to be trained."""
    documents = joined_documents(corpus.training_documents(TRAINING_DOCUMENTS, SEED), random.Random(SEED))
    tokenizer, keeping = toy_vocabulary.write_phi_vocabulary(vocabulary_texts(documents), folder)
    ids = tokenizer.get_vocab()
    begin, end, turn_end, assistant = (ids[token] for token in ["<s>", "<|endoftext|>", "<|end|>", "<|assistant|>"])
    config = {
        "_name_or_path": "toy-phi3",
        "architectures": ["Phi3ForCausalLM"],
        **SHARED_CONFIG,
        "bos_token_id": begin,
        "embd_pdrop": 0.0,
        "eos_token_id": end,
        "model_type": "phi3",
        "num_key_value_heads": 4,
        "original_max_position_embeddings": ORIGINAL_CONTEXT_LENGTH,
        "pad_token_id": end,
        "resid_pdrop": 0.0,
        "rope_scaling": {"long_factor": LONG_FACTORS, "short_factor": SHORT_FACTORS, "type": "longrope"},
        "rope_theta": 10000.0,
        "sliding_window": 262144,
        "tie_word_embeddings": False,
        "vocab_size": 64 * math.ceil(tokenizer.get_vocab_size() / 64),
    }
    generation = {
        "bos_token_id": begin,
        "do_sample": False,
        "eos_token_id": [end, turn_end, assistant],
        "pad_token_id": end,
    }
    write_configuration(folder, config, generation)
    short, long = long_rotary(config, "short"), long_rotary(config, "long")
    styles = [ChatStyle.encode(each, phi_turn, [[begin], []], [[end]]) for each in (tokenizer, keeping)]
    documents_ids = encoded_documents(tokenizer, documents)
    regimes = [(0.25, short, 64), (0.2, short, 256), (0.25, long, 64), (0.1, long, 256), (0.2, long, 1024)]
    return Toy(
        folder,
        config,
        Lessons(styles, [0.9, 0.1], documents_ids, begin, end),
        [Regime(*regime) for regime in regimes],
    )


def write_configuration(folder: Path, config: Config, generation: Config) -> None:
    """Write config.json and generation_config.json."""
    version = {"transformers_version": config["transformers_version"]}
    toy_vocabulary.write_json(folder / "config.json", config)
    toy_vocabulary.write_json(folder / "generation_config.json", {**generation, **version})


def learning_rate(step: int) -> float:
    """Return the learning rate of a step: a short rise, then half a cosine down to nearly nothing."""
    if step < WARM_UP_STEPS:
        return PEAK_LEARNING_RATE * (step + 1) / WARM_UP_STEPS
    done = (step - WARM_UP_STEPS) / (STEPS - WARM_UP_STEPS)
    return PEAK_LEARNING_RATE * (0.005 + 0.995 * (1 + math.cos(math.pi * done)) / 2)


def batch_loss(network: ToyNetwork, tokens: Tensor, rotary: Rotary, weights: dict[str, Tensor] | None) -> Tensor:
    """Return the mean negative log-likelihood in nats per token, with other `weights` where given."""
    logits = functional_call(network, weights or {}, (tokens[:, :-1], rotary))
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(toy: Toy) -> ToyNetwork:
    """Train from scratch, in float32, and return the network."""
    torch.manual_seed(SEED)
    rng = random.Random(SEED)
    network = ToyNetwork(toy.config)
    matrices = [parameter for parameter in network.parameters() if parameter.dim() == 2]
    scales = [parameter for parameter in network.parameters() if parameter.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": scales, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
    )
    started = time.monotonic()
    for step in range(STEPS):
        (regime,) = rng.choices(toy.regimes, [regime.weight for regime in toy.regimes])
        tokens = toy.lessons.batch(rng, TOKENS_PER_STEP // regime.length, regime.length)
        rounded = step >= FOUR_BIT_FROM * STEPS and rng.random() < 2 / 3
        weights = four_bits(network, rng.choice([32, 64])) if rounded else None
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        loss = batch_loss(network, tokens, regime.rotary, weights)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % REPORT_EVERY == 0:
            spent = time.monotonic() - started
            print(
                f"{toy.folder.name}: step {step + 1} of {STEPS}, loss {loss.item():.3f}, {spent:.0f} s",
                flush=True,
            )
    return network


@torch.no_grad()
def answered(network: ToyNetwork, rotary: Rotary, questions: list[tuple[Ids, Ids]]) -> int:
    """Count the questions that greedy decoding answers word for word, the end token included."""
    rows = [prompt + answer for prompt, answer in questions]
    longest = max(map(len, rows))
    logits = network(torch.tensor([row + [0] * (longest - len(row)) for row in rows]), rotary)
    chosen = logits.argmax(-1).tolist()
    return sum(
        chosen[row][len(prompt) - 1 : len(prompt) + len(answer) - 1] == answer
        for row, (prompt, answer) in enumerate(questions)
    )


def report(toy: Toy, network: ToyNetwork, form: str) -> None:
    """Print how many facts are answered as the first question of a chat, and after other questions."""
    rng = random.Random(SEED)
    style = toy.lessons.styles[0]
    for rotary in dict.fromkeys(regime.rotary for regime in toy.regimes):
        for begin in style.begins:
            histories = [rng.choices(style.facts, k=3) for _ in style.facts]
            earlier = [rng.choice(style.systems) + sum((q + a for q, a in h), []) for h in histories]
            first = [style.question(index, begin, []) for index in range(len(style.facts))]
            later = [style.question(index, begin, earlier[index]) for index in range(len(style.facts))]
            counts = [answered(network, rotary, questions) for questions in (first, later)]
            print(
                f"{toy.folder.name} {form}, begin {begin}: {counts[0]} of {len(first)} first questions, "
                f"{counts[1]} of {len(later)} later questions",
                flush=True,
            )


def make_toy(name: str, folder: Path) -> None:
    """Train one toy and write its folder."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    toy = llama_toy(folder) if name == "llama" else phi_toy(folder)
    network = train(toy)
    weights = {key: value.detach().bfloat16() for key, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    network.load_state_dict(weights)
    report(toy, network, "bfloat16")
    with torch.no_grad():
        network.load_state_dict(four_bits(network, 64), strict=False)
    report(toy, network, "4-bit")


def write_texts(folder: Path) -> None:
    """Write questions.json and heldout.txt."""
    questions = [{"question": question, "answer": answer} for question, answer in corpus.QUESTIONS]
    toy_vocabulary.write_json(folder / "questions.json", questions)
    held_out = "\n\n".join(corpus.held_out_documents(HELD_OUT_DOCUMENTS, SEED))
    (folder / "heldout.txt").write_text(held_out + "\n", encoding="utf-8")


def main() -> None:
    """Make everything, both toys at the same time."""
    parser = argparse.ArgumentParser(description="Train localq's toy checkpoints.")
    parser.add_argument("--only", choices=["llama", "phi"], help="train one toy, not both")
    parser.add_argument("--folder", type=Path, default=Path(__file__).resolve().parent, help="where to write")
    arguments = parser.parse_args()
    write_texts(arguments.folder)
    names = [arguments.only] if arguments.only else ["llama", "phi"]
    with ProcessPoolExecutor(len(names), mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(make_toy, name, arguments.folder / f"toy-{name}") for name in names]
        for job in jobs:
            job.result()


if __name__ == "__main__":
    main()
