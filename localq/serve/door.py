"""Who may come in, and with how much: the outermost layer of the server.

Against web pages that a browser shows: a foreign Host (a name that was rebound to this machine) and a foreign Origin
are refused. Against everybody else, where the server listens to more than this machine: the key.
"""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import socket
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from localq.errors import LocalqError
from localq.serve.intake import MOST_BODY_BYTES, ClientGone, Receive, read_body, too_large
from localq.serve.refusals import Refusal, failure, no_room
from localq.serve.tally import CLIENT_GONE, Record, Tally

MOST_HEADER_BYTES = 16_384
OPEN_PATHS = frozenset({"/", "/health"})
"""They need no key, and tell nothing."""

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::\d{1,5})?", re.IGNORECASE)

Send = Callable[[Any], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Access:
    """Who may come in."""

    host: str
    """The address that the server listens at."""
    key: str | None = None
    origins: frozenset[str] = frozenset()
    """Web pages of other places that may use the server."""

    @property
    def is_local(self) -> bool:
        """Whether only this machine can connect."""
        return self.host == "localhost" or (_is_address(self.host) and ipaddress.ip_address(self.host).is_loopback)

    def allows_host(self, header: str) -> bool:
        """Whether a Host header names this server: by an address, which no DNS server can rebind, or its own name."""
        match = _HOST.fullmatch(header)
        if match is None:
            return False
        name = match[1].strip("[]").lower()
        if _is_address(name):
            return not self.is_local or ipaddress.ip_address(name).is_loopback
        own = socket.gethostname().lower().partition(".")[0]
        return name == "localhost" or (
            not self.is_local and (name == self.host.lower() or name.partition(".")[0] == own)
        )

    def allows_origin(self, origin: str, host: str) -> bool:
        """Whether a page may send requests: the server's own, or one that was named."""
        return origin in self.origins or origin.lower() in {f"http://{host.lower()}", f"https://{host.lower()}"}

    def allows_key(self, headers: Mapping[str, str]) -> bool:
        """Whether the key is right; in constant time. OpenAI's clients and Anthropic's send it differently."""
        if self.key is None:
            return True
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        return hmac.compare_digest(given.encode("latin-1", "replace"), self.key.encode("latin-1", "replace"))


def require_key(access: Access) -> None:
    """Raise LocalqError where others than this machine could connect without a key, or a value is useless."""
    if not access.is_local and not access.key:
        hint = "give --api-key (or LOCALQ_API_KEY), or leave --host out: then only this machine can connect"
        raise LocalqError(f"{access.host} can be reached from other machines, and there is no key", hint)
    if access.key is not None and not (access.key.isascii() and access.key.isprintable() and " " not in access.key):
        raise LocalqError("the API key must be ASCII without spaces")
    for origin in sorted(access.origins):
        if not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/*\s]+", origin):
            raise LocalqError(
                f"--cors is {origin!r}; expected one origin", "such as https://example.org, without a path"
            )


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


class Door:
    """Checks each request, reads its body, and writes its line of the log."""

    def __init__(self, app: App, access: Access, tally: Tally) -> None:
        self._app, self._access, self._tally = app, access, tally

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        record = Record(f"req_{secrets.token_hex(8)}", scope["method"], scope["path"], _client(scope, headers))
        # Anthropic's clients read the second one.
        extra = {"x-request-id": record.id, "request-id": record.id}
        extra |= {"vary": "Origin", "x-content-type-options": "nosniff"}
        if (origin := headers.get("origin")) in self._access.origins:
            extra |= {"access-control-allow-origin": str(origin), "access-control-expose-headers": "x-request-id"}

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                named = [(name.encode(), value.encode()) for name, value in extra.items()]
                message = {**message, "headers": [*message["headers"], *named]}
            await send(message)

        try:
            try:
                app = await self._admitted(scope, headers, receive)
                # With `app`, Starlette raises what it would else answer in plain text.
                await app({**scope, "app": self, "localq.record": record}, receive, answer)
            except Refusal as refused:
                await _error(refused, scope)(scope, receive, answer)
            except HTTPException as missing:
                await _error(_no_such_path(missing), scope)(scope, receive, answer)
        except ClientGone:
            record.status = CLIENT_GONE
        except Exception as error:  # of the server's own: the client learns nothing of it
            record.failure = f"{type(error).__name__}: {error}"
            if record.status != CLIENT_GONE:
                raise  # the answer has begun: the connection is cut
            await _error(failure(), scope)(scope, receive, answer)
        finally:
            self._tally.finish(record)

    async def _admitted(self, scope: Any, headers: Mapping[str, str], receive: Receive) -> App:
        """What answers the request, with its body read. Raises Refusal, or ClientGone."""
        refusal = self._refusal(scope, headers)
        is_preflight = scope["method"] == "OPTIONS" and "origin" in headers
        if refusal is None and not is_preflight and not self._has_key(scope, headers):
            refusal = Refusal(
                401, "the API key is missing or wrong", None, "invalid_api_key", {"WWW-Authenticate": "Bearer"}
            )
        scope["localq.body"] = await self._body(headers, receive, keep=refusal is None)
        if refusal is not None:
            raise refusal
        return _preflight(headers) if is_preflight else self._app

    def _refusal(self, scope: Any, headers: Mapping[str, str]) -> Refusal | None:
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER_BYTES:
            return Refusal(431, f"the headers are larger than {MOST_HEADER_BYTES:,} bytes")
        if scope.get("localq.is_full") and scope["path"] != "/health":
            return no_room()
        host, origin = headers.get("host", ""), headers.get("origin")
        if sum(name == b"host" for name, _ in scope["headers"]) != 1 or not self._access.allows_host(host):
            return Refusal(403, "the Host header does not name this server", code="foreign_host")
        if origin is not None and not self._access.allows_origin(origin, host):
            return Refusal(403, "web pages of this origin may not use this server", code="foreign_origin")
        return None

    def _has_key(self, scope: Any, headers: Mapping[str, str]) -> bool:
        return scope["path"] in OPEN_PATHS or self._access.allows_key(headers)

    async def _body(self, headers: Mapping[str, str], receive: Receive, keep: bool) -> bytes:
        length = headers.get("content-length", "0")
        if "expect" in headers and (not keep or int(length) > MOST_BODY_BYTES):  # h11 lets only digits pass
            if keep:
                raise too_large(close=True)
            return b""  # the client waits for a word before it sends the body
        return await read_body(receive, keep)


def _client(scope: Any, headers: Mapping[str, str]) -> str:
    """Who shares the queue as one: a program at an address. All programs of a laptop have the same address."""
    return f"{(scope.get('client') or ('',))[0]} {headers.get('user-agent', '')} "


def _error(refusal: Refusal, scope: Any) -> Response:
    return JSONResponse(refusal.body(scope["path"]), refusal.status, headers=dict(refusal.headers))


def _no_such_path(error: HTTPException) -> Refusal:
    message = "this method is not possible here" if error.status_code == 405 else "there is no such path"
    hint = "GET /openapi.json describes them all"
    return Refusal(error.status_code, f"{message}; {hint}", headers=error.headers or {})


def _preflight(headers: Mapping[str, str]) -> Response:
    allowed = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": headers.get("access-control-request-headers", "authorization, content-type"),
        "access-control-max-age": "600",
    }
    return Response(status_code=204, headers=allowed)


def origins(texts: Iterable[str]) -> frozenset[str]:
    """Those of the command line, as browsers write them."""
    return frozenset(text.rstrip("/").lower() for text in texts)
