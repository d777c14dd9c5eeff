"""Tokens per second and time to first token of `localq serve` beside llama-server, with 1 to 16 clients, by turns.

    python benchmarks/serving.py LLAMA_SERVER MODEL.gguf [-r 2] [--clients 1 4 8 16] [--reproducible]

LLAMA_SERVER is llama.cpp's program, built from the source that llama-cpp-python brings. Each turn starts a server, lets
each number of clients ask at the same time for 32 tokens after a prompt of their own of about 16 tokens, and stops it.
Rates are all new tokens / seconds from the first request to the last answer: prompts are part of it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

PORT, TOKENS = 18_099, 32


def ask(number: int, model: str, firsts: list[float], counts: list[int]) -> None:
    """One streamed completion; notes the seconds until the first piece and the tokens."""
    words = " ".join(f"word{number}{index}" for index in range(5))
    request = {"model": model, "prompt": f"Number {number}: {words}", "max_tokens": TOKENS, "temperature": 0}
    request |= {"stream": True, "stream_options": {"include_usage": True}}
    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=600)
    started = time.perf_counter()
    connection.request("POST", "/v1/completions", json.dumps(request), {"Content-Type": "application/json"})
    answer = connection.getresponse()
    if answer.status != 200:
        sys.exit(f"{answer.status}: {answer.read().decode()[:300]}")
    first, tokens = None, 0
    for line in answer:
        if line.startswith(b"data: {"):
            first = first or time.perf_counter() - started
            tokens = (json.loads(line[6:]).get("usage") or {}).get("completion_tokens", tokens)
    firsts.append(first or 0.0)
    counts.append(tokens)


def measure(command: list[str], model: str, clients: list[int]) -> list[tuple[float, float]]:
    """(tokens per second, median seconds to the first token) for each number of clients, of one server."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        try:
            for _ in range(600):
                with suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                time.sleep(0.1)
            ask(0, model, [], [])  # warm-up
            found = []
            for count in clients:
                firsts: list[float] = []
                counts: list[int] = []
                threads = [
                    threading.Thread(target=ask, args=(1000 * count + number, model, firsts, counts))
                    for number in range(count)
                ]
                started = time.perf_counter()
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
                found.append((sum(counts) / (time.perf_counter() - started), statistics.median(firsts)))
            return found
        finally:
            server.terminate()


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("llama_server")
    parser.add_argument("model", type=Path)
    parser.add_argument("-r", "--repetitions", type=int, default=2)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--reproducible", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    most = max(arguments.clients)
    own = [sys.executable, "-m", "localq", "serve", str(arguments.model), "--port", str(PORT), "-c", "512"]
    own += ["--sequences", str(most), *(["--reproducible"] if arguments.reproducible else [])]
    peer = [arguments.llama_server, "-m", str(arguments.model), "--port", str(PORT), "-np", str(most)]
    peer += ["-c", str(512 * most), "-t", str(arguments.threads)]
    runs: dict[str, list[list[tuple[float, float]]]] = {"localq serve": [], "llama-server": []}
    for _ in range(arguments.repetitions):
        runs["localq serve"].append(measure(own, arguments.model.stem, arguments.clients))
        runs["llama-server"].append(measure(peer, "any", arguments.clients))
    print("| server | " + " | ".join(f"{count} clients" for count in arguments.clients) + " |")
    print("|---" * (len(arguments.clients) + 1) + "|")
    for name, turns in runs.items():
        cells = []
        for place in range(len(arguments.clients)):
            rates, firsts = zip(*(turn[place] for turn in turns), strict=True)
            spread = f"{statistics.median(rates):.1f} ({min(rates):.1f} to {max(rates):.1f}) t/s"
            cells.append(f"{spread}, {statistics.median(firsts):.2f} s")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
