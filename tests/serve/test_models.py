"""Models opened on demand and closed when idle, clients that go away, a queue with an end."""

from __future__ import annotations

import http.client
import json
import re
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import localq
from localq import memory
from localq.errors import NotEnoughMemoryError
from localq.options import LoadOptions
from localq.serve import core, listening
from tests.serve.conftest import GGUF, MLX, PHI, Server, events_of, running
from tests.serve.fuzz import go_away

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "What is the capital of France?"}]}


def endless(model: localq.Model, name: str) -> dict[str, Any]:
    """A request whose reply lasts until the context is full: no end token is allowed."""
    return {**BODY, "model": name, "logit_bias": {str(token): -100 for token in model.end_tokens}}


def opened(server: Server) -> set[str]:
    return {one.offer.id for one in server.models.opened()}


def wait_until(holds: Any) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_model_is_opened_when_it_is_named_and_closed_when_it_is_idle(models_dir: Path) -> None:
    localq.convert("toy-llama", ["gguf-q4_k_m"], models_dir=models_dir)
    with running(models_dir, keep_alive=0.5) as server:
        assert opened(server) == set()
        assert server.ask(CHAT, {**BODY, "model": "toy-llama"})[0] == 200
        assert opened(server) == {GGUF}
        wait_until(lambda: opened(server) == set())
        assert server.ask(CHAT, {**BODY, "model": "toy-llama"})[0] == 200


def test_where_memory_ends_idle_models_make_room_and_busy_ones_stay(
    models_dir: Path, models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(models_dir, GGUF, PHI) as server:

        def only_one(*_: Any) -> None:
            if server.models.opened():
                raise NotEnoughMemoryError("it does not fit")

        monkeypatch.setattr("localq.model.require_memory", only_one)
        assert memory.require_memory is not only_one
        for name in (GGUF, PHI, GGUF):
            assert server.ask(CHAT, {**BODY, "model": name})[0] == 200
            assert opened(server) == {name}
        busy = server.models.opened()[0]
        busy.users += 1  # as a request does that it is answering
        status, answer = server.ask(CHAT, {**BODY, "model": PHI})
        assert (status, answer["error"]["code"]) == (503, "not_enough_memory")
        assert opened(server) == {GGUF}
        busy.release()
        assert server.ask(CHAT, {**BODY, "model": PHI})[0] == 200


def test_a_model_that_can_not_be_opened_is_the_servers_failure_and_tells_no_path(
    models_dir: Path, tmp_path: Path
) -> None:
    localq.convert("toy-llama", ["gguf-q8_0"], models_dir=tmp_path)
    (file,) = tmp_path.rglob("*.gguf")
    data = file.read_bytes()
    file.write_bytes(b"JUNK" + data[4:])
    with running(tmp_path) as server:
        status, answer = server.ask(CHAT, {**BODY, "model": "toy-llama:q8_0"})
        assert status == 500 and str(tmp_path) not in json.dumps(answer)
        assert any(str(tmp_path) in line for line in server.log)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_goes_away_frees_its_sequence(
    server: Server, models: dict[str, localq.Model], stream: bool
) -> None:
    server.log.clear()
    long = {**endless(models[GGUF], GGUF), "n": 8, "logprobs": True, "stream": stream}
    go_away(server.port, long, times=25, seed=1)
    wait_until(lambda: sum(f"{CHAT} 499" in line for line in server.log) == 25)
    server.wait_until_idle()
    assert all(one.users == 0 for one in server.models.opened())
    assert server.ask(CHAT, {**BODY, "model": GGUF})[0] == 200


@pytest.mark.parametrize("more", [b"\r\n", b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"])
def test_a_client_that_goes_away_is_noticed_though_it_sent_more(
    server: Server, models: dict[str, localq.Model], more: bytes
) -> None:
    data = json.dumps({**endless(models[GGUF], GGUF), "n": 100}).encode()
    server.log.clear()
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data + more)
        wait_until(lambda: any(one.batcher.running for one in server.models.opened()))
    wait_until(lambda: any(f"{CHAT} 499" in line for line in server.log))
    server.wait_until_idle()


def test_beyond_the_queue_clients_are_told_to_come_again(
    models_dir: Path, models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "MOST_WAITING", 1)
    body = endless(models[GGUF], GGUF)
    with running(models_dir, GGUF) as server, ThreadPoolExecutor(8) as clients:
        answers = list(clients.map(lambda _: server.ask(CHAT, body), range(8)))
        statuses = sorted(status for status, _ in answers)
        assert statuses[0] == 200 and statuses[-1] == 429 and set(statuses) == {200, 429}
        assert server.ask(CHAT, {**BODY, "model": GGUF, "n": 100})[0] == 400
        assert server.ask(CHAT, {**BODY, "model": GGUF})[0] == 200


@pytest.mark.parametrize(
    ("path", "busy", "other"),
    [
        (CHAT, {"headers": {"user-agent": "script"}}, {"headers": {"user-agent": "editor"}}),
        (CHAT, {"fields": {"user": "a"}}, {"fields": {"user": "b"}}),
        (CHAT, {"fields": {"safety_identifier": "a"}}, {}),
        ("/v1/messages", {"fields": {"metadata": {"user_id": "a"}}}, {"fields": {"metadata": {"user_id": "b"}}}),
    ],
)
def test_a_client_that_asks_much_does_not_keep_another_one_waiting(
    server: Server, models: dict[str, localq.Model], path: str, busy: dict[str, Any], other: dict[str, Any]
) -> None:
    ended: list[str] = []

    def ask(name: str, headers: dict[str, str] | None = None, fields: Any = None) -> None:
        body = {**BODY, "model": GGUF, "max_tokens": 10, **(fields or {})}
        assert server.ask(path, body, headers=headers)[0] == 200
        ended.append(name)

    ask("first")
    (model,) = (one for one in server.models.opened() if one.offer.id == GGUF)
    with ThreadPoolExecutor(41) as clients:
        with model.model.turn():
            replies = [clients.submit(ask, "busy", **busy) for _ in range(40)]
            wait_until(lambda: model.batcher.waiting == 40)
            replies.append(clients.submit(ask, "other", **other))
            wait_until(lambda: model.batcher.waiting == 41)
        for reply in replies:
            reply.result()
    assert ended.index("other") < 30


def test_one_client_leaves_room_in_the_queue_for_others(
    models_dir: Path, models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(core, "MOST_WAITING", 16)
    body = {**endless(models[GGUF], GGUF), "user": "a", "n": 10}
    with running(models_dir, GGUF) as server, ThreadPoolExecutor(1) as client:
        busy = client.submit(server.ask, CHAT, body)
        wait_until(lambda: "replies_queued 10\n" in server.ask("/metrics")[1])
        status, answer = server.ask(CHAT, body)
        assert (status, answer["error"]["code"]) == (429, "queue_full")
        assert server.ask(CHAT, {**BODY, "model": GGUF, "user": "b", "n": 2})[0] == 200
        assert busy.result()[0] == 200


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_replies_in_company_are_those_of_runs_alone(models_dir: Path, name: str) -> None:
    questions = ["What is the capital of France?", "Hi", "Where is the cat?", "Count to ten."]
    bodies = [
        {
            "model": name,
            "messages": [{"role": "user", "content": questions[number % 4]}],
            "temperature": 1.2,
            "seed": number,
            "max_tokens": 10 + number,
            "stream": number % 3 == 0,
        }
        for number in range(64 if name == GGUF else 24)  # MLX is ten times as slow here
    ]

    with running(models_dir, name, options=LoadOptions(sequences=16, reproducible=True)) as server:

        def text(body: dict[str, Any]) -> str:
            answer = server.ask(CHAT, body)[1]
            if isinstance(answer, str):
                return "".join(one["choices"][0]["delta"].get("content", "") for one in events_of(answer)[:-1])
            return str(answer["choices"][0]["message"]["content"])

        alone = [text(body) for body in bodies]
        with ThreadPoolExecutor(len(bodies)) as clients:
            assert list(clients.map(text, bodies)) == alone
        assert len(set(alone)) > len(bodies) // 2


def test_after_its_time_the_server_ends_though_replies_run(
    models_dir: Path, models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "FINISHING_SECONDS", 0.2)
    body = {**endless(models[GGUF], GGUF), "n": 100, "logprobs": True, "top_logprobs": 20, "stream": True}
    with ThreadPoolExecutor(1) as client:
        with running(models_dir, GGUF) as server:
            reply = client.submit(server.ask, CHAT, body)
            wait_until(lambda: any(one.batcher.running for one in server.models.opened()))
            started = time.monotonic()
        assert time.monotonic() - started < 10
        assert any("running replies" in line for line in server.log)
        assert isinstance(reply.exception(), http.client.IncompleteRead)


def test_a_client_that_does_not_read_is_cut(
    models_dir: Path, models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listening, "READING_SECONDS", 0.2)
    long = {**endless(models[GGUF], GGUF), "n": 64, "logprobs": True, "top_logprobs": 20, "stream": True}
    data = json.dumps(long).encode()
    with running(models_dir, GGUF) as server, socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", server.port))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(data)}\r\n\r\n"
        connection.sendall(head.encode() + data)
        wait_until(lambda: any(f"{CHAT} 499" in line for line in server.log))
        server.wait_until_idle()


def test_the_loop_answers_while_a_model_replies(server: Server, models: dict[str, localq.Model]) -> None:
    body = endless(models[GGUF], GGUF)
    with ThreadPoolExecutor(4) as clients:
        replies = [
            clients.submit(server.ask, CHAT, {**body, "logprobs": True, "top_logprobs": 20, "max_tokens": 150})
            for _ in range(4)
        ]
        answered = 0
        while not all(reply.done() for reply in replies):
            assert server.ask("/health")[0] == 200
            answered += 1
    assert answered >= 3


def test_the_log_has_a_line_for_each_request_and_prompts_only_when_asked(models_dir: Path) -> None:
    with running(models_dir, GGUF) as server:
        server.ask(CHAT, {**BODY, "model": GGUF, "temperature": 0})
        server.ask("/v1/models/a%0Ab")
        wait_until(lambda: len([line for line in server.log if " req_" in line]) == 2)
        chat, model = (line for line in server.log if " req_" in line)
        assert re.search(
            r' 200 \S+s model=toy-llama form=gguf-q4_k_m reply="29 prompt tokens at .* t/s, 13 generated at', chat
        )
        assert "France" not in "".join(server.log)
        assert '"/v1/models/a\\nb" 404' in model
    with running(models_dir, GGUF, log_prompts=True) as server:
        server.ask(CHAT, {**BODY, "model": GGUF, "n": 20, "max_tokens": 1})
        wait_until(lambda: any("20" in line for line in server.log))
        (line,) = (line for line in server.log if " req_" in line)
        assert line.count("reply=") == 4 and "more_replies=16" in line
        server.ask(CHAT, {**BODY, "model": GGUF})
        wait_until(lambda: any("France" in line for line in server.log))


def test_figures_count_requests_and_tokens(models_dir: Path) -> None:
    with running(models_dir, GGUF) as server:
        server.ask(CHAT, {**BODY, "model": GGUF, "temperature": 0})
        server.ask("/v1/" + "x" * 50)
        figures = server.ask("/metrics")[1]
    assert 'localq_requests_total{path="/v1/chat/completions",status="200"} 1\n' in figures
    assert 'localq_requests_total{path="other",status="404"} 1\n' in figures
    assert f'localq_tokens_total{{model="{GGUF}",kind="generated"}} 13\n' in figures
    assert threading.active_count() < 100
