"""Who gets in: Host, Origin, method and key in every combination; limits; what is not HTTP."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from localq.errors import LocalqError
from localq.serve import intake, listening
from localq.serve.door import Access, Door, require_key
from localq.serve.tally import Tally
from tests.serve.conftest import GGUF, Server, running

PAGE = "https://page.example"
LOCAL, OPEN = Access("127.0.0.1", "secret", frozenset({PAGE})), Access("0.0.0.0", "secret", frozenset({PAGE}))

# Whether the Host header names a server that listens at 127.0.0.1, and one at 0.0.0.0.
HOSTS = {
    "127.0.0.1:8080": (True, True),
    "localhost": (True, True),
    "[::1]:8080": (True, True),
    "127.8.9.1": (True, True),
    "192.168.1.7:8080": (False, True),
    "evil.example": (False, False),
    "localhost.evil.example": (False, False),
    "127.0.0.1.nip.io:8080": (False, False),
    "127.0.0.1@evil.example": (False, False),
    "": (False, False),
}
ORIGINS = {
    None: True,
    "own": True,
    PAGE: True,
    "https://evil.example": False,
    "null": False,
    "http://localhost:1": False,
}
KEYS = {"": False, "Bearer secret": True, "bearer  secret": True, "Bearer secre": False, "Basic secret": False}
CELLS = list(itertools.product((LOCAL, OPEN), HOSTS, ORIGINS, ("GET", "POST", "OPTIONS"), KEYS))


async def fake_app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"in"})


def through(access: Access, method: str, headers: list[tuple[str, str]], path: str = "/v1/models") -> tuple[int, Any]:
    """Status and headers of the answer."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "method": method, "path": path, "headers": raw}
    asyncio.run(Door(fake_app, access, Tally(lambda line: None, frozenset()))(scope, receive, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_every_combination_of_host_origin_method_and_key() -> None:
    assert len(CELLS) >= 200
    for access, host, origin, method, key in CELLS:
        given = f"http://{host}" if origin == "own" else origin
        headers = [("host", host), *([("origin", given)] if given else []), *([("authorization", key)] if key else [])]
        status, answered = through(access, method, headers)
        cell = (access.host, host, origin, method, key)
        if not HOSTS[host][access is OPEN] or not ORIGINS[origin]:
            assert status == 403, cell
        elif method == "OPTIONS" and origin is not None:
            assert status == 204, cell
        else:
            assert status == (200 if KEYS[key] else 401), cell
        allowed = answered.get("access-control-allow-origin")
        assert allowed == (PAGE if origin == PAGE else None), cell
        assert answered["vary"] == "Origin"


def test_the_key_may_be_sent_as_anthropics_clients_do() -> None:
    host = ("host", "localhost")
    assert through(LOCAL, "GET", [host, ("x-api-key", "secret")])[0] == 200
    assert through(LOCAL, "GET", [host, ("x-api-key", "s\xe9cret")])[0] == 401
    assert through(LOCAL, "GET", [host], "/health")[0] == 200
    assert through(LOCAL, "GET", [host, host])[0] == 403


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.2", "machine.local", ""])
def test_another_address_than_loopback_needs_a_key(host: str) -> None:
    with pytest.raises(LocalqError, match="no key"):
        require_key(Access(host))
    require_key(Access(host, "key"))


@pytest.mark.parametrize("origin", ["*", "example.org", "https://*.example.org", "https://a/b", "null"])
def test_only_origins_by_name_can_be_let_in(origin: str) -> None:
    with pytest.raises(LocalqError, match="--cors"):
        require_key(Access("127.0.0.1", origins=frozenset({origin})))


@pytest.fixture(scope="module")
def hasty(models_dir: Path) -> Iterator[Server]:
    """A server that waits for nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(listening, "HEADER_SECONDS", 0.4)
        patch.setattr(intake, "BODY_SECONDS", 0.4)
        with running(models_dir, GGUF) as started:
            yield started


def raw(server: Server, *pieces: bytes, pause: float = 0.0) -> bytes:
    """What the server answers to bytes, until it closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        for piece in pieces:
            connection.sendall(piece)
            time.sleep(pause)
        received = b""
        while piece := connection.recv(65536):
            received += piece
        return received


def status_and_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]["message"]


HOST = b"Host: localhost\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\n" + HOST + b"Connection: close\r\n"
BAD = {
    "no http": (b"hello\r\n\r\n", 400),
    "zero bytes": (b"\0\0\0\0\r\n\r\n", 400),
    "tls": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "no host": (b"GET /health HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET /health HTTP/1.1\r\n" + HOST + HOST + b"\r\n", 400),
    "http 1.0 without host": (b"GET /health HTTP/1.0\r\n\r\n", 403),
    "space before colon": (b"GET /health HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
    "folded header": (b"GET /health HTTP/1.1\r\nHost: localhost\r\n\0x: y\r\n\r\n", 400),
    "negative length": (POST + b"Content-Length: -1\r\n\r\n", 400),
    "two lengths": (POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    "length in words": (POST + b"Content-Length: ten\r\n\r\n", 400),
    "huge length": (POST + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n", 400),
    "bad chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    "gzip": (POST + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "long header": (
        b"GET /health HTTP/1.1\r\n" + HOST + b"Connection: close\r\nx: " + b"y" * 20_000 + b"\r\n\r\n",
        431,
    ),
    "endless header": (b"GET /health HTTP/1.1\r\n" + HOST + b"x: " + b"y" * 200_000, 431),
    "unfinished headers": (b"GET /health HTTP/1.1\r\nHost: loc", 408),
    "silence": (b"", 408),
    "unfinished body": (POST + b"Content-Length: 100\r\n\r\n{", 408),
    "unfinished chunk": (POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", 408),
    "empty body": (POST + b"Content-Length: 0\r\n\r\n", 400),
    "not utf-8": (POST + b'Content-Length: 12\r\n\r\n{"model":"\xff"}'[:-1], 400),
    "utf-16": (POST + b"Content-Length: 4\r\n\r\n{\0}\0", 400),
    "form": (POST + b"Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", 415),
    "unknown path": (b"GET /v2 HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 404),
    "wrong method": (b"GET /v1/completions HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 405),
    "odd method": (b"BREW /v1/models HTTP/1.1\r\n" + HOST + b"Connection: close\r\n\r\n", 405),
    "expect a large body": (POST + b"Expect: 100-continue\r\nContent-Length: 20000000\r\n\r\n", 413),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_client_should_send_gets_an_error_in_json(hasty: Server, name: str) -> None:
    request, expected = BAD[name]
    status, message = status_and_error(raw(hasty, request))
    assert status == expected
    assert message and "/" not in message.replace("GET /openapi.json", "").replace("application/json", "")


def test_a_slow_client_is_cut_even_if_it_never_stops(hasty: Server) -> None:
    started = time.monotonic()
    with suppress(OSError):  # cut while it was sending
        raw(hasty, b"GET /health HTTP/1.1\r\n", *[b"x: y\r\n"] * 40, pause=0.1)
    assert time.monotonic() - started < 3


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused_after_it_was_read(hasty: Server, chunked: bool) -> None:
    size = intake.MOST_BODY_BYTES + 1
    if chunked:
        piece = b"%x\r\n" % 1_000_000 + b" " * 1_000_000 + b"\r\n"
        answer = raw(hasty, POST + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 11, b"0\r\n\r\n")
    else:
        answer = raw(hasty, POST + b"Content-Length: %d\r\n\r\n" % size, b" " * size)
    assert status_and_error(answer)[0] == 413


@pytest.mark.parametrize("body", [b"[" * 100, b'{"a":' * 100, b"[" * 100_000, b"[" * 70 + b"]" * 70, b"1" * 9999])
def test_deep_and_endless_json_is_refused(server: Server, body: bytes) -> None:
    status, answer = server.ask("/v1/completions", body)
    assert (status, answer["error"]["type"]) == (400, "invalid_request_error")


@pytest.mark.parametrize("text", ["NaN", "Infinity", "1e999", '"\\ud800"', "[]", "null", '{"model": "\\ud800"}'])
def test_values_that_json_can_not_hold_are_refused(server: Server, text: str) -> None:
    body = text.encode() if text[0] in '[{n"' else f'{{"model":"{GGUF}","prompt":"a","temperature":{text}}}'.encode()
    assert server.ask("/v1/completions", body)[0] == 400


IDLE = {
    "silent": b"",
    "half of a header": b"GET /v1/models HTTP/1.1\r\nHost: loc",
    "half of a body": POST + b"Content-Length: 100\r\n\r\n{",
}


@pytest.mark.parametrize("name", IDLE)
def test_idle_connections_make_room_for_new_ones(server: Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(listening, "MOST_CONNECTIONS", 5)
    health = b"GET /health HTTP/1.1\r\n" + HOST + b"\r\n"
    with ExitStack() as stack:

        def connect(data: bytes) -> socket.socket:
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=10))
            one.sendall(data)
            return one

        kept = connect(health)
        got = b""
        while b'"ok"}' not in got:
            got += kept.recv(65536)
        idle = [connect(IDLE[name]) for _ in range(20)]
        assert server.ask("/health")[0] == 200
        assert kept.recv(65536) == b""  # closed first, and without an error: no request was lost
        for one in idle[:15]:
            head, _, body = b"".join(iter(lambda one=one: one.recv(65536), b"")).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert head.lower().count(b"connection: close") == 1 and b"\r\nretry-after: " in head.lower()
            assert json.loads(body)["error"]["code"] == "too_many_connections"
        idle[-1].setblocking(False)
        with pytest.raises(BlockingIOError):
            idle[-1].recv(1)


def test_where_all_connections_are_busy_only_health_is_answered(
    models_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = {"model": GGUF, "prompt": "a", "max_tokens": 1, "stream": True}
    body = json.dumps(wanted).encode()
    with running(models_dir, GGUF) as server, ExitStack() as stack:
        assert server.ask("/v1/completions", wanted)[0] == 200
        monkeypatch.setattr(listening, "MOST_CONNECTIONS", 2)
        with server.models.opened()[0].model.turn():  # so the replies do not begin
            asked = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(2)]
            for one in asked:
                one.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
                assert b"200 OK" in one.recv(65536)
            status, answer = server.ask("/v1/models")
            assert (status, answer["error"]["code"]) == (503, "too_many_connections")
            assert server.ask("/health")[0] == 200
            monkeypatch.setattr(listening, "_SPARE_CONNECTIONS", 0)
            assert server.ask("/health")[0] == 503
        for one in asked:
            while one.recv(65536):
                pass
        assert server.ask("/v1/models")[0] == 200


def test_several_requests_may_come_at_once_on_one_connection(server: Server) -> None:
    one = b"GET /health HTTP/1.1\r\n" + HOST
    answer = raw(server, (one + b"\r\n") * 5 + one + b"Connection: close\r\n\r\n")
    assert answer.count(b'{"status":"ok"}') == 6
