"""What the translations of all protocols have in common: fields of requests, events, log-probabilities."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from localq.generation import TokenLogprobs
from localq.serve.core import Replies, Reply, Wanted
from localq.serve.intake import Strict
from localq.serve.refusals import Refusal
from localq.text.tokenizer import Tokenizer

Absent = Annotated[None, Field(description="Not supported.")]
"""Of a field that clients send with null."""
AbsentList = Annotated[list[Any], Field(max_length=0)] | None
"""Of a field that clients also send as an empty list."""
Text = Annotated[str, Field(max_length=512)]
Probability = Annotated[float, Field(ge=0, le=1)]
WHOLE = BeforeValidator(lambda value: int(value) if _is_whole(value) else value)
"""16.0 is an integer too, as in JSON Schema."""
Count = Annotated[int, Field(ge=1, le=2**31 - 1), WHOLE]
NotNegative = Annotated[int, Field(ge=0, le=2**31 - 1), WHOLE]
Off = Annotated[bool, AfterValidator(lambda value: _only_false(value)), Field(json_schema_extra={"const": False})]
"""False; `Literal[False]` would take 0 too."""
FormatName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
StopStrings = Annotated[list[Annotated[str, Field(min_length=1)]], Field(max_length=16)]

_NUMBERS = ("temperature", "top_p", "top_k", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
_OPTIONS = (*_NUMBERS, "regex", "choice", "grammar")
_LEAST_TOP_P = 1e-9
_SEEDS = 2**32 - 1
_LEAST_LOGPROB = -9999.0  # what OpenAI sends in the place of minus infinity, which JSON does not have


def _is_whole(value: object) -> bool:
    return isinstance(value, float) and value.is_integer()


def _only_false(value: bool) -> bool:
    if value:
        raise ValueError("it can only be false")
    return value


@dataclass(frozen=True, slots=True)
class Protocol:
    """A translation: from a request of its own, and from replies to an answer of its own."""

    request: type[Drawn]
    wanted: Callable[[Any], Wanted]
    """Raises Refusal."""
    answer: Callable[[Any, Replies, Sequence[Reply]], dict[str, Any]]
    """The whole answer, from replies that are at their end."""
    events: Callable[[Any, Replies], AsyncIterator[bytes]]
    """The answer as it comes."""
    failed: Callable[[Refusal], bytes]
    """The event that tells of a failure after the first event."""


class Named(Strict):
    """A request to a model."""

    model: str = Field(min_length=1, description="An id of GET /v1/models; without its form, the default form.")


class Drawn(Named):
    """A request for replies."""

    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(default=None, description="1 if not given.")
    top_p: Probability | None = None
    stream: bool | None = None

    def options(
        self,
        logprobs: int | None = None,
        stop: Sequence[str] | str | None = None,
        schema: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Fields of GenerationOptions. What is not given has the protocols' default: temperature 1."""
        given = {name: self.__dict__.get(name) for name in _OPTIONS} | {"logprobs": logprobs, "schema": schema}
        kept = {name: value for name, value in given.items() if value is not None}
        if self.top_p is not None:
            kept["top_p"] = max(self.top_p, _LEAST_TOP_P)
        if (seed := getattr(self, "seed", None)) is not None:
            kept["seed"] = seed % _SEEDS
        bias = getattr(self, "logit_bias", None) or {}
        kept["logit_bias"] = {int(token): value for token, value in bias.items()}
        return {"temperature": 1.0, **kept, "stop": (stop,) if isinstance(stop, str) else tuple(stop or ())}


class TextFormat(Strict):
    """Plain text."""

    type: Literal["text"]
    schema_: ClassVar[None] = None


class JsonFormat(Strict):
    """A JSON object."""

    type: Literal["json_object"]
    schema_: ClassVar[dict[str, Any]] = {"type": "object"}


class SchemaFormat(Strict):
    """JSON by a schema, which is always kept."""

    name: FormatName | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = Field(default=None, description="Changes nothing: the schema is always kept.")


class StreamOptions(Strict):
    """How a reply is sent as it comes."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = Field(default=None, description="Changes nothing.")


class OpenAiRequest(Drawn):
    """What OpenAI's requests share. Most of it says something about the client, and changes nothing."""

    seed: Annotated[int, Field(ge=-(2**63), lt=2**63), WHOLE] | None = None
    stream_options: StreamOptions | None = None
    user: Text | None = None
    metadata: dict[Text, Text] | None = None
    store: Off | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    prompt_cache_retention: Literal["in_memory", "in-memory", "24h"] | None = None
    prompt_cache_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class FromReply(Strict):
    """A part of an earlier reply, as it comes back."""

    provider_specific_fields: dict[str, Any] | None = Field(default=None, description="litellm's own; changes nothing.")


class TextPart(Strict):
    """A piece of a message's text."""

    type: Literal["text", "input_text", "output_text"]
    text: str
    cache_control: dict[str, Any] | None = Field(default=None, description="Changes nothing: prompts are cached.")
    prompt_cache_breakpoint: dict[str, Any] | None = Field(default=None, description="Changes nothing, too.")
    annotations: AbsentList = None
    citations: AbsentList = None
    logprobs: list[dict[str, Any]] | None = Field(default=None, description="Of an earlier reply; changes nothing.")


Content = str | list[TextPart]


def joined(content: Content) -> str:
    """The text of a message."""
    return content if isinstance(content, str) else "\n".join(part.text for part in content)


def new_id(prefix: str) -> str:
    """An id of a reply, such as `chatcmpl-...`."""
    return f"{prefix}{secrets.token_hex(12)}"


def event(value: Mapping[str, Any], name: str = "") -> bytes:
    """A server-sent event with an object of JSON."""
    named = f"event: {name}\n" if name else ""
    return f"{named}data: {json.dumps(value, ensure_ascii=False, separators=(',', ':'))}\n\n".encode()


def token_text(tokenizer: Tokenizer, token_id: int) -> tuple[str, list[int] | None]:
    """What a list of log-probabilities shows of a token: its text and bytes, a special token's name and None."""
    shown = tokenizer.token_bytes(token_id)
    if shown:
        return shown.decode("utf-8", "replace"), list(shown)
    return next((name for name, number in tokenizer.added_tokens.items() if number == token_id), ""), None


def logprob_entries(tokenizer: Tokenizer, tokens: Iterable[TokenLogprobs]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens as OpenAI's chats and responses list them."""

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        text, raw = token_text(tokenizer, token_id)
        return {"token": text, "logprob": finite(logprob), "bytes": raw}

    return [{**entry(one.token_id, one.logprob), "top_logprobs": [entry(*top) for top in one.top]} for one in tokens]


def finite(logprob: float) -> float:
    """A log-probability that JSON can hold."""
    return max(logprob, _LEAST_LOGPROB)
