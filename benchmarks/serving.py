"""Tokens per second and time to first token of `localq serve` beside another server, with 1 to 16 clients, by turns.

    python benchmarks/serving.py MODEL.gguf --peer LLAMA_SERVER [-r 3] [--clients 1 4 8 16] [--words 5] [--reproducible]
    python benchmarks/serving.py MLX_FOLDER --peer mlx_lm

LLAMA_SERVER is llama.cpp's program, built from the source that llama-cpp-python brings; mlx_lm is mlx_lm.server. Each
turn starts a server, lets each number of clients ask at the same time for 32 tokens after a prompt of their own, a few
tokens for each of its words, and stops it. Rates are all new tokens / seconds from the first request to the last
answer: prompts are part of it. `--reproducible` adds a third contender.
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
from dataclasses import dataclass
from pathlib import Path

PORT, TOKENS = 18_099, 32


@dataclass(frozen=True)
class Contender:
    """A server."""

    command: list[str]
    model: str
    """Its name for the model."""
    words: int
    """Of each prompt."""


def ask(number: int, contender: Contender, firsts: list[float], counts: list[int]) -> None:
    """One streamed completion; notes the seconds until the first piece and the tokens."""
    prompt = f"{number}: " + " ".join(f"word{number}{index}" for index in range(contender.words))
    request = {"model": contender.model, "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
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


def measure(contender: Contender, clients: list[int]) -> list[tuple[float, float]]:
    """(tokens per second, median seconds to the first token) for each number of clients, of one server."""
    with tempfile.TemporaryFile() as log, subprocess.Popen(contender.command, stdout=log, stderr=log) as server:
        try:
            for _ in range(600):
                with suppress(OSError):
                    connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=5)
                    connection.request("GET", "/health")
                    if connection.getresponse().status == 200:
                        break
                time.sleep(0.1)
            ask(0, contender, [], [])  # warm-up
            found = []
            for count in clients:
                firsts: list[float] = []
                counts: list[int] = []
                threads = [
                    threading.Thread(target=ask, args=(1000 * count + number, contender, firsts, counts))
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


def make_contenders(arguments: argparse.Namespace) -> dict[str, Contender]:
    """localq's server in one mode or both, and the other one, with the same contexts and threads."""
    model, most, words = arguments.model, max(arguments.clients), arguments.words
    context = -(-(TOKENS + 20 + 6 * words) // 256) * 256
    own = [sys.executable, "-m", "localq", "serve", str(model), "--port", str(PORT), "-c", str(context)]
    own += ["--sequences", str(most)]
    name = model.stem if model.is_file() else f"{model.parent.name.replace('--', '/')}:{model.name}"
    found = {"`localq serve`": Contender(own, name, words)}
    if arguments.reproducible:
        found["`localq serve --reproducible`"] = Contender([*own, "--reproducible"], name, words)
    if arguments.peer == "mlx_lm":
        peer = [sys.executable, "-m", "mlx_lm", "server", "--model", str(model), "--port", str(PORT)]
        found["mlx_lm.server"] = Contender([*peer, "--decode-concurrency", str(most)], str(model), words)
    else:
        peer = [arguments.peer, "-m", str(model), "--port", str(PORT), "-np", str(most), "-c", str(context * most)]
        peer += ["-t", str(len(os.sched_getaffinity(0)))]
        found["llama-server"] = Contender(peer, "any", words)
    return found


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--peer", required=True)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("--words", type=int, default=5)
    parser.add_argument("--reproducible", action="store_true")
    arguments = parser.parse_args()
    contenders = make_contenders(arguments)
    runs: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in contenders}
    for _ in range(arguments.repetitions):
        for name, contender in contenders.items():
            runs[name].append(measure(contender, arguments.clients))
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
