"""The vocabulary inside a GGUF file, through llama.cpp: for files that localq did not make.

For a file that localq made, the `tokenizer.json` beside it is used (`localq.text.tokenizer`). Only the header of the
file is read, no weights.
"""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from localq.errors import ChatTemplateError, CheckpointError, EngineError, ModelNotFoundError
from localq.gguf_file import require_openable
from localq.llama_log import captured_llama_log
from localq.text.tokenizer import decode_tokens, utf8_bytes

_SHORT_PIECE_BYTES = 64
_LONGEST_KEY_BYTES = 65536
"""The format's own limit."""
_CHAT_TEMPLATE = "tokenizer.chat_template"


class GgufTokenizer:
    """The tokenizer of a GGUF file. Fulfils `localq.text.tokenizer.Tokenizer`."""

    def __init__(self, model: Any) -> None:
        """`model` is a `llama_model` pointer; the tokenizer frees it."""
        import llama_cpp

        self._llama = llama_cpp
        self._model = model
        self._vocabulary = llama_cpp.llama_model_get_vocab(model)
        self._bytes: dict[int, bytes] = {}
        weakref.finalize(self, llama_cpp.llama_model_free, model)

    @cached_property
    def vocabulary_size(self) -> int:
        """Number of tokens in the file; their ids have no gaps."""
        return int(self._llama.llama_vocab_n_tokens(self._vocabulary))

    @cached_property
    def strips_leading_space(self) -> bool:
        """Whether llama.cpp puts a space before a text, and removes it when decoding.

        `tokenizer.ggml.add_space_prefix`; without it llama.cpp does so for SentencePiece vocabularies.
        In WordPiece ones the space is part of the first token of a word.
        """
        stated = self.metadata("tokenizer.ggml.add_space_prefix")
        if stated is not None:
            return stated == "true"
        with_space = self._llama.LLAMA_VOCAB_TYPE_SPM, self._llama.LLAMA_VOCAB_TYPE_WPM
        return self._llama.llama_vocab_type(self._vocabulary) in with_space

    @cached_property
    def special_tokens(self) -> Mapping[str, str]:
        """`bos_token` and `eos_token`, where the file names them."""
        ids = {
            "bos_token": self._llama.llama_vocab_bos(self._vocabulary),
            "eos_token": self._llama.llama_vocab_eos(self._vocabulary),
        }
        return {name: self._token_text(token_id) for name, token_id in ids.items() if token_id >= 0}

    @cached_property
    def added_tokens(self) -> Mapping[str, int]:
        """Ids of the tokens that llama.cpp matches whole: control, user-defined and unknown ones."""
        whole = (
            self._llama.LLAMA_TOKEN_ATTR_CONTROL
            | self._llama.LLAMA_TOKEN_ATTR_USER_DEFINED
            | self._llama.LLAMA_TOKEN_ATTR_UNKNOWN
        )
        return {
            text: token_id
            for text, token_id in self._ids.items()
            if self._llama.llama_vocab_get_attr(self._vocabulary, token_id) & whole
        }

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Ids of a text; see `Tokenizer.encode`. The file states what is added at both ends."""
        content = utf8_bytes(text)
        capacity = len(content) + 8  # for a token per byte, a space in front, and special tokens at both ends
        ids = (self._llama.llama_token * capacity)()
        count = self._llama.llama_tokenize(
            self._vocabulary, content, len(content), ids, capacity, add_special_tokens, True
        )
        if count < 0:
            raise EngineError(f"llama.cpp could not tokenize a text of {len(content)} bytes: {count}")
        return list(ids[:count])

    def token_bytes(self, token_id: int) -> bytes:
        """Bytes that one token adds; read from llama.cpp once for each id."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._token_bytes(token_id)
        return known

    def token_id(self, token: str) -> int | None:
        """Id of a token as the file writes it."""
        return self._ids.get(token)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Text of the ids."""
        return decode_tokens(self, token_ids)

    def metadata(self, key: str) -> str | None:
        """A metadata value of the file as llama.cpp writes it; None when there is none."""
        name = key.encode()
        length = self._llama.llama_model_meta_val_str(self._model, name, None, 0)
        if length < 0:
            return None
        buffer = ctypes.create_string_buffer(length + 1)
        self._llama.llama_model_meta_val_str(self._model, name, buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def keys(self) -> list[str]:
        """Names of all metadata values that are not lists."""
        buffer = ctypes.create_string_buffer(_LONGEST_KEY_BYTES)
        found = []
        for number in range(self._llama.llama_model_meta_count(self._model)):
            self._llama.llama_model_meta_key_by_index(self._model, number, buffer, len(buffer))
            found.append(buffer.value.decode("utf-8", errors="replace"))
        return found

    def is_end_token(self, token_id: int) -> bool:
        """Whether llama.cpp ends generation at this token."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token_id))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {self._token_text(token_id): token_id for token_id in range(self.vocabulary_size)}

    def _token_text(self, token_id: int) -> str:
        text: bytes = self._llama.llama_vocab_get_text(self._vocabulary, token_id)
        return text.decode("utf-8", errors="replace")

    def _token_bytes(self, token_id: int) -> bytes:
        # llama.cpp does not check the id: it would end the process.
        if not 0 <= token_id < self.vocabulary_size:
            return b""
        length = -_SHORT_PIECE_BYTES
        while length < 0:  # a negative result is the number of bytes needed
            buffer = ctypes.create_string_buffer(-length)
            length = self._llama.llama_token_to_piece(self._vocabulary, token_id, buffer, len(buffer), 0, False)
        return buffer.raw[:length]


def load_gguf_tokenizer(path: Path) -> GgufTokenizer:
    """Open the vocabulary of a GGUF file.

    Raises ModelNotFoundError when there is no such file, ModelFileError for one on which llama.cpp would end the
    process, EngineError when llama.cpp can't read it, CheckpointError for a file without a vocabulary, on which
    llama.cpp's tokenizer would end the process.
    """
    import llama_cpp

    require_openable(path)
    if not path.is_file():
        raise ModelNotFoundError(f"no file {path}", "check the path; `localq ls` lists the models made so far")
    with captured_llama_log() as log:
        llama_cpp.llama_backend_init()
        parameters = llama_cpp.llama_model_default_params()
        parameters.vocab_only = True
        model = llama_cpp.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        reason = next((line for line in "".join(log).splitlines() if "error" in line.lower()), "no reason given")
        raise EngineError(
            f"llama.cpp can't read the vocabulary of {path}: {reason}", "check the file or download it again"
        )
    tokenizer = GgufTokenizer(model)
    if llama_cpp.llama_vocab_type(llama_cpp.llama_model_get_vocab(model)) == llama_cpp.LLAMA_VOCAB_TYPE_NONE:
        raise CheckpointError(f"{path} has no vocabulary: text can't be turned into tokens", "use a file that has one")
    return tokenizer


def gguf_chat_template(tokenizer: GgufTokenizer) -> str | None:
    """Source of the chat template in the file; None when it has none.

    `tokenizer.chat_template` is the default one, `tokenizer.chat_template.NAME` is one of that name, as llama.cpp's
    converter writes them. Without a default a single named one is used; raises ChatTemplateError for several.
    """
    default = tokenizer.metadata(_CHAT_TEMPLATE)
    names = [] if default is not None else [key for key in tokenizer.keys if key.startswith(f"{_CHAT_TEMPLATE}.")]
    if len(names) > 1:
        shown = ", ".join(sorted(name.removeprefix(f"{_CHAT_TEMPLATE}.") for name in names))
        raise ChatTemplateError(
            f"the file has no default chat template, but several others: {shown}", "use another file"
        )
    return tokenizer.metadata(names[0]) if names else default


def gguf_end_tokens(tokenizer: GgufTokenizer) -> frozenset[int]:
    """All ids at which llama.cpp ends generation (`llama_vocab_is_eog`)."""
    return frozenset(filter(tokenizer.is_end_token, range(tokenizer.vocabulary_size)))
