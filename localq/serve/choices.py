"""What OpenAI's chats and completions share: several choices, and a stream of chunks that ends with [DONE]."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Annotated, Any

from pydantic import Field

from localq.serve.core import Piece, Replies, Reply
from localq.serve.protocols import (
    WHOLE,
    NotNegative,
    OpenAiRequest,
    Probability,
    StopStrings,
    StreamOptions,
    event,
    new_id,
)
from localq.serve.refusals import Refusal
from localq.version import __version__

MOST_CHOICES = 128

_Penalty = Annotated[float, Field(ge=-2, le=2)]
_Form = Annotated[str, Field(min_length=1)]
_Token = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
_Biases = dict[_Token, Annotated[float, Field(ge=-100, le=100)]]


class ChoicesStreamOptions(StreamOptions):
    """With what is not OpenAI's."""

    include_timings: bool | None = Field(default=None, description="Rates of each choice, beside the usage.")


class ChoicesRequest(OpenAiRequest):
    """A request for replies. The last six fields are not OpenAI's."""

    stream_options: ChoicesStreamOptions | None = None
    presence_penalty: _Penalty | None = None
    frequency_penalty: _Penalty | None = None
    logit_bias: Annotated[_Biases, Field(json_schema_extra={"additionalProperties": False})] | None = None
    stop: Annotated[str, Field(min_length=1)] | StopStrings | None = None
    n: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    top_k: NotNegative | None = None
    min_p: Probability | None = None
    repeat_penalty: Annotated[float, Field(ge=1e-3, le=1e6)] | None = None
    regex: _Form | None = Field(default=None, description="The whole reply matches this expression.")
    choice: Annotated[list[_Form], Field(min_length=1)] | None = Field(default=None, description="The reply is one.")
    grammar: _Form | None = Field(default=None, description="The reply follows this grammar in Lark's notation.")

    @property
    def with_usage(self) -> bool:
        """Whether the last chunk counts tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def with_timings(self) -> bool:
        """Whether the last chunk has rates too."""
        return bool(self.stream_options and self.stream_options.include_timings)

    def check_stream_options(self) -> None:
        """Raise Refusal for options of a stream that is not wanted."""
        if self.stream_options is not None and not self.stream:
            raise Refusal(400, "stream_options needs stream: true", "stream_options", "invalid_value")
        if self.with_timings and not self.with_usage:
            raise Refusal(
                400, "stream_options: include_timings needs include_usage: true", "stream_options", "invalid_value"
            )


class Choices:
    """One of the two protocols."""

    kind = chunk_kind = prefix = ""

    def prompts(self, asked: Any) -> int:
        """How many there are."""
        return 1

    def whole(self, asked: Any, replies: Replies, index: int) -> dict[str, Any]:
        """What a choice says, and its log-probabilities."""
        raise NotImplementedError

    def first(self, asked: Any, replies: Replies, index: int) -> dict[str, Any]:
        """What the first chunk of a choice says; nothing where it is empty."""
        raise NotImplementedError

    def part(self, asked: Any, replies: Replies, piece: Piece) -> dict[str, Any]:
        """What a chunk says, and its log-probabilities."""
        raise NotImplementedError

    def answer(self, asked: Any, replies: Replies, whole: Sequence[Reply]) -> dict[str, Any]:
        """See Protocol."""
        choices = [
            {"index": index, "logprobs": None, **self.whole(asked, replies, index), "finish_reason": one.finish_reason}
            for index, one in enumerate(whole)
        ]
        return {**self._head(replies, self.kind), "choices": choices, "usage": self._usage(asked, replies)}

    async def events(self, asked: Any, replies: Replies) -> AsyncIterator[bytes]:
        """See Protocol."""
        with_usage = asked.with_usage
        head = self._head(replies, self.chunk_kind)

        def chunk(index: int, said: dict[str, Any], reason: str | None = None) -> bytes:
            choice = {"index": index, "logprobs": None, **said, "finish_reason": reason}
            return event({**head, "choices": [choice], **({"usage": None} if with_usage else {})})

        for index in range(len(replies.replies)):
            if said := self.first(asked, replies, index):
                yield chunk(index, said)
        async for piece in replies.pieces():
            if piece.text or piece.logprobs:
                yield chunk(piece.index, self.part(asked, replies, replace(piece, calls=())))
            for one in piece.calls:
                yield chunk(piece.index, self.part(asked, replies, Piece(piece.index, "", calls=(one,))))
            if piece.finish_reason:
                nothing = Piece(piece.index, "")
                yield chunk(piece.index, self.part(asked, replies, nothing) | {"logprobs": None}, piece.finish_reason)
        if with_usage:
            timings = {"timings": [_timings(reply) for reply in replies.replies]} if asked.with_timings else {}
            yield event({**head, "choices": [], "usage": self._usage(asked, replies), **timings})
        yield b"data: [DONE]\n\n"

    def failed(self, refusal: Refusal) -> bytes:
        """See Protocol."""
        return event(refusal.body(""))

    def _head(self, replies: Replies, kind: str) -> dict[str, Any]:
        return {
            "id": new_id(self.prefix),
            "object": kind,
            "created": int(time.time()),
            "model": replies.opened.offer.id,
            "system_fingerprint": f"localq-{__version__}",
        }

    def _usage(self, asked: Any, replies: Replies) -> dict[str, Any]:
        prompt, cached, generated = replies.usage(self.prompts(asked))
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        }


def _timings(reply: Reply) -> dict[str, float | None]:
    """As GenerationStatistics has them; None where there is no rate."""
    names = ("time_to_first_token_seconds", "prompt_tokens_per_second", "generated_tokens_per_second")
    return {name: getattr(reply.statistics, name, None) for name in names}
