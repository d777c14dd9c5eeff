"""llama.cpp's name for how a byte-level BPE `tokenizer.json` splits text before it merges.

The name is found by the rule in the file, and not by a checksum of the tokens of a sample text, so that a
fine-tune with added tokens gets the name of its base. What llama.cpp would split differently is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from localq.errors import CheckpointError, OptionError

_KNOWN_NAMES = """
a.x-4.0 afmoe bailingmoe bailingmoe2 bloom chameleon chatglm-bpe codeshell cohere2moe command-r dbrx
deepseek-coder deepseek-llm deepseek-r1-qwen deepseek-v3 default exaone exaone-moe exaone4 f2llmv2 falcon
falcon-h1 falcon3 gemma4 gigachat glm4 glm5 gpt-2 gpt-4o gpt3-finnish granite-docling
granite-embed-multi-311m granite-embed-multi-97m grok-2 hunyuan hunyuan-dense hy_v4 jais jais-2 jina-de
jina-es jina-v1-en jina-v2-code jina-v2-de jina-v2-es jina-v5-nano joyai-llm kanana2 kimi-k2 kormo laguna
lfm2 llada-moe llama-bpe llama-v3 llama3 llama4 megrez mellum mellum2 midm-2.0 minerva-7b minicpm5
minimax-m2 modern-bert mpt olmo phi-2 pixtral poro-chat qwen2 qwen35 refact roberta-bpe sarvam-moe
seed-coder smaug-bpe smollm solar-open spark2_5 stablelm2 starcoder superbpe talkie tekken tiny_aya trillion
ufakzeka viking whitespace youtu
"""
KNOWN_NAMES = frozenset(_KNOWN_NAMES.split())
"""The names that llama.cpp accepts as `tokenizer.ggml.pre` (src/llama-vocab.cpp)."""

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LLAMA_3_RULE = (
    _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# The same rule as tiktoken's cl100k_base writes it: `\s*` matches all line ends except the last one anyway.
_CL100K_RULE = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
_GPT_4O_RULE = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+" + _CONTRACTIONS + "?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*" + _CONTRACTIONS + "?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_GPT_2_RULE = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_DIGIT_RULE = r"\p{N}"

_NAMES: dict[tuple[str, ...], str] = {
    (_LLAMA_3_RULE,): "dbrx",
    (_CL100K_RULE,): "dbrx",
    (_GPT_4O_RULE,): "gpt-4o",
    (_GPT_2_RULE,): "gpt-2",
    (_DIGIT_RULE, _GPT_2_RULE): "smollm",
}
"""By the rules that are applied one after the other. None of these has `ignore_merges`."""
_WHOLE_WORD_NAMES = {"dbrx": "llama-bpe"}
_ARCHITECTURE_NAMES = {("phi2", "gpt-2"): "phi-2"}  # the same rule; the converter of llama.cpp names it so

# Of the settings of a BPE model, those that llama.cpp does not have.
_FOREIGN_SETTINGS = ("dropout", "continuing_subword_prefix", "end_of_word_suffix")


def pre_tokenizer_name(tokenizer: Mapping[str, Any], architecture: str) -> str:
    """The name for the rule of a byte-level BPE `tokenizer.json` in a model of llama.cpp's `architecture`.

    Llama 3 and Phi-4 split text in the same way. But Llama 3 takes a whole word that is in the vocabulary before it
    merges (`ignore_merges`); llama.cpp does so under the name `llama-bpe` and not under `dbrx`. Raises
    CheckpointError for what llama.cpp would split differently.
    """
    if tokenizer.get("normalizer"):
        raise _differs(f"tokenizer.json changes text before it is split: {_shown(tokenizer['normalizer'])}")
    if foreign := foreign_settings(tokenizer):
        raise _differs(f"tokenizer.json has a BPE model with {foreign}, which llama.cpp does not have")
    rules = tuple(_rules(tokenizer.get("pre_tokenizer") or {}))
    name = _NAMES.get(rules)
    if name is None:
        raise _differs(
            f"tokenizer.json splits text by a rule that localq does not know: {' then '.join(rules) or 'none'}"
        )
    if tokenizer["model"].get("ignore_merges"):
        name = _WHOLE_WORD_NAMES.get(name, name)
        if name not in _WHOLE_WORD_NAMES.values() and not _merges_make_every_piece(tokenizer):
            raise _differs(f"tokenizer.json takes whole words (ignore_merges), which llama.cpp's {name} does not")
    return _ARCHITECTURE_NAMES.get((architecture, name), name)


def require_known_name(name: str) -> None:
    """Refuse a name that llama.cpp does not know."""
    if name not in KNOWN_NAMES:
        known = ", ".join(sorted(KNOWN_NAMES))
        raise OptionError(f"llama.cpp has no pre-tokenizer {name!r}", f"it has: {known}")


def foreign_settings(tokenizer: Mapping[str, Any]) -> str:
    """Settings of the BPE model that llama.cpp does not have, as `name value`; empty when there are none."""
    model = tokenizer["model"]
    return ", ".join(f"{name} {model[name]!r}" for name in _FOREIGN_SETTINGS if model.get(name))


def _rules(pre_tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """The regular expressions that are applied one after the other; a step of another kind as JSON."""
    for step in pre_tokenizer.get("pretokenizers", [pre_tokenizer]):
        match step:
            case {"type": "Split", "pattern": {"Regex": str(rule)}} if _keeps_matches(step):
                # Possessive quantifiers (`?+`, `++`) only make the same rules faster. But `{1,3}+` is none in
                # the syntax of `tokenizers`: it repeats the whole.
                yield re.sub(r"(?<=[?+*])\+", "", rule)
            case {"type": "Digits", "individual_digits": True}:
                yield _DIGIT_RULE
            case {"type": "ByteLevel", "add_prefix_space": False}:
                if step.get("use_regex", True):
                    yield _GPT_2_RULE
            case _ if step:
                yield _shown(step)


def _keeps_matches(step: Mapping[str, Any]) -> bool:
    """Whether each match becomes a part of its own. What is not matched does not matter: these rules match all text."""
    kind = step.get("behavior"), bool(step.get("invert"))
    return kind in (("Isolated", False), ("Isolated", True), ("Removed", True))


def _merges_make_every_piece(tokenizer: Mapping[str, Any]) -> bool:
    """Whether taking whole words from the vocabulary changes nothing, because the merges make them as well."""
    from tokenizers import models

    model = tokenizer["model"]
    pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    merging = models.BPE(model["vocab"], pairs)
    added = {token["content"] for token in tokenizer.get("added_tokens", [])}
    return all(len(merging.tokenize(piece)) == 1 for piece in model["vocab"] if piece not in added)


def _shown(step: Mapping[str, Any]) -> str:
    text = json.dumps(step, ensure_ascii=False)
    return text if len(text) <= 300 else text[:300] + "..."


def _differs(message: str) -> CheckpointError:
    return CheckpointError(
        message,
        "MLX needs no such rule: --to mlx-4bit; or choose one of llama.cpp's rules: --pre-tokenizer NAME",
    )
