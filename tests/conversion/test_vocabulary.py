"""Tokenizers as GGUF metadata: pre-tokenizers by their rules, special tokens around a text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from localq.conversion.vocabulary import add_vocabulary, name_for_llama_cpp, pre_tokenizer_name
from localq.errors import CheckpointError
from tests.tiny_tokenizers import LLAMA_3_SPLIT, byte_level_backend, write_folder

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


@pytest.mark.parametrize(
    ("single", "bos", "eos"),
    [
        (None, False, False),
        ([{"SpecialToken": {}}, {"Sequence": {}}], True, False),
        ([{"Sequence": {}}, {"SpecialToken": {}}], False, True),
        ([{"Sequence": {}}], False, False),
    ],
)
@pytest.mark.parametrize("in_a_sequence", [False, True])
def test_special_tokens_around_a_text_are_those_of_the_post_processor(
    single: list[dict[str, Any]] | None, bos: bool, eos: bool, in_a_sequence: bool, tmp_path: Path
) -> None:
    """Whatever tokenizer_config.json says: localq itself tokenizes by tokenizer.json alone."""
    from gguf import GGUFWriter

    folder = write_folder(tmp_path, byte_level_backend(), {"add_bos_token": not bos, "add_eos_token": not eos})
    step = {"type": "ByteLevel"} if single is None else {"type": "TemplateProcessing", "single": single}
    value = json.loads((folder / "tokenizer.json").read_text())
    value["post_processor"] = {"type": "Sequence", "processors": [step]} if in_a_sequence else step
    (folder / "tokenizer.json").write_text(json.dumps(value))
    writer = GGUFWriter(None, "llama")
    add_vocabulary(writer, folder, 768)
    written = {name: writer.kv_data[0][f"tokenizer.ggml.add_{name}_token"].value for name in ("bos", "eos", "sep")}
    assert written == {"bos": bos, "eos": eos, "sep": False}
