"""`localq serve` as a process: what it says, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

import localq
from localq.cli.main import app

ENDLESS = {"model": "toy-llama", "prompt": "The", "max_tokens": 1_000_000, "stream": True}


@contextmanager
def process(models_dir: Path, *flags: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "localq", "serve", *flags, "--models-dir", str(models_dir)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}) as child:
        try:
            yield child
        finally:
            child.kill()


def port_of(child: subprocess.Popen[str]) -> int:
    assert child.stderr is not None
    for line in child.stderr:
        if found := re.search(r"serving at http://[^/]+:(\d+)/v1", line):
            return int(found[1])
    raise AssertionError("it did not begin to serve")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_a_signal_lets_a_running_reply_finish(models_dir: Path, number: signal.Signals, code: int) -> None:
    with process(models_dir, "toy-llama:gguf-q4_k_m", "--port", "0", "--api-key", "k") as child:
        port = port_of(child)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        headers = {"authorization": "Bearer k", "content-type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(ENDLESS), headers)
        answer = connection.getresponse()
        first = answer.read(10)
        child.send_signal(number)
        text = (first + answer.read()).decode()
        connection.close()
        assert text.endswith("data: [DONE]\n\n")
        assert child.wait(30) == code
        with pytest.raises(OSError, match="refused"):
            socket.create_connection(("127.0.0.1", port), timeout=5)


def test_what_can_not_be_served_is_said_at_once(models_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        cases = [
            (["--port", port], "can't listen at 127.0.0.1", "another program uses the port"),
            (["--port", "65536"], "--port is 65536", "65535"),
            (["--port", "-1"], "--port is -1", ""),
            (["--host", "0.0.0.0"], "no key", "--api-key"),
            (["--host", "203.0.113.1", "--api-key", "k"], "can't listen at 203.0.113.1", "--host must be"),
            (["no-such-model"], "no-such-model", ""),
            (["--cors", "*"], "--cors", "https://example.org"),
            (["--sequences", "0"], "sequences", ""),
            (["--keep-alive", "nan"], "--keep-alive is nan", "-1"),
            (["--keep-alive", "-2"], "--keep-alive is -2", "-1"),
        ]
        for flags, message, hint in cases:
            given = ["serve", "--port", "0", *flags, "--models-dir", str(models_dir)]
            result = CliRunner().invoke(app, given, prog_name="localq")
            assert result.exit_code == 1, result.stderr
            assert message in result.stderr and hint in result.stderr


def test_a_damaged_model_and_a_folder_without_models_are_told_with_what_helps(models_dir: Path, tmp_path: Path) -> None:
    with process(tmp_path, "--port", "0") as child:
        assert child.stderr is not None
        assert "`localq convert MODEL` makes one" in child.stderr.readline()
    localq.convert("toy-llama", ["gguf-q8_0"], models_dir=tmp_path)
    (file,) = tmp_path.rglob("*.gguf")
    file.write_bytes(b"JUNK" + file.read_bytes()[4:])
    given = ["serve", "toy-llama:q8_0", "--port", "0", "--models-dir", str(tmp_path)]
    result = CliRunner().invoke(app, given, prog_name="localq")
    assert result.exit_code == 1
    assert "is damaged" in result.stderr and "localq convert SOURCE --to FORMAT --force" in result.stderr


def test_the_key_may_come_from_the_environment(models_dir: Path) -> None:
    with process(models_dir, "--port", "0", LOCALQ_API_KEY="k") as child:
        port = port_of(child)
        for headers, status in (({}, 401), ({"authorization": "Bearer k"}, 200)):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/v1/models", headers=headers)
            with connection.getresponse() as answer:
                assert answer.status == status
            connection.close()
        started = time.monotonic()
        child.send_signal(signal.SIGTERM)
        assert child.wait(30) == 0 and time.monotonic() - started < 10
