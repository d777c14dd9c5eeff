"""A real server on a free port of this machine, with the toys on both engines."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import localq
from localq.conversion.convert import ConversionListener
from localq.options import LoadOptions
from localq.serve.app import Settings, make_server
from localq.serve.door import Access
from localq.serve.listening import bind, uvicorn_of
from localq.serve.models import Models, make_offer
from tests.serve.browser import Browser

GGUF, MLX, PHI = "toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit", "toy-phi:gguf-q8_0"


@dataclass
class Server:
    """A running server, and requests to it."""

    port: int
    log: list[str]
    models: Models

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: Any = None, *, method: str = "", headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        """Status and body: JSON read, or the text."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        data = json.dumps(body) if body is not None and not isinstance(body, bytes) else body
        kind = {"content-type": "application/json"} if body is not None else {}
        with closing(connection):
            connection.request(method or ("GET" if body is None else "POST"), path, data, {**kind, **(headers or {})})
            with connection.getresponse() as answer:
                text = answer.read().decode()
        is_json = answer.getheader("content-type", "").startswith("application/json")
        return answer.status, json.loads(text) if is_json else text

    def wait_until_idle(self) -> None:
        """Until no reply is wanted, waiting or running."""
        deadline = time.monotonic() + 20
        while any(f"replies_{what} 0\n" not in self.ask("/metrics")[1] for what in ("queued", "waiting", "running")):
            assert time.monotonic() < deadline, self.ask("/metrics")[1]
            time.sleep(0.02)


def events_of(text: str) -> list[Any]:
    """The data of server-sent events; `[DONE]` as it is."""
    data = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


@contextmanager
def running(
    models_dir: Path,
    *named: str,
    access: Access = Access("127.0.0.1"),  # noqa: B008
    keep_alive: float = -1,
    log_prompts: bool = False,
    options: LoadOptions = LoadOptions(sequences=4),  # noqa: B008
) -> Iterator[Server]:
    """A server that runs in a thread of this process."""
    log: list[str] = []
    offers = [make_offer(name, models_dir, ConversionListener()) for name in named]
    app, models = make_server(Settings(models_dir, options, access, keep_alive, log.append, log_prompts), offers)
    bound = bind("127.0.0.1", 0)
    server = uvicorn_of(app, log.append)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    port = bound.getsockname()[1]
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield Server(port, log, models)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def server(models_dir: Path) -> Iterator[Server]:
    """One for all tests that change nothing."""
    with running(models_dir, GGUF, MLX, PHI) as started:
        yield started


@pytest.fixture(scope="session")
def models(models_dir: Path) -> Iterator[dict[str, localq.Model]]:
    """The same models, asked without a server."""
    opened = {name: localq.load(name, models_dir=models_dir) for name in (GGUF, MLX, PHI)}
    yield opened
    for model in opened.values():
        model.close()


@pytest.fixture(scope="module")
def tab(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The chat page in a browser."""
    with Browser(tmp_path_factory.mktemp("chromium")) as opened:
        opened.open(f"{server.url}/")
        opened.wait("forms.size > 1")
        yield opened


@pytest.fixture(autouse=True)
def _new_chat(request: pytest.FixtureRequest) -> None:
    if "tab" in request.fixturenames:
        tab = request.getfixturevalue("tab")
        tab.run("""window.confirm = () => true; $('new').click(); $('both').checked && $('both').click();
            $('max_tokens').value = ''; $('temperature').value = '0'; 0""")
        tab.wait("!running")
