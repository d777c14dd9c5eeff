"""What the server answers where it can't do what was asked: a status, and an error in the form of the protocol.

No traceback and no local path leaves the server: the reasons of its own failures go to its log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localq.errors import ChatTemplateError, LocalqError, OptionError, PromptTooLongError

RETRY_SECONDS = 2
"""What `Retry-After` says where a later attempt may succeed."""

_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


@dataclass(eq=False)
class Refusal(Exception):
    """An error for the client."""

    status: int
    message: str
    param: str | None = None
    """The field of the request that is wrong."""
    code: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def body(self, path: str) -> dict[str, Any]:
        """The error as OpenAI sends it, and for the paths of `/v1/messages` as Anthropic does."""
        if path.startswith("/v1/messages"):
            kind = _ANTHROPIC_TYPES.get(self.status, "api_error" if self.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {"type": kind, "message": self.message}}
        kind = _OPENAI_TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def try_later(status: int, message: str, code: str) -> Refusal:
    """A refusal that may be over soon: 429 or 503 with Retry-After."""
    return Refusal(status, message, code=code, headers={"Retry-After": str(RETRY_SECONDS)})


def no_room() -> Refusal:
    """Where too many connections are open."""
    refusal = try_later(503, "too many connections are open", "too_many_connections")
    refusal.headers = {**refusal.headers, "Connection": "close"}
    return refusal


def failure() -> Refusal:
    """The server's own fault; the reason is in its log."""
    return Refusal(500, "the server failed; its log says why", code="internal_error")


def as_refusal(error: LocalqError) -> Refusal:
    """What a client may know of an error: all of its own mistakes, and nothing of the server's."""
    if isinstance(error, PromptTooLongError):
        return Refusal(400, error.message, code="context_length_exceeded")
    if isinstance(error, ChatTemplateError):
        return Refusal(400, error.message, code="invalid_messages")
    if isinstance(error, OptionError):
        return Refusal(400, error.message, code="invalid_value")
    return failure()
