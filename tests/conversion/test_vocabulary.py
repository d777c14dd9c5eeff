"""Which pre-tokenizer a byte-level BPE tokenizer has, by the rule that its file states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from localq.conversion.vocabulary import name_for_llama_cpp, pre_tokenizer_name
from localq.errors import CheckpointError
from tests.tiny_tokenizers import LLAMA_3_SPLIT

CL100K_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT_4O_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def tokenizer_json(rule: str | None, **model: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"type": "ByteLevel", "use_regex": rule is None}]
    if rule is not None:
        steps.insert(0, {"type": "Split", "pattern": {"Regex": rule}, "behavior": "Isolated"})
    return {"model": {"type": "BPE", **model}, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}


@pytest.mark.parametrize(
    ("rule", "model", "name"),
    [
        pytest.param(LLAMA_3_SPLIT, {"ignore_merges": True}, "llama-bpe", id="Llama 3"),
        pytest.param(LLAMA_3_SPLIT, {}, "dbrx", id="Phi-4"),
        pytest.param(CL100K_SPLIT, {"ignore_merges": False}, "dbrx", id="Phi-4 as tiktoken spells it"),
        pytest.param(GPT_4O_SPLIT, {}, "gpt-4o", id="Phi-4-mini"),
    ],
)
def test_pre_tokenizer_is_known_by_its_rule(rule: str, model: dict[str, Any], name: str) -> None:
    assert pre_tokenizer_name(tokenizer_json(rule, **model)) == name


def test_both_spellings_of_the_cl100k_rule_split_alike() -> None:
    texts = ["a\n\n \n b", "  \r\n\r\n  x", "don't I'LL we'Ve", "\n\n\n", "x  \t\n", "12345 a.b;;\n\n"]
    splits = [tokenizers.pre_tokenizers.Split(tokenizers.Regex(r), "isolated") for r in (LLAMA_3_SPLIT, CL100K_SPLIT)]
    for text in texts:
        first, second = (split.pre_tokenize_str(text) for split in splits)
        assert first == second


@pytest.mark.parametrize("rule", [None, r"\p{L}+", LLAMA_3_SPLIT + "|x"])
def test_unknown_rule_is_named_with_a_way_out(rule: str | None) -> None:
    with pytest.raises(CheckpointError) as caught:
        pre_tokenizer_name(tokenizer_json(rule))
    assert (rule or "none") in caught.value.message
    assert "mlx-4bit" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "rstrip", "expected"),
    [
        ("my-model", True, "my-model (Phi-3)"),
        ("Phi-3.5-mini-instruct", True, "Phi-3.5-mini-instruct"),
        ("my-phi3", True, "my-phi3"),
        ("my-model", False, "my-model"),
    ],
)
def test_name_tells_llama_cpp_of_tokens_that_swallow_space(
    name: str, rstrip: bool, expected: str, tmp_path: Path
) -> None:
    token = {"id": 1, "content": "<|user|>", "special": True, "rstrip": rstrip}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"added_tokens": [token]}))
    assert name_for_llama_cpp(name, tmp_path) == expected
