"""From the bytes of a request to a checked one: limits, JSON, and the fields that a protocol has.

What localq does not have is refused by name: a field that is not listed, and a value that would change something.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from localq.serve.refusals import Refusal
from localq.tables import format_bytes

MOST_BODY_BYTES = 10_000_000
BODY_SECONDS = 10.0
"""Until the whole body must have come."""
MOST_DEPTH = 64
"""Of arrays and objects within each other."""

_MOST_DISCARDED_BYTES = 8 * MOST_BODY_BYTES
_SHOWN_CHARACTERS = 80

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGone(Exception):
    """The client closed the connection."""


class Strict(BaseModel):
    """An object of a request: no other fields, no converted types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


_Asked = TypeVar("_Asked", bound=Strict)


async def read_body(receive: Receive, keep: bool = True) -> bytes:
    """The body. One that is too long, or not kept, is read nevertheless: else the client might not see the answer.

    Raises Refusal (408, 413), or ClientGone.
    """
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            more = True
            while more and size <= _MOST_DISCARDED_BYTES:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece, more = message.get("body", b""), message.get("more_body", False)
                size += len(piece)
                if keep and size <= MOST_BODY_BYTES:
                    pieces.append(piece)
    except TimeoutError:
        message_text = f"the body did not come within {BODY_SECONDS:g} seconds"
        raise Refusal(408, message_text, headers={"Connection": "close"}) from None
    if size > MOST_BODY_BYTES:
        raise too_large(close=more)
    return b"".join(pieces)


def too_large(close: bool) -> Refusal:
    """The refusal of a long body; `close` where it was not read to its end."""
    headers = {"Connection": "close"} if close else {}
    return Refusal(413, f"the body is larger than {format_bytes(MOST_BODY_BYTES)}", headers=headers)


def parse_json(body: bytes) -> Any:
    """The value of a body. Raises Refusal (400) for anything but JSON in UTF-8 that is not nested too deeply."""
    try:
        value = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:  # UnicodeDecodeError, JSONDecodeError, and a number with thousands of digits
        reason = str(error).partition(";")[0]
        raise Refusal(400, f"the body is not JSON in UTF-8: {reason}", code="invalid_json") from None
    level, depth = [value], 0
    while level:
        if depth > MOST_DEPTH:
            raise _too_deep()
        lists = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, dict | list))
        level, depth = [child for children in lists for child in children], depth + 1
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number of JSON")


def _too_deep() -> Refusal:
    return Refusal(400, f"arrays and objects are nested more than {MOST_DEPTH} deep", code="invalid_json")


def check(kind: type[_Asked], value: Any) -> _Asked:
    """The request as a protocol has it. Raises Refusal (400) that names the field."""
    if not isinstance(value, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        # Of the errors for all members of a union, the one that got furthest is about what was meant.
        found = error.errors(include_url=False, include_context=False)
        worst = max(found, key=lambda one: len(_field(value, one["loc"], one["type"])))
        raise _field_refusal(value, worst["loc"], worst["type"], worst["msg"]) from None


def _field(value: Any, loc: tuple[int | str, ...], kind: str) -> str:
    """Such as `messages[0].role`; pydantic's names for the members of a union are left out."""
    path = ""
    for place, part in enumerate(loc):
        is_there = part in value if isinstance(value, dict) else isinstance(value, list) and isinstance(part, int)
        if not (is_there or (kind == "missing" and place == len(loc) - 1)):
            continue
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        if is_there:
            value = value[part]
    return path


def _field_refusal(value: Any, loc: tuple[int | str, ...], kind: str, reason: str) -> Refusal:
    name = _field(value, loc, kind)[: 2 * _SHOWN_CHARACTERS]
    if kind == "extra_forbidden":
        return Refusal(400, f"{name} is not supported by localq", name, "unsupported_parameter")
    if kind == "missing":
        return Refusal(400, f"{name} is missing", name, "missing_required_parameter")
    for part in loc:
        has = isinstance(value, dict) and part in value
        value = value[part] if has or (isinstance(value, list) and isinstance(part, int)) else value
    shown = json.dumps(value)
    shown = shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."
    return Refusal(400, f"{name} is {shown}, which localq does not support: {reason}", name, "invalid_value")
