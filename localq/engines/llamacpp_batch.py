"""A `llama_batch`: tokens of several sequences for one pass."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any


class Batch:
    """Filled anew for each pass; its arrays stay, because llama.cpp only gets pointers to them."""

    def __init__(self, api: Any, most_tokens: int, most_sequences: int) -> None:
        number = ctypes.POINTER(api.llama_seq_id)
        self._ids = (api.llama_token * most_tokens)()
        self._positions = (api.llama_pos * most_tokens)()
        self._counts = (ctypes.c_int32 * most_tokens)(*[1] * most_tokens)
        self._numbers = (number * most_tokens)()
        self._wanted = (ctypes.c_int8 * most_tokens)()
        self._own_number = [ctypes.pointer(api.llama_seq_id(sequence)) for sequence in range(most_sequences)]
        self.structure = api.llama_batch()
        for name, array in (
            ("token", self._ids),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._numbers),
            ("logits", self._wanted),
        ):
            setattr(self.structure, name, ctypes.cast(array, dict(api.llama_batch._fields_)[name]))
        self.newest: list[int] = []
        """The index of the last token of each sequence."""

    def clear(self) -> None:
        """Begin another pass."""
        self.structure.n_tokens = 0
        self.newest = []

    def add(self, sequence: int, position: int, tokens: Sequence[int], outputs: int) -> None:
        """Tokens of a sequence from a position on; the logits of the last `outputs` are wanted."""
        count, start = len(tokens), self.structure.n_tokens
        if count == 1:  # one token after the other: most passes
            self._ids[start], self._positions[start], self._wanted[start] = tokens[0], position, 1
            self._numbers[start] = self._own_number[sequence]
        else:
            end, unwanted = start + count, max(count - outputs, 0)
            self._ids[start:end] = list(tokens)
            self._positions[start:end] = list(range(position, position + count))
            self._numbers[start:end] = [self._own_number[sequence]] * count
            self._wanted[start:end] = [*[0] * unwanted, *[1] * (count - unwanted)]
        self.structure.n_tokens = start + count
        self.newest.append(start + count - 1)
