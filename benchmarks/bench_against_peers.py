"""`localq bench` against llama-bench and mlx_lm.benchmark: do they find the same rates?

    python benchmarks/bench_against_peers.py --gguf FILE.gguf --llama-bench LLAMA_BENCH [-p 512] [-n 128] [-r 5]
    python benchmarks/bench_against_peers.py --mlx FOLDER [-p 512] [-n 128] [-r 5]

FILE.gguf and FOLDER are artifacts of localq, or any others. The tools take turns, in an order that changes from
turn to turn; each loads the model, warms up and measures once. Ratios are taken turn by turn.

llama-bench, built from the same source as llama-cpp-python, gets localq's threads, batch (-b and -ub), flash attention
and sizes. It does not sample, which localq does.

mlx_lm.benchmark measures generation behind the prompt, so localq does too (`-d`). It counts n + 1 tokens over n
intervals, which is corrected here: its rate times n / (n + 1), n being one less than -n. On a CPU localq computes in
float32, so mlx_lm is told to.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from localq.hardware import available_cores
from localq.measure.forms import Form, find_forms
from localq.measure.machine import describe_machine
from localq.measure.reports import BenchSettings
from localq.measure.speed import bench_forms
from localq.options import MOST_BATCH_TOKENS

Rates = dict[str, float]
"""Tokens per second of `prompt` and `generation`."""

_MLX_LM = """
import mlx.core as mx
import mlx_lm.benchmark as benchmark
load = benchmark.load
def load_as_localq(*arguments, **options):
    model, *others = load(*arguments, **options)
    if mx.default_device().type == mx.DeviceType.cpu:
        model.set_dtype(mx.float32)
        mx.eval(model.parameters())
    return model, *others
benchmark.load = load_as_localq
benchmark.main()
"""


def localq_rates(form: Form, arguments: argparse.Namespace, depth_tokens: int) -> Rates:
    """What localq measures; generation after a context of `depth_tokens`."""
    is_gguf = form.format == "gguf"
    rates = {}
    for name, prompt_tokens, generated_tokens, depth in (
        ("prompt", (arguments.prompt,), (), 0),
        ("generation", (), (arguments.tokens,), depth_tokens),
    ):
        settings = BenchSettings(
            prompt_tokens=prompt_tokens,
            generated_tokens=generated_tokens,
            depth_tokens=(depth,),
            repetitions=1,
            threads=arguments.threads if is_gguf else None,
        )
        (test,) = bench_forms([form], settings).results[0].tests
        rates[name] = test.tokens_per_second.median
    return rates


def llama_bench_rates(arguments: argparse.Namespace) -> Rates:
    """What llama-bench measures with localq's settings."""
    command = [arguments.llama_bench, "-m", arguments.gguf, "-p", arguments.prompt, "-n", arguments.tokens, "-r", 1]
    command += ["-t", arguments.threads, "-b", MOST_BATCH_TOKENS, "-ub", MOST_BATCH_TOKENS, "-fa", "auto", "-o", "json"]
    prompt, generation = json.loads(_output(list(map(str, command))))
    return {"prompt": prompt["avg_ts"], "generation": generation["avg_ts"]}


def mlx_lm_rates(arguments: argparse.Namespace) -> Rates:
    """What mlx_lm.benchmark measures, its counting corrected."""
    sizes = ["-p", str(arguments.prompt), "-g", str(arguments.tokens), "-n", "1"]
    said = _output([sys.executable, "-c", _MLX_LM, "--model", str(arguments.mlx), *sizes])
    found = re.search(r"Averages: prompt_tps=([\d.]+), generation_tps=([\d.]+)", said)
    if found is None:
        sys.exit(f"mlx_lm.benchmark said no rates:\n{said}")
    return {"prompt": float(found[1]), "generation": float(found[2]) * (arguments.tokens - 1) / arguments.tokens}


def _output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def compare(tools: dict[str, Callable[[], Rates]], turns: int) -> None:
    """Measure in turns and print a table in Markdown; the first tool's rates are divided by the others'."""
    found: dict[str, list[Rates]] = {tool: [] for tool in tools}
    for turn in range(turns):
        for tool in reversed(tools) if turn % 2 else tools:
            found[tool].append(tools[tool]())
            print(f"turn {turn + 1}: {tool} {found[tool][-1]}", file=sys.stderr, flush=True)
    own = next(iter(tools))
    print(f"| rate | tool | tokens/s | {own}'s rate over it |\n|---|---|---|---|")
    for rate in ("prompt", "generation"):
        for tool, turns_of_tool in found.items():
            values = [rates[rate] for rates in turns_of_tool]
            ratios = [mine[rate] / theirs for mine, theirs in zip(found[own], values, strict=True)]
            print(
                f"| {rate} | {tool} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) "
                f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |"
            )


def main() -> None:
    """Read the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--mlx", type=Path)
    parser.add_argument("-p", "--prompt", type=int, default=512, help="Tokens of the prompt.")
    parser.add_argument("-n", "--tokens", type=int, default=128, help="Tokens to generate.")
    parser.add_argument("-r", "--repetitions", type=int, default=5, help="Turns; an even number is fairer.")
    parser.add_argument("-t", "--threads", type=int, default=available_cores(), help="Of llama.cpp.")
    arguments = parser.parse_args()
    if (arguments.gguf is None) == (arguments.mlx is None) or (arguments.gguf is None) != (
        arguments.llama_bench is None
    ):
        parser.error("give --gguf with --llama-bench, or --mlx")
    tools: dict[str, Callable[[], Rates]]
    if arguments.gguf:
        (form,) = find_forms([str(arguments.gguf)])
        tools = {
            "localq bench": lambda: localq_rates(form, arguments, depth_tokens=0),
            "llama-bench": lambda: llama_bench_rates(arguments),
        }
    else:
        (form,) = find_forms([str(arguments.mlx)])
        tools = {
            "localq bench": lambda: localq_rates(form, arguments, depth_tokens=arguments.prompt),
            "mlx_lm.benchmark": lambda: mlx_lm_rates(arguments),
        }
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    print(f"{machine.cpu}, {machine.physical_cores} cores; {machine.os}; {versions}\n")
    compare(tools, arguments.repetitions)


if __name__ == "__main__":
    main()
