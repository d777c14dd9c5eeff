"""Throughput of replies computed together, in both modes.

    python benchmarks/batching.py FOLDER [--sequences 1 4 8 16] [-p 16] [-n 12] [-r 3] [--threads 1]

FOLDER is an artifact of localq or an MLX folder. All requests come at once, with prompts that have nothing in common.
Each mode runs in its own process, by turns. With `--threads 1` (GGUF) the rates per second of processor time are those
of one core, also while other programs run.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

_RUN = """
import json, sys, threading, time
from pathlib import Path
from random import Random
from localq.batching import Batcher, ReplyRequest
from localq.model import open_form
from localq.options import GenerationOptions, LoadOptions
folder, counts, prompt_tokens, new_tokens, threads, reproducible = json.loads(sys.argv[1])
options = LoadOptions(context_length=1024, threads=threads, sequences=max(counts), reproducible=reproducible)
model = open_form(Path(folder), options)
model.end_tokens = frozenset()
batcher, random, found = Batcher(model), Random(1), {}
for count in [1, *counts]:  # the first one warms up
    done = threading.Semaphore(0)
    def on_event(event):
        if getattr(event, "finish_reason", "error"):
            done.release()
    wall, used = time.perf_counter(), time.process_time()
    for number in range(count):
        prompt = tuple(random.randrange(3, model.engine.vocabulary_size // 2) for _ in range(prompt_tokens))
        chosen = GenerationOptions(max_tokens=new_tokens, temperature=0.8, seed=number)
        batcher.submit(ReplyRequest(prompt, chosen), on_event)
    for _ in range(count):
        done.acquire()
    tokens = count * new_tokens
    found[count] = tokens / (time.perf_counter() - wall), tokens / (time.process_time() - used)
batcher.close()
print(json.dumps(found))
"""


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 4, 8, 16])
    parser.add_argument("-p", "--prompt-tokens", type=int, default=16)
    parser.add_argument("-n", "--tokens", type=int, default=12)
    parser.add_argument("-r", "--repetitions", type=int, default=3)
    parser.add_argument("--threads", type=int)
    given = parser.parse_args()
    runs: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for _ in range(given.repetitions):
        for mode in ("fast", "reproducible"):
            wanted = [str(given.folder), given.sequences, given.prompt_tokens, given.tokens, given.threads]
            command = [sys.executable, "-c", _RUN, json.dumps([*wanted, mode == "reproducible"])]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            for count, rates in json.loads(output).items():
                runs.setdefault((mode, count), []).append(rates)
    print("| mode | replies | new tokens per second | per processor second | from, to |")
    print("|---|---|---|---|---|")
    for (mode, count), rates in runs.items():
        wall, used = (statistics.median(column) for column in zip(*rates, strict=True))
        lowest, highest = min(rate for _, rate in rates), max(rate for _, rate in rates)
        print(f"| {mode} | {count} | {wall:.3g} | {used:.3g} | {lowest:.3g}, {highest:.3g} |")


if __name__ == "__main__":
    main()
