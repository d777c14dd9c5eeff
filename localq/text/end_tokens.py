"""Which tokens end a reply: one rule for both formats.

The ids in the checkpoint's configuration, and end-of-turn tokens by name, because the configuration is often
incomplete: Phi-3's `config.json` names `<|endoftext|>`, but every turn ends with `<|end|>`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from localq.errors import CheckpointError
from localq.text.tokenizer import Tokenizer

END_TOKEN_NAMES = (
    "<|eot_id|>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<|end|>",
    "<|im_end|>",
    "<|endoftext|>",
    "</s>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<|return|>",
    "<|call|>",
    "<|calls|>",
    "<|flush|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "[e~[",
    "<｜end▁of▁sentence｜>",
)
"""Tokens at which llama.cpp ends generation because of their name, in all families (`special_eog_ids` in
src/llama-vocab.cpp)."""

_ENDS_A_PART = "<|end|>"
_ENDS_OF_HARMONY = ({"<|return|>", "<|call|>"}, {"<|calls|>", "<|flush|>"})
"""In a vocabulary with one of these pairs, `<|end|>` ends only a part of a reply."""


def end_tokens(config: Mapping[str, Any], generation_config: Mapping[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """Ids that end a reply.

    `eos_token_id` of both configurations, the tokenizer's `eos_token`, and those of END_TOKEN_NAMES that are added
    tokens: `</s>` as an ordinary piece of text, as in HTML, ends nothing. (llama.cpp would stop
    there too.) Raises CheckpointError for an `eos_token_id` that is neither an id nor a list of ids.
    """
    names = {name for name in END_TOKEN_NAMES if name in tokenizer.added_tokens}
    if any(pair <= names for pair in _ENDS_OF_HARMONY):
        names.discard(_ENDS_A_PART)
    found = {
        *_eos_token_ids("config.json", config),
        *_eos_token_ids("generation_config.json", generation_config),
        *(tokenizer.added_tokens[name] for name in names),
    }
    eos_token = tokenizer.special_tokens.get("eos_token")
    if eos_token is not None and (token_id := tokenizer.token_id(eos_token)) is not None:
        found.add(token_id)
    return frozenset(found)


def _eos_token_ids(file_name: str, config: Mapping[str, Any]) -> list[int]:
    value = config.get("eos_token_id")
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(type(token_id) is int and token_id >= 0 for token_id in ids):
        raise CheckpointError(
            f"eos_token_id in {file_name} is {value!r}; expected a token id or a list of them",
            f"correct {file_name}",
        )
    return ids
