"""What a GGUF vocabulary can't hold of a tokenizer, in sentences for people.

localq tokenizes with `tokenizer.json` whatever the format; this matters to other programs that open the file.
"""

from __future__ import annotations

from collections.abc import Iterator

from localq.conversion.vocabulary import TokenizerFolder
from localq.text.tokenizer_json import malformed_tokenizers_named

_LEAD = (
    "Other programs that open the GGUF file will split some texts differently from tokenizer.json, which localq uses:"
)


def gguf_tokenizer_caveats(tokenizer: TokenizerFolder) -> tuple[str, ...]:
    """Traits of a tokenizer that its GGUF vocabulary lacks; raises CheckpointError for a malformed tokenizer."""
    with malformed_tokenizers_named(tokenizer.folder):
        is_sentencepiece = bool(tokenizer.json["model"].get("byte_fallback"))
        reasons = [*(_sentencepiece_traits(tokenizer) if is_sentencepiece else ())]
        reasons += _added_token_traits(tokenizer, is_sentencepiece)
    return tuple(f"{_LEAD} {reason}." for reason in reasons)


def _sentencepiece_traits(tokenizer: TokenizerFolder) -> Iterator[str]:
    step = tokenizer.json.get("pre_tokenizer") or {}
    if step.get("type") == "Metaspace" and step.get("prepend_scheme") != "never":
        yield "spaces at the beginning of texts, and texts after special tokens (Metaspace)"
    normalizer = tokenizer.json.get("normalizer") or {}
    adds_prefix = step.get("type") == "Metaspace" or any(
        part.get("type") == "Prepend" for part in normalizer.get("normalizers", [normalizer])
    )
    if tokenizer.stated_prefix is False and adds_prefix:
        yield 'tokenizer_config.json says "add_prefix_space": false, and tokenizer.json puts a space in front'


def _added_token_traits(tokenizer: TokenizerFolder, is_sentencepiece: bool) -> Iterator[str]:
    added = tokenizer.added_tokens
    # A SentencePiece model gets `rstrip` by its name: see `name_for_llama_cpp`.
    traits = ("lstrip", "single_word") if is_sentencepiece else ("lstrip", "rstrip", "single_word")
    for trait in traits:
        names = [token["content"] for token in added if token.get(trait)]
        if names:
            more = " ..." if len(names) > 3 else ""
            yield f"white space or words beside {', '.join(names[:3])}{more} ({trait})"
    names = [token["content"] for token in added if token.get("normalized") and not token.get("special")]
    if is_sentencepiece and names:
        yield f"{', '.join(names[:3])} within words (normalized)"
