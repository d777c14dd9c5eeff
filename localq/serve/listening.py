"""The sockets, the connections and the signals: uvicorn, with limits for slow clients and for many of them."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from localq.errors import LocalqError, OptionError
from localq.serve.door import MOST_HEADER_BYTES, App
from localq.serve.refusals import Refusal, no_room

HEADER_SECONDS = 10.0
"""Until the headers of a request must have come."""
READING_SECONDS = 30.0
"""How long a client may leave what was sent unread."""
FINISHING_SECONDS = 30
"""How long running requests may take after SIGTERM or Ctrl-C."""

MOST_CONNECTIONS = 512
"""Open at a time, where the process may have three times as many files. Beyond, the one that is idle longest goes."""

_BACKLOG = 100  # connections that the system holds, and that are accepted at a time
_SPARE_CONNECTIONS = 32  # beyond the most: for errors, and for what /health answers
_LINGERING_SECONDS = 1.0
_MOST_PORT = 65535
_FRAMING = {
    408: "the headers did not come in time",
    431: f"the headers are larger than {MOST_HEADER_BYTES:,} bytes",
}


class Connection(H11Protocol):
    """One connection: slow clients are cut, idle ones make room, and what is not HTTP gets an error in JSON."""

    _headers_due: asyncio.TimerHandle | None = None
    _reading_due: asyncio.TimerHandle | None = None
    _refused = False

    def connection_made(self, transport: Any) -> None:
        """See asyncio."""
        super().connection_made(transport)
        self._idle_since = self.loop.time()
        if self._is_too_many():
            self._make_room()
        self._headers_due = self.loop.call_later(HEADER_SECONDS, self._refuse, 408)

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        if self._refused:
            return
        super().data_received(data)
        if self.conn.their_state is h11.DONE and len(self.conn.trailing_data[0]) <= MOST_HEADER_BYTES:
            self.flow.resume_reading()  # a little more may come while the answer is made: else its end would go unseen
        if self.conn.their_state is not h11.IDLE:  # the headers are there
            self._stop("_headers_due")
        elif self._headers_due is None and self.timeout_keep_alive_task is None and not self.transport.is_closing():
            self._headers_due = self.loop.call_later(HEADER_SECONDS, self._refuse, 408)

    def _make_room(self) -> None:
        """Close the connection that is idle longest; where all are busy, this one is refused."""
        others = [one for one in self.connections if isinstance(one, Connection) and one is not self and one._is_idle()]
        if others:
            oldest = min(others, key=lambda one: (one.timeout_keep_alive_task is None, one._idle_since))
            oldest.transport.close() if oldest.timeout_keep_alive_task else oldest._refuse(503)
        elif self._is_too_many(_SPARE_CONNECTIONS):
            self._refuse(503)
        else:
            self.app = self._answer_where_there_is_room

    def _is_too_many(self, spare: int = 0) -> bool:
        return len(self.connections) > most_connections() + spare

    def _is_idle(self) -> bool:
        """Whether no whole request is there: it is between two requests, or the next one has not come to its end."""
        is_between = self.cycle is None or self.cycle.response_complete
        is_open = not self._refused and not self.transport.is_closing()
        return is_open and (is_between or self.conn.their_state is h11.SEND_BODY)

    async def _answer_where_there_is_room(self, scope: Any, receive: Any, send: Any) -> None:
        await self.config.loaded_app({**scope, "localq.is_full": self._is_too_many()}, receive, send)

    def on_response_complete(self) -> None:
        """See uvicorn."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop("_headers_due")
        self._stop("_reading_due")
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """See asyncio: the client reads too slowly."""
        super().pause_writing()
        self._reading_due = self.loop.call_later(READING_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio."""
        self._stop("_reading_due")
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        too_long = self.conn.their_state is h11.ERROR and len(self.conn.trailing_data[0]) > MOST_HEADER_BYTES
        self._refuse(431 if too_long else 400)

    def _stop(self, name: str) -> None:
        timer = getattr(self, name)
        if timer is not None:
            timer.cancel()
            setattr(self, name, None)

    def _refuse(self, status: int) -> None:
        self._refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            said = _FRAMING.get(status, "this is not a valid HTTP request")
            is_full = status == HTTPStatus.SERVICE_UNAVAILABLE
            refusal = no_room() if is_full else Refusal(status, said, headers={"Connection": "close"})
            body = json.dumps(refusal.body("")).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                *refusal.headers.items(),
            ]
            reason = HTTPStatus(status).phrase.encode()
            for event in (
                h11.Response(status_code=status, headers=headers, reason=reason),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
            # With bytes left unread, closing at once could take the answer back from the client.
            self.transport.write_eof()
            lingering = 0 if self._is_too_many(_SPARE_CONNECTIONS) else _LINGERING_SECONDS
            self.loop.call_later(lingering, self.transport.close)
        else:
            self.transport.close()


def most_connections() -> int:
    """How many connections may be open."""
    try:
        import resource
    except ImportError:  # Windows, which has no such limit
        return MOST_CONNECTIONS
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return MOST_CONNECTIONS if files == resource.RLIM_INFINITY else min(MOST_CONNECTIONS, files // 3)


def bind(host: str, port: int) -> socket.socket:
    """A socket of an address, not listening yet: clients can't connect before the models are ready.

    Raises OptionError for a number that no port has, LocalqError for an address that is not of this machine, or that is
    in use.
    """
    if not 0 <= port <= _MOST_PORT:  # the system would take the rest of a division
        raise OptionError(f"--port is {port}; ports go from 0 to {_MOST_PORT}")
    try:
        places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = places[0]
        bound = socket.socket(family, kind, protocol)  # asyncio sends at once only where the protocol says TCP
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        hint = f"--host must be an address of this machine, which {host} is not; 127.0.0.1 is one"
        if error.errno == errno.EADDRINUSE:
            hint = "another program uses the port: give another one with --port, or 0 for any that is free"
        elif error.errno == errno.EACCES:
            hint = "only an administrator may use this port: give one above 1023 with --port"
        raise LocalqError(f"can't listen at {host}:{port}: {error.strerror}", hint) from error
    return bound


class _Server(uvicorn.Server):
    """Says why it does not end at once."""

    def __init__(self, config: uvicorn.Config, log: Callable[[str], None]) -> None:
        super().__init__(config)
        self._log = log

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self.server_state.tasks:
            self._log(f"running replies may take {FINISHING_SECONDS:g} seconds more; Ctrl-C ends them at once")
        await super().shutdown(sockets)


def uvicorn_of(app: App, log: Callable[[str], None]) -> uvicorn.Server:
    """uvicorn with the limits of this module; `log` writes a line."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_level="critical",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=FINISHING_SECONDS,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=MOST_HEADER_BYTES,
    )
    return _Server(config, log)


def run(app: App, bound: socket.socket, log: Callable[[str], None]) -> None:
    """Serve until SIGTERM, which returns, or Ctrl-C, which raises KeyboardInterrupt; running requests may finish."""
    # uvicorn repeats the signal that ended it, and localq's own handler raises then.
    try:
        uvicorn_of(app, log).run(sockets=[bound])
    except SystemExit:
        return
