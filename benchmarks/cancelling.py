"""How long `localq serve` goes on computing for a client that has gone away.

    python benchmarks/cancelling.py MODEL.gguf [-r 10]

Clients leave while their reply is written, while a prompt of 2,000 random tokens is computed, and while they wait in
the queue; with and without `stream`. The time is from the closed connection until /metrics counts the reply no longer,
and includes the pass that was being computed.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

PORT, PROMPT_TOKENS = 18_098, 2000


def count(what: str) -> int:
    """Replies that are running, or waiting."""
    with closing(http.client.HTTPConnection("127.0.0.1", PORT, timeout=60)) as connection:
        connection.request("GET", "/metrics")
        text = connection.getresponse().read().decode()
    return int(re.findall(rf"^localq_replies_{what} (\d+)", text, re.MULTILINE)[0])


def wait_for(what: str, number: int) -> None:
    """Until so many replies are running, or waiting."""
    while count(what) != number:
        time.sleep(0.002)


def ask(model: str, stream: bool, prompt: list[int]) -> socket.socket:
    """A connection with a request on it, whose reply lasts long."""
    body = {"model": model, "prompt": prompt, "max_tokens": 2000, "stream": stream}
    data = json.dumps(body).encode()
    connection = socket.create_connection(("127.0.0.1", PORT))
    connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n")
    connection.sendall(b"content-length: %d\r\n\r\n" % len(data) + data)
    return connection


def leave(connection: socket.socket, what: str) -> float:
    """Milliseconds until the reply is no longer running, or waiting."""
    started = time.perf_counter()
    connection.close()
    wait_for(what, 0)
    return 1000 * (time.perf_counter() - started)


def measure(model: str, repetitions: int) -> None:
    """Print a line for each case."""

    def prompt(length: int) -> list[int]:
        return [random.randrange(1000, 20_000) for _ in range(length)]

    def running(stream: bool, length: int) -> float:
        connection = ask(model, stream, prompt(length))
        wait_for("running", 1)
        time.sleep(random.uniform(0.5, 1.0))
        return leave(connection, "running")

    def queued(stream: bool, length: int) -> float:
        other = ask(model, True, prompt(5))
        wait_for("running", 1)
        connection = ask(model, stream, prompt(length))
        wait_for("waiting", 1)
        took = leave(connection, "waiting")
        leave(other, "running")
        return took

    cases: dict[str, tuple[Callable[[bool, int], float], int]] = {
        "while it is written": (running, 5),
        "in its prompt": (running, PROMPT_TOKENS),
        "in the queue": (queued, 5),
    }
    for name, (case, length) in cases.items():
        for stream in (True, False):
            times = [case(stream, length) for _ in range(repetitions)]
            spread = f"median {statistics.median(times):.0f} ms, {min(times):.0f} to {max(times):.0f}"
            print(f"{name}, {'stream' if stream else 'no stream'}: {spread}", flush=True)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("-r", "--repetitions", type=int, default=10)
    given = parser.parse_args()
    command = [sys.executable, "-m", "localq", "serve", str(given.model), "--port", str(PORT)]
    command += ["-c", "4096", "--sequences", "1"]
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            while server.poll() is None:
                with suppress(OSError):
                    wait_for("running", 0)
                    break
                time.sleep(0.1)
            warm_up = ask(given.model.stem, True, [1000, 1001])
            wait_for("running", 1)
            leave(warm_up, "running")
            measure(given.model.stem, given.repetitions)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
