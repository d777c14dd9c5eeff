"""OpenAI's `/v1/completions`: plain texts, continued without a chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, cast

from pydantic import Field

from localq.generation import TokenLogprobs
from localq.serve.choices import MOST_CHOICES, Choices, ChoicesRequest
from localq.serve.core import Piece, Prompt, Replies, Wanted
from localq.serve.protocols import WHOLE, Absent, Count, Protocol, finite, token_text
from localq.serve.refusals import Refusal
from localq.text.tokenizer import decode_tokens

_DEFAULT_MAX_TOKENS = 16  # the protocol's own

_Ids = Annotated[list[Annotated[int, Field(ge=0, lt=2**31), WHOLE]], Field(min_length=1)]
_Several = Field(min_length=1, max_length=MOST_CHOICES)


class CompletionRequest(ChoicesRequest):
    """A request for continuations of texts."""

    prompt: str | _Ids | Annotated[list[str], _Several] | Annotated[list[_Ids], _Several]
    max_tokens: Count | None = None
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    echo: bool | None = None
    best_of: Annotated[int, Field(ge=1, le=1), WHOLE] | None = None
    suffix: Absent = None

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """Each one apart."""
        is_one = isinstance(self.prompt, str) or isinstance(self.prompt[0], int)
        return cast(tuple[Prompt, ...], (self.prompt,) if is_one else tuple(self.prompt))


def _wanted(asked: CompletionRequest) -> Wanted:
    asked.check_stream_options()
    if asked.echo and asked.logprobs is not None:
        raise Refusal(400, "echo is not supported together with logprobs", "echo", "unsupported_parameter")
    return Wanted(
        model=asked.model,
        prompts=asked.prompts,
        raw=True,
        count=asked.n or 1,
        max_tokens=asked.max_tokens or _DEFAULT_MAX_TOKENS,
        options=asked.options(asked.logprobs, asked.stop),
    )


class _Completions(Choices):
    kind, chunk_kind, prefix = "text_completion", "text_completion", "cmpl-"

    def prompts(self, asked: CompletionRequest) -> int:
        return len(asked.prompts)

    def whole(self, asked: CompletionRequest, replies: Replies, index: int) -> dict[str, Any]:
        reply = replies.replies[index]
        echo = self.first(asked, replies, index).get("text", "")
        return {"text": echo + reply.text, **_logprobs(asked, replies, reply.logprobs)}

    def first(self, asked: CompletionRequest, replies: Replies, index: int) -> dict[str, Any]:
        if not asked.echo:
            return {}
        prompt = asked.prompts[index // (asked.n or 1)]
        ids = replies.replies[index].prompt
        return {"text": prompt if isinstance(prompt, str) else decode_tokens(replies.model.tokenizer, ids)}

    def part(self, asked: CompletionRequest, replies: Replies, piece: Piece) -> dict[str, Any]:
        earlier = replies.replies[piece.index].logprobs
        return {
            "text": piece.text,
            **_logprobs(asked, replies, piece.logprobs, earlier[: -len(piece.logprobs) or None]),
        }


def _logprobs(
    asked: CompletionRequest,
    replies: Replies,
    tokens: Sequence[TokenLogprobs],
    earlier: Sequence[TokenLogprobs] = (),
) -> dict[str, Any]:
    """`text_offset` counts characters from the beginning of the reply."""
    if asked.logprobs is None:
        return {}

    def text(token_id: int) -> str:
        return token_text(replies.model.tokenizer, token_id)[0]

    texts, offset = [text(one.token_id) for one in tokens], sum(len(text(one.token_id)) for one in earlier)
    fields = {
        "tokens": texts,
        "token_logprobs": [finite(one.logprob) for one in tokens],
        "top_logprobs": [{text(other): finite(logprob) for other, logprob in one.top} for one in tokens],
        "text_offset": [offset + sum(map(len, texts[:place])) for place in range(len(texts))],
    }
    return {"logprobs": fields}


_CHOICES = _Completions()
COMPLETIONS = Protocol(CompletionRequest, _wanted, _CHOICES.answer, _CHOICES.events, _CHOICES.failed)
