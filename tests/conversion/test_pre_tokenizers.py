"""Pre-tokenizers by their rules, and the names that llama.cpp knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from localq.conversion.pre_tokenizers import KNOWN_NAMES, pre_tokenizer_name, require_known_name
from localq.errors import CheckpointError, EngineError, OptionError
from localq.text.gguf_tokenizer import GgufTokenizer, load_gguf_tokenizer
from tests.hard_texts import MARKED_SCRIPTS, TEXTS
from tests.tiny_tokenizers import CL100K_SPLIT, LLAMA_3_SPLIT, O200K_SPLIT

# With every quantifier possessive that can be.
POSSESSIVE_SPLIT = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s*[\r\n]|\s+(?!\S)|\s+"
)
GPT_2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
GPT_2 = {**BYTES, "use_regex": True}
DIGITS = {"type": "Digits", "individual_digits": True}


def split(rule: str, behavior: str = "Isolated", invert: bool = False) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": rule}, "behavior": behavior, "invert": invert}


def tokenizer_json(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    pre_tokenizer = steps[0] if len(steps) == 1 else {"type": "Sequence", "pretokenizers": list(steps)}
    return {"model": {"type": "BPE", **model}, "pre_tokenizer": pre_tokenizer}


@pytest.mark.parametrize(
    ("steps", "model", "architecture", "name"),
    [
        pytest.param([split(LLAMA_3_SPLIT), BYTES], {"ignore_merges": True}, "llama", "llama-bpe", id="Llama 3"),
        pytest.param([split(LLAMA_3_SPLIT), BYTES], {}, "llama", "dbrx", id="first Llama 3"),
        pytest.param([split(LLAMA_3_SPLIT, "Removed", True), BYTES], {}, "phi3", "dbrx", id="Phi-4"),
        pytest.param([split(CL100K_SPLIT), BYTES], {"ignore_merges": False}, "phi3", "dbrx", id="cl100k"),
        pytest.param([split(POSSESSIVE_SPLIT), BYTES], {}, "phi3", "dbrx", id="possessive cl100k"),
        pytest.param([split(O200K_SPLIT, "Removed", True), BYTES], {}, "phi3", "gpt-4o", id="Phi-4-mini"),
        pytest.param([split(O200K_SPLIT), BYTES], {}, "phi3", "gpt-4o", id="o200k"),
        pytest.param([GPT_2], {}, "phi2", "phi-2", id="Phi-2"),
        pytest.param([GPT_2], {}, "llama", "gpt-2", id="GPT-2"),
        pytest.param([split(GPT_2_SPLIT), BYTES], {}, "llama", "gpt-2", id="GPT-2 spelled out"),
        pytest.param([DIGITS, GPT_2], {}, "llama", "smollm", id="SmolLM"),
    ],
)
def test_pre_tokenizer_is_known_by_its_rule(
    steps: list[dict[str, Any]], model: dict[str, Any], architecture: str, name: str
) -> None:
    assert pre_tokenizer_name(tokenizer_json(*steps, **model), architecture) == name
    assert name in KNOWN_NAMES


@pytest.mark.parametrize(
    "rules",
    [
        pytest.param([LLAMA_3_SPLIT, CL100K_SPLIT, POSSESSIVE_SPLIT], id="cl100k"),
        pytest.param([O200K_SPLIT], id="o200k"),
        pytest.param([GPT_2_SPLIT], id="GPT-2"),
    ],
)
def test_spellings_with_one_name_split_in_the_same_way(rules: list[str]) -> None:
    """Also when the matches are kept and the rest is removed: a rule leaves no rest."""
    steps = [
        pre_tokenizers.Split(tokenizers.Regex(rule), behavior, invert)
        for rule in rules
        for behavior, invert in (("isolated", False), ("isolated", True), ("removed", True))
    ]
    for text in (*TEXTS, *MARKED_SCRIPTS, "a\n\n \n b", "  \r\n\r\n  x", "\n\n\n", "x  \t\n", "12345 a.b;;\n\n"):
        splits = [step.pre_tokenize_str(text) for step in steps]
        assert all(other == splits[0] for other in splits), text


def test_the_written_gpt_2_rule_is_that_of_byte_level() -> None:
    spelled_out = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(GPT_2_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(False, use_regex=False),
        ]
    )
    for text in (*TEXTS, *MARKED_SCRIPTS):
        assert spelled_out.pre_tokenize_str(text) == pre_tokenizers.ByteLevel(False).pre_tokenize_str(text)


@pytest.mark.parametrize(
    ("steps", "named"),
    [
        pytest.param([], "none", id="no pre-tokenizer"),
        pytest.param([BYTES], "none", id="bytes alone"),
        pytest.param([split(r"\p{L}+"), BYTES], r"\p{L}+", id="another rule"),
        pytest.param([split(LLAMA_3_SPLIT + "|x"), BYTES], LLAMA_3_SPLIT + "|x", id="a rule with more to it"),
        pytest.param([split(CL100K_SPLIT.replace("{1,3}", "{1,3}+")), BYTES], "{1,3}+", id="digits without end"),
        pytest.param([split(LLAMA_3_SPLIT, "MergedWithPrevious"), BYTES], "MergedWithPrevious", id="merging"),
        pytest.param([split(LLAMA_3_SPLIT, "Removed"), BYTES], "Removed", id="removing the matches"),
        pytest.param([split(LLAMA_3_SPLIT), GPT_2], LLAMA_3_SPLIT + " then " + GPT_2_SPLIT, id="two rules"),
        pytest.param([DIGITS, split(LLAMA_3_SPLIT), BYTES], r"\p{N} then ", id="digits one by one"),
        pytest.param([{**GPT_2, "add_prefix_space": True}], "add_prefix_space", id="a space in front"),
        pytest.param([{"type": "Whitespace"}, GPT_2], "Whitespace", id="a further step"),
        pytest.param(
            [{"type": "Split", "pattern": {"String": " "}, "behavior": "Isolated"}, BYTES], "String", id="text"
        ),
    ],
)
def test_unknown_rule_is_named_with_the_ways_out(steps: list[dict[str, Any]], named: str) -> None:
    with pytest.raises(CheckpointError, match="rule that localq does not know") as caught:
        pre_tokenizer_name(tokenizer_json(*steps) if steps else {"model": {}, "pre_tokenizer": None}, "llama")
    assert named in caught.value.message
    assert "--to mlx-4bit" in caught.value.hint
    assert "--pre-tokenizer NAME" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"normalizer": {"type": "NFC"}}, "NFC"),
        ({"normalizer": {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]}}, "Lowercase"),
        ({"model": {"dropout": 0.1}}, "dropout 0.1"),
        ({"model": {"continuing_subword_prefix": "##"}}, "continuing_subword_prefix '##'"),
        ({"model": {"end_of_word_suffix": "</w>"}}, "end_of_word_suffix '</w>'"),
    ],
)
def test_what_llama_cpp_cannot_do_is_refused(change: dict[str, Any], named: str) -> None:
    tokenizer = tokenizer_json(split(LLAMA_3_SPLIT), BYTES)
    assert pre_tokenizer_name(tokenizer, "llama") == "dbrx"
    with pytest.raises(CheckpointError, match=named):
        pre_tokenizer_name(tokenizer | change, "llama")


@pytest.mark.parametrize("merges", [[["a", "b"], ["ab", "c"]], ["a b", "ab c"]])
def test_taking_whole_words_counts_only_where_merging_gives_something_else(merges: list[Any]) -> None:
    vocabulary = {"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}
    model = {"vocab": vocabulary, "merges": merges, "ignore_merges": True}
    assert pre_tokenizer_name(tokenizer_json(split(O200K_SPLIT), BYTES, **model), "phi3") == "gpt-4o"
    model["vocab"] = {**vocabulary, "bc": 5}  # no merge makes it
    with pytest.raises(CheckpointError, match="ignore_merges"):
        pre_tokenizer_name(tokenizer_json(split(O200K_SPLIT), BYTES, **model), "phi3")
    assert pre_tokenizer_name(tokenizer_json(split(LLAMA_3_SPLIT), BYTES, **model), "phi3") == "llama-bpe"


def vocabulary_under(name: str, file: Path) -> GgufTokenizer:
    """A vocabulary of two tokens, opened by llama.cpp."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(name)
    writer.add_token_list(["a", "b", "ab", "Ċ"])
    writer.add_token_types([1, 1, 1, 1])
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)  # some names ask for one
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return load_gguf_tokenizer(file)


# Under "whitespace" llama.cpp ends the process at the first space of a text.
@pytest.mark.parametrize("name", sorted({*KNOWN_NAMES} - {"whitespace"}))
def test_llama_cpp_knows_every_name_of_the_table(name: str, tmp_path: Path) -> None:
    require_known_name(name)
    assert vocabulary_under(name, tmp_path / "vocabulary.gguf").vocabulary_size == 4


def test_a_name_that_llama_cpp_does_not_know_is_refused_with_those_it_knows(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="unknown pre-tokenizer type: 'phi-4'"):
        vocabulary_under("phi-4", tmp_path / "vocabulary.gguf")
    with pytest.raises(OptionError, match="'phi-4'") as caught:
        require_known_name("phi-4")
    assert "dbrx" in caught.value.hint


def test_a_rule_that_was_trained_with_is_the_rule_that_is_found() -> None:
    """From a file that the library itself has written."""
    import json

    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.train_from_iterator(["a b 12"], trainers.BpeTrainer(show_progress=False))
    assert pre_tokenizer_name(json.loads(backend.to_str()), "llama") == "smollm"
