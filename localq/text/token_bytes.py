"""What one token adds to a text, in bytes: the decoder of a `tokenizer.json`, for one token at a time.

Two kinds are known: byte-level BPE (Llama 3, Phi-1 to 2, Phi-4) and SentencePiece style (Llama 1 and 2,
Phi-3). Any other decoder is refused. Knows no ids and nothing of special tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from localq.errors import CheckpointError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenDecoder:
    """How a token of the vocabulary is written as bytes."""

    byte_level: bool = False
    """Every character of a token means one byte (GPT-2's alphabet)."""
    byte_fallback: bool = False
    """`<0xE2>` is the byte E2."""
    replacements: tuple[tuple[str, str], ...] = ()
    """Replaced in every token, in this order, such as `("▁", " ")`."""
    strips_leading_space: bool = False
    """The first space of a decoded text is dropped."""

    def token_bytes(self, token: str) -> bytes:
        """The bytes of a token of the model's vocabulary, in the middle of a text."""
        if self.byte_level:
            return _byte_level_bytes(token)
        for pattern, content in self.replacements:
            token = token.replace(pattern, content)
        if self.byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.encode()

    def added_token_bytes(self, content: str) -> bytes:
        """The bytes of an added token that is not special: plain text, never in the byte alphabet."""
        return content.encode() if self.byte_level else self.token_bytes(content)


def token_decoder(section: Mapping[str, Any] | None) -> TokenDecoder:
    """Read the decoder section of a `tokenizer.json`.

    Raises CheckpointError for a step that localq does not know: the text would be wrong.
    """
    if section is None:
        raise CheckpointError("tokenizer.json has no decoder, so tokens can't be turned into text", _HINT)
    steps = section["decoders"] if section["type"] == "Sequence" else [section]
    decoder = TokenDecoder()
    fused = False
    for step in steps:
        fused = fused or step["type"] == "Fuse"
        decoder = _with_step(decoder, step, fused)
    return decoder


_HINT = "localq reads the tokenizers of the Llama and Phi families; check the source of this tokenizer.json"


def _with_step(decoder: TokenDecoder, step: Mapping[str, Any], fused: bool) -> TokenDecoder:
    match step:
        case {"type": "ByteLevel"}:
            return replace(decoder, byte_level=True)
        case {"type": "ByteFallback"}:
            return replace(decoder, byte_fallback=True)
        case {"type": "Fuse"}:
            return decoder
        case {"type": "Replace", "pattern": {"String": str(pattern)}, "content": str(content)}:
            return replace(decoder, replacements=(*decoder.replacements, (pattern, content)))
        # Before Fuse joins the tokens into one text, Strip would change every token.
        case {"type": "Strip", "content": " ", "start": 1, "stop": 0} if fused:
            return replace(decoder, strips_leading_space=True)
        case {"type": "Metaspace", "replacement": str(mark), "prepend_scheme": scheme}:
            strips = scheme != "never"
            return replace(decoder, replacements=((mark, " "),), strips_leading_space=strips)
    raise CheckpointError(f"tokenizer.json has a decoder step that localq does not know: {dict(step)}", _HINT)


def _byte_level_bytes(token: str) -> bytes:
    alphabet = byte_alphabet()
    try:
        return bytes([alphabet[character] for character in token])
    except KeyError:  # not written in the alphabet: plain text, as in the tokenizers library
        return token.encode()


@cache
def byte_alphabet() -> dict[str, int]:
    """The byte of each character of GPT-2's alphabet: printable Latin-1 as it is, U+0100 and up for the other bytes."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(0x100) if byte not in set(printable))
    alphabet.update({chr(0x100 + position): byte for position, byte in enumerate(others)})
    return alphabet
