"""Text to token ids and back: the `Tokenizer` protocol, and the tokenizer of a Hugging Face folder.

The folder's own `tokenizer.json` counts, read by the `tokenizers` library; where a folder has only older
files, `localq.text.tokenizer_json` makes one of them. transformers is not used: it rebuilds parts
of some tokenizers and then gives other ids than the model was trained with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from localq.disk import reason
from localq.errors import CheckpointError, OptionError
from localq.json_files import MOST_TOKENIZER_BYTES
from localq.regular_files import is_there, read_regular
from localq.text.token_bytes import token_decoder
from localq.text.tokenizer_config import read_special_tokens
from localq.text.tokenizer_json import read_tokenizer_json

if TYPE_CHECKING:
    import tokenizers


class Tokenizer(Protocol):
    """A vocabulary: the same meaning for a Hugging Face folder and for a GGUF file's own vocabulary."""

    @property
    def vocabulary_size(self) -> int:
        """Largest token id plus one. A model may have more logits: its embedding is often padded."""

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops one leading space of a text, as SentencePiece-style decoders do."""

    @property
    def special_tokens(self) -> Mapping[str, str]:
        """Special tokens by the name that chat templates use: `bos_token`, `eos_token`, ..."""

    @property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of the tokens that are matched whole, before the text is split; special ones and others."""

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text. Special tokens that are written in the text are recognized.

        `add_special_tokens` adds at both ends what this tokenizer adds there (usually the beginning-of-text token).
        Text from a chat template is encoded without it: the template writes its own.
        Raises OptionError for a text that is not valid Unicode.
        """

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that a token adds to a text, not at its beginning; none for special tokens and unused ids."""

    def token_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it (`<|end|>`, `Ġthe`, `▁the`); None when there is none."""

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of a whole sequence of ids. Special tokens are left out, invalid UTF-8 becomes U+FFFD."""


def decode_tokens(tokenizer: Tokenizer, token_ids: Iterable[int]) -> str:
    """`Tokenizer.decode` through `token_bytes`, so that it agrees with `TextStream`."""
    text = b"".join(map(tokenizer.token_bytes, token_ids)).decode("utf-8", errors="replace")
    return text.removeprefix(" ") if tokenizer.strips_leading_space else text


def utf8_bytes(text: str) -> bytes:
    """A text as UTF-8. Raises OptionError when it contains half of a surrogate pair (from input that is not UTF-8)."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise OptionError(
            f"the text is not valid Unicode: {text[error.start]!r} at character {error.start}",
            "check the encoding of the input; localq reads UTF-8",
        ) from error


class HuggingFaceTokenizer:
    """The tokenizer of a checkpoint folder."""

    def __init__(self, backend: tokenizers.Tokenizer, special_tokens: Mapping[str, str]) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._decoder = token_decoder(json.loads(backend.decoder.__getstate__()) if backend.decoder else None)
        self._bytes: dict[int, bytes] = {}
        self.special_tokens = special_tokens

    @cached_property
    def vocabulary_size(self) -> int:
        """Largest token id plus one."""
        return 1 + max(self._backend.get_vocab(with_added_tokens=True).values())

    @property
    def strips_leading_space(self) -> bool:
        """Whether decoding drops one leading space of a text."""
        return self._decoder.strips_leading_space

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of the added tokens of `tokenizer.json`."""
        return {token.content: token_id for token_id, token in self._added.items()}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; see `Tokenizer.encode`.

        Only the post-processor of `tokenizer.json` decides what `add_special_tokens` adds. `add_bos_token`
        and `add_eos_token` of `tokenizer_config.json` are ignored, as in transformers 5 where there is a
        `tokenizer.json` (transformers 4 rebuilt the post-processor of LlamaTokenizer from them).
        """
        utf8_bytes(text)
        return self._backend.encode(text, add_special_tokens=add_special_tokens).ids

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that one token adds; computed once for each id."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def token_id(self, token: str) -> int | None:
        """Id of a token as the vocabulary spells it."""
        return self._backend.token_to_id(token)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of the ids.

        The same as from the tokenizers library for valid text. Where a run of byte tokens (`<0xE2>`) is not valid
        UTF-8, that library writes one U+FFFD for every byte of the run, also for the valid ones.
        """
        return decode_tokens(self, token_ids)

    @cached_property
    def _added(self) -> dict[int, tokenizers.AddedToken]:
        return self._backend.get_added_tokens_decoder()

    def _token_bytes(self, token_id: int) -> bytes:
        if added := self._added.get(token_id):
            return b"" if added.special else self._decoder.added_token_bytes(added.content)
        # The library fails for a negative id.
        token = self._backend.id_to_token(token_id) if token_id >= 0 else None
        return b"" if token is None else self._decoder.token_bytes(token)


def load_tokenizer(folder: Path) -> HuggingFaceTokenizer:
    """Open the tokenizer of a Hugging Face folder.

    Raises CheckpointError when its files are missing or damaged, or when it names a beginning- or end-of-text
    token that is not in the vocabulary.
    """
    import tokenizers

    path = folder / "tokenizer.json"
    try:
        # A tokenizer.json made from other files is not written into the folder, which is someone else's.
        if is_there(path):
            data = read_regular(path, MOST_TOKENIZER_BYTES)
        else:
            data = json.dumps(read_tokenizer_json(folder)).encode()
        backend = tokenizers.Tokenizer.from_buffer(data)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path} can't be read: {reason(error)}", "download the file again: `localq pull --verify REPO`"
        ) from error
    special_tokens = read_special_tokens(folder)
    for name in ("bos_token", "eos_token"):
        token = special_tokens.get(name)
        if token is not None and backend.token_to_id(token) is None:
            raise CheckpointError(
                f"{folder}: {name} is {token!r}, which is not in the vocabulary of tokenizer.json",
                f"correct {name} in tokenizer_config.json, or download both files from the same repository",
            )
    return HuggingFaceTokenizer(backend, special_tokens)
