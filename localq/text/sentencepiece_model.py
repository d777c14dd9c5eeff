"""A SentencePiece model file (`tokenizer.model`): its pieces, and how it prepares text.

The file is a protocol buffer message (`ModelProto` of sentencepiece_model.proto). It is read here because the
sentencepiece library gives neither the user-defined pieces nor how text is normalized. Encodes nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from localq.errors import CheckpointError
from localq.json_files import MOST_TOKENIZER_BYTES
from localq.regular_files import read_regular

WORD_MARK = "▁"
"""What SentencePiece writes for a space."""

_BPE = 2  # `TrainerSpec.ModelType`

_Field = tuple[int, int | bytes]  # number and value


class TokenType(IntEnum):
    """What a token is for. SentencePiece's numbers, which llama.cpp uses too (`enum llama_token_type`)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True)
class Piece:
    """An entry of the vocabulary; its index in the list is its id."""

    text: str
    score: float
    """The pair that makes the piece with the highest score is merged first."""
    type: TokenType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A BPE model that changes nothing in a text except that it writes spaces as word marks."""

    pieces: tuple[Piece, ...]
    adds_dummy_prefix: bool
    """Whether a text gets a word mark in front."""
    bos_id: int
    """-1 where the model has no beginning-of-text token; in the same way `eos_id`."""
    eos_id: int


def read_sentencepiece_model(file: Path) -> SentencePieceModel:
    """Read a model file.

    Raises CheckpointError when it is damaged, of another kind than BPE, or changes text in other ways than
    Llama's and Phi-3's do, which write spaces as word marks and nothing else.
    """
    try:
        model, faults = _parsed(read_regular(file, MOST_TOKENIZER_BYTES))
    except (ValueError, IndexError, TypeError, struct.error, OSError) as error:
        raise CheckpointError(
            f"{file} can't be read as a SentencePiece model", "download the file again: `localq pull --verify REPO`"
        ) from error
    if faults:
        raise CheckpointError(
            f"{file} is a SentencePiece model that localq does not read: {', '.join(faults)}",
            "localq reads the kind that Llama and Phi-3 have; any other needs a tokenizer.json beside it",
        )
    return model


def _parsed(data: bytes) -> tuple[SentencePieceModel, list[str]]:
    """The model, and how it differs from Llama's; field numbers and defaults from sentencepiece_model.proto."""
    fields = list(_fields(data))
    pieces = tuple(_piece(_message(value)) for number, value in fields if number == 1)
    trainer = dict(field for number, value in fields if number == 2 for field in _fields(_message(value)))
    normalizer = dict(field for number, value in fields if number == 3 for field in _fields(_message(value)))
    unlike = {
        "it has no pieces": not pieces,
        "its type is not BPE": trainer.get(3, 1) != _BPE,
        "it writes word marks behind words": bool(trainer.get(24, 0)),
        "it replaces characters": bool(normalizer.get(2)),
        "it drops repeated spaces": bool(normalizer.get(4, 1)),
        "it keeps spaces as they are": not normalizer.get(5, 1),
        "it has unused pieces": any(piece.type is TokenType.UNUSED for piece in pieces),
        # `tokenizers` and llama.cpp look for such symbols before they write word marks, SentencePiece after that.
        "its symbols hold word marks": any(p.type is TokenType.USER_DEFINED and WORD_MARK in p.text for p in pieces),
    }
    model = SentencePieceModel(
        pieces,
        adds_dummy_prefix=bool(normalizer.get(3, 1)),
        bos_id=_token_id(trainer.get(41, 1), len(pieces)),
        eos_id=_token_id(trainer.get(42, 2), len(pieces)),
    )
    return model, [fault for fault, is_so in unlike.items() if is_so]


def _piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _message(fields.get(2, bytes(4))))
    return Piece(_message(fields.get(1, b"")).decode(), score, TokenType(_number(fields.get(3, 1))))


def _token_id(value: int | bytes, count: int) -> int:
    return number if (number := _number(value)) < count else -1  # -1 is written as 2**64 - 1


def _number(value: int | bytes) -> int:
    if isinstance(value, bytes):
        raise ValueError("bytes instead of a number")
    return value


def _message(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number instead of bytes")
    return value


def _fields(data: bytes) -> Iterator[_Field]:
    """Fields of a message in their order: whole numbers, and the bytes of everything else."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}.get(wire_type, -1)
        if size < 0 or position + size > len(data):
            raise ValueError(f"field of wire type {wire_type} and {size} bytes at byte {position}")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """A number with seven bits per byte, the lowest first, and the position after it."""
    value = 0
    for shift in range(0, 64, 7):
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
    raise ValueError(f"number of more than 64 bits at byte {position}")
