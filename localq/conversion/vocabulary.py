"""A checkpoint's tokenizer as GGUF metadata.

llama.cpp knows two kinds for Llama and Phi: SentencePiece ("llama": pieces with scores) and byte-level BPE
("gpt2": pieces and merges, and the name of a pre-tokenizer rule). localq itself tokenizes by `tokenizer.json`;
these metadata make other programs do alike, so what they can't say is refused.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from localq.conversion.pre_tokenizers import pre_tokenizer_name, require_known_name
from localq.conversion.sentencepiece_tokens import adds_space_prefix, sentencepiece_table
from localq.conversion.token_table import TokenTable, looks_special
from localq.errors import CheckpointError, OptionError
from localq.json_files import read_optional_json
from localq.text.sentencepiece_model import TokenType
from localq.text.tokenizer_json import malformed_tokenizers_named, read_tokenizer_json

if TYPE_CHECKING:
    from gguf import GGUFWriter, SpecialVocab

_SENTENCEPIECE_PRE_TOKENIZER = "default"  # llama.cpp looks at no other for this kind
_CODE_LLAMA_SIZE, _CODE_LLAMA_END_OF_TEXT = 32016, (32010, "▁<EOT>")

_SWALLOWING_NAME = re.compile(r"phi-?3", re.IGNORECASE)
_SWALLOWING_NEEDS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}


def add_vocabulary(writer: GGUFWriter, folder: Path, vocabulary_size: int, pre_tokenizer: str | None = None) -> None:
    """Write the tokenizer of a checkpoint folder into a GGUF header.

    `vocabulary_size` is the number of rows of the embedding. A `pre_tokenizer`, one of llama.cpp's names, is
    written as it is: nobody then asks whether llama.cpp splits text like `tokenizers`. Raises CheckpointError
    for a tokenizer of another kind, one that llama.cpp can't match, or a malformed file; OptionError for a name
    that llama.cpp does not know.
    """
    if pre_tokenizer is not None:
        require_known_name(pre_tokenizer)
    with malformed_tokenizers_named(folder):
        tokenizer = read_tokenizer_json(folder)
        model = tokenizer["model"]
        if model.get("type") != "BPE":
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} has a tokenizer of type {model.get('type')!r}",
                "localq writes GGUF vocabularies for BPE tokenizers, as Llama and Phi have them",
            )
        add = _add_sentencepiece if model.get("byte_fallback") else _add_byte_level
        table = add(writer, folder, tokenizer, vocabulary_size, pre_tokenizer)
        _add_special_tokens(writer, folder, tokenizer, table)


def name_for_llama_cpp(name: str, folder: Path) -> str:
    """`general.name`: the model's name, marked as a Phi-3 if its special tokens swallow white space behind them.

    `tokenizer.json` states that per token (`rstrip`); a GGUF file can't, so llama.cpp goes by the name. One with
    "phi-3" or "phi3" in it (src/llama-vocab.cpp) gives the trait to all special tokens but Phi-3's `<unk>`, `<s>`
    and `<|endoftext|>`, and does not load without these and `</s>`. A model of that name without the trait, or
    without those tokens, is written "phi 3".
    """
    with malformed_tokenizers_named(folder):
        tokenizer = read_tokenizer_json(folder)
        added = tokenizer.get("added_tokens", [])
        known = {token["content"] for token in added}.union(tokenizer.get("model", {}).get("vocab", ()))
        swallows = any(token.get("rstrip") and token.get("special") for token in added) and known >= _SWALLOWING_NEEDS
    if not swallows:
        return _SWALLOWING_NAME.sub(lambda match: f"{match[0][:3]} 3", name)
    return name if _SWALLOWING_NAME.search(name) else f"{name} (Phi-3)"


def _add_byte_level(
    writer: GGUFWriter, folder: Path, tokenizer: Mapping[str, Any], size: int, pre_tokenizer: str | None
) -> TokenTable:
    table = TokenTable(size)
    for text, token_id in tokenizer["model"]["vocab"].items():
        table.put(token_id, text, 0.0, TokenType.NORMAL)
    for token in tokenizer.get("added_tokens", []):
        is_control = token.get("special") or looks_special(token["content"])
        kind = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
        table.put(token["id"], token["content"], 0.0, kind)
    table.check()
    merges = [_merge_line(merge) for merge in tokenizer["model"]["merges"]]
    if not merges:
        raise CheckpointError(f"{folder / 'tokenizer.json'} has no merges", "download tokenizer.json again")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer or pre_tokenizer_name(tokenizer, writer.arch))
    writer.add_token_list(table.texts)
    writer.add_token_types(table.types)
    writer.add_token_merges(merges)
    if _stated_prefix(folder) is not None:
        writer.add_add_space_prefix(False)
    return table


def _add_sentencepiece(
    writer: GGUFWriter, folder: Path, tokenizer: Mapping[str, Any], size: int, pre_tokenizer: str | None
) -> TokenTable:
    if pre_tokenizer not in (None, _SENTENCEPIECE_PRE_TOKENIZER):
        raise OptionError(
            f"the tokenizer of {folder} is of SentencePiece's kind, which has no pre-tokenizer {pre_tokenizer!r}",
            f"leave the option out; {_SENTENCEPIECE_PRE_TOKENIZER!r} is what such a vocabulary gets",
        )
    table = sentencepiece_table(folder, tokenizer, size, writer.arch)
    table.check()
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre(_SENTENCEPIECE_PRE_TOKENIZER)
    writer.add_token_list(table.texts)
    writer.add_token_scores(table.scores)
    writer.add_token_types(table.types)
    stated = _stated_prefix(folder)
    has_prefix = adds_space_prefix(tokenizer) if pre_tokenizer is None else stated is not False
    if stated is not None or not has_prefix:  # llama.cpp takes it for granted
        writer.add_add_space_prefix(has_prefix)
    return table


def _stated_prefix(folder: Path) -> bool | None:
    """`add_prefix_space` of tokenizer_config.json; where it is stated, llama.cpp's converter writes the key."""
    stated = read_optional_json(folder / "tokenizer_config.json").get("add_prefix_space")
    return stated if isinstance(stated, bool) else None


def _merge_line(merge: str | list[str]) -> str:
    """A pair of pieces as in a merges file; a space within a piece is written in the byte alphabet."""
    return merge if isinstance(merge, str) else " ".join(part.replace(" ", "Ġ") for part in merge)


def _add_special_tokens(writer: GGUFWriter, folder: Path, tokenizer: Mapping[str, Any], table: TokenTable) -> None:
    """Ids of the special tokens, which of them frame a text, and the chat template."""
    special = _special_vocabulary(folder, tokenizer, table.size)
    framing = _framing(tokenizer)
    special.special_token_ids |= framing
    special.add_special_token = {"bos": "bos" in framing, "eos": "eos" in framing, "sep": False}
    end_of_text_id, end_of_text = _CODE_LLAMA_END_OF_TEXT
    if table.size == _CODE_LLAMA_SIZE and table.matches_whole(end_of_text_id, end_of_text):
        special.special_token_ids["eot"] = end_of_text_id
    special.add_to_gguf(writer, quiet=True)


def _framing(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """The special tokens that a text gets in front (`bos`) and behind (`eos`).

    The post-processor of `tokenizer.json` alone decides, as in `tokenizers`: localq tokenizes by it, whatever
    `add_bos_token` of tokenizer_config.json says. `sep`, between the texts of a pair, has no use in a chat.
    """
    post_processor = tokenizer.get("post_processor") or {}
    for step in post_processor.get("processors", [post_processor]):
        if step.get("type") == "TemplateProcessing":
            names = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in step["single"]]
            before, behind = names[: names.index(None)], names[names.index(None) + 1 :]
            ids = {name: step["special_tokens"][name]["ids"] for name in (*before, *behind) if name is not None}
            if len(before) > 1 or len(behind) > 1 or any(len(token_ids) != 1 for token_ids in ids.values()):
                raise CheckpointError(
                    f"tokenizer.json frames a text with {', '.join(ids)}; llama.cpp adds one token at each end at most",
                    "an MLX form has no such limit: --to mlx-4bit",
                )
            return {kind: ids[name[0]][0] for kind, name in (("bos", before), ("eos", behind)) if name}
    return {}


def _special_vocabulary(folder: Path, tokenizer: Mapping[str, Any], size: int) -> SpecialVocab:
    """What the gguf package reads of a folder: ids of special tokens, and the chat template."""
    from gguf import SpecialVocab

    with _quiet(SpecialVocab.__module__):
        if (folder / "tokenizer.json").is_file():
            return SpecialVocab(folder, n_vocab=size)
        with tempfile.TemporaryDirectory(prefix="localq-tokenizer-") as completed:
            for file in (*folder.glob("*config.json"), *folder.glob("chat_template.*")):
                shutil.copy(file, completed)
            (Path(completed) / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
            return SpecialVocab(completed, n_vocab=size)


@contextmanager
def _quiet(logger_name: str) -> Iterator[None]:
    """The gguf package logs its own reading of post-processors, which is not used here."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
