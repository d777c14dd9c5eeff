"""The list of tokens in a GGUF file: text, score and type of each. Knows no tokenizer files."""

from __future__ import annotations

from dataclasses import dataclass, field

from localq.errors import CheckpointError
from localq.text.sentencepiece_model import TokenType

_UNUSED_SCORE = -10000.0  # by llama.cpp's converter


_SPECIAL_NAMES = ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
_SPECIAL_SHAPES = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))


def looks_special(text: str) -> bool:
    """Whether a token is a control token by its looks: checkpoints forget to mark some of them as special.

    The rule of llama.cpp's converter (`does_token_look_special` in conversion/base.py).
    """
    has_shape = any(text.startswith(left) and text.endswith(right) for left, right in _SPECIAL_SHAPES)
    return has_shape or text in _SPECIAL_NAMES


@dataclass(slots=True)
class TokenTable:
    """Tokens by id, as many as the model has rows in its embedding."""

    size: int
    drops_tokens_beyond: bool = False
    """Whether a token without a row is left out. Else it is refused."""
    texts: list[bytes] = field(init=False)
    scores: list[float] = field(init=False)
    types: list[TokenType] = field(init=False)

    def __post_init__(self) -> None:
        self.texts = [f"[PAD{token_id}]".encode() for token_id in range(self.size)]
        self.scores = [_UNUSED_SCORE] * self.size
        self.types = [TokenType.UNUSED] * self.size

    def put(self, token_id: int, text: str, score: float, kind: TokenType) -> None:
        """Enter a token, in place of what is there. Raises CheckpointError where the model has no row for it."""
        if 0 <= token_id < self.size:
            self.texts[token_id], self.scores[token_id], self.types[token_id] = text.encode(), score, kind
        elif not self.drops_tokens_beyond:
            raise CheckpointError(
                f"the tokenizer has a token {text!r} of id {token_id}; the model has {self.size} tokens",
                "take config.json and the tokenizer's files from the same repository",
            )

    def matches_whole(self, token_id: int, text: str) -> bool:
        """Whether this token is entered as one that is found in a text before anything else."""
        is_entered = 0 <= token_id < self.size and self.texts[token_id] == text.encode()
        return is_entered and self.types[token_id] not in (TokenType.NORMAL, TokenType.UNUSED)

    def check(self) -> None:
        """Refuse what makes llama.cpp end the process: two tokens of one text, which ends at a zero byte for it."""
        ids: dict[bytes, int] = {}
        for token_id, text in enumerate(self.texts):
            read = text.partition(b"\0")[0] or f"[EMPTY_{token_id}]".encode()
            if ids.setdefault(read, token_id) != token_id:
                raise CheckpointError(
                    f"tokens {ids[read]} and {token_id} are both {read.decode(errors='replace')!r} for llama.cpp",
                    "an MLX form has no such limit: --to mlx-4bit",
                )
