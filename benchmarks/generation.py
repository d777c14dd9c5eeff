"""Speed of generation against the bare engines: llama.cpp's own loop, llama-bench, and mlx_lm.

    python benchmarks/generation.py --gguf FILE.gguf [--llama-bench LLAMA_BENCH] [-n 128] [-r 5]
    python benchmarks/generation.py --mlx FOLDER [-n 128] [-r 5]

FILE.gguf and FOLDER may be made by localq or by another program. The tools take turns, each run in its own process:
it loads the model and generates once to warm up. Ratios are computed for each turn. llama-bench, built from the
same source as llama-cpp-python, does not sample. mlx_lm computes in the checkpoint's dtype, localq on a CPU in
float32, so mlx_lm is also measured in float32.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

_PROMPT = "list(range(100, 132))"

_LOCALQ = """
import json, sys
from localq.options import GenerationOptions, LoadOptions
from importlib import import_module
from pathlib import Path
from localq.generation import TextRules, stream
from localq.text.tokenizer import load_tokenizer
module, path, count, sampling = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), json.loads(sys.argv[4])
folder = path if path.is_dir() else path.parent
rules = TextRules(load_tokenizer(folder))
engine = import_module(module).open_engine(path, LoadOptions(), 2048)
for tokens in (8, count):
    options = GenerationOptions(max_tokens=tokens, seed=1, **sampling)
    last = list(stream(engine, rules, {prompt}, options))[-1]
print(last.statistics.generated_tokens_per_second)
"""

_BARE = """
import ctypes, json, sys, time
from localq.engines.llamacpp_loading import llama_api
path, count, threads, sampling = sys.argv[2], int(sys.argv[3]), int(sys.argv[5]), json.loads(sys.argv[4])
api = llama_api()  # with llama.cpp's AMX kernels left out, as in localq
quiet = api.llama_log_callback(lambda *_: None)
api.llama_log_set(quiet, None)
parameters = api.llama_model_default_params()
parameters.n_gpu_layers = -1
model = api.llama_model_load_from_file(path.encode(), parameters)
settings = api.llama_context_default_params()
settings.n_ctx, settings.n_threads, settings.n_threads_batch = 2048, threads, threads
settings.n_batch = settings.n_ubatch = 512
context = api.llama_init_from_model(model, settings)
chain = api.llama_sampler_chain_init(api.llama_sampler_chain_default_params())
if sampling:
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_k(sampling["top_k"]))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_top_p(sampling["top_p"], 1))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_temp(sampling["temperature"]))
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_dist(1))
else:
    api.llama_sampler_chain_add(chain, api.llama_sampler_init_greedy())
def decode(tokens):
    ids = (api.llama_token * len(tokens))(*tokens)
    api.llama_decode(context, api.llama_batch_get_one(ids, len(tokens)))
for tokens in (8, count):
    api.llama_memory_clear(api.llama_get_memory(context), False)
    decode({prompt})
    token = api.llama_sampler_sample(chain, context, -1)
    started = time.perf_counter()
    for _ in range(tokens - 1):
        decode((token,))
        token = api.llama_sampler_sample(chain, context, -1)
    seconds = time.perf_counter() - started
print((count - 1) / seconds)
"""

_MLX_LM = """
import json, sys, time
import mlx.core as mx
from mlx_lm import load
from mlx_lm.generate import stream_generate
from mlx_lm.sample_utils import make_sampler
path, count, sampling, dtype = sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]), sys.argv[5]
model, tokenizer = load(path)
if dtype == "float32":
    model.set_dtype(mx.float32)
tokenizer._eos_token_ids = set()
sampler = None
if sampling:
    sampler = make_sampler(temp=sampling["temperature"], top_p=sampling["top_p"], top_k=sampling["top_k"])
for tokens in (8, count):
    times = []
    for _ in stream_generate(model, tokenizer, {prompt}, max_tokens=tokens, sampler=sampler):
        times.append(time.perf_counter())
print((len(times) - 1) / (times[-1] - times[0]))
"""

_SAMPLINGS: dict[str, dict[str, float]] = {
    "greedy": {},
    "sampled": {"temperature": 0.8, "top_k": 40, "top_p": 0.95},
}


def rate(script: str, *arguments: str) -> float:
    """Tokens per second: the last line that the script prints, run in its own process."""
    command = [sys.executable, "-c", script.replace("{prompt}", _PROMPT), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"a tool failed:\n{done.stderr[-2000:]}")
    return float(done.stdout.split()[-1])


def llama_bench_rate(program: Path, file: Path, count: int, threads: int) -> float:
    """Decoding only, as llama-bench measures it, after a prompt of the same length."""
    command = [str(program), "-m", str(file), "-p", "0", "-n", str(count), "-d", "32", "-t", str(threads)]
    done = subprocess.run([*command, "-r", "1", "-o", "json"], capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)[0]["avg_ts"])


def compare(arguments: argparse.Namespace) -> None:
    """Measure in turns and print a table in Markdown."""
    threads, count = arguments.threads, arguments.tokens
    for name, sampling in _SAMPLINGS.items():
        given = json.dumps(sampling)
        runs: dict[str, list[float]] = {}
        for _ in range(arguments.repetitions):
            found: dict[str, float] = {}
            if arguments.gguf:
                found["localq"] = rate(_LOCALQ, "localq.engines.llamacpp", str(arguments.gguf), str(count), given)
                found["bare llama.cpp loop"] = rate(_BARE, "-", str(arguments.gguf), str(count), given, str(threads))
                if arguments.llama_bench:
                    found["llama-bench"] = llama_bench_rate(arguments.llama_bench, arguments.gguf, count, threads)
            else:
                found["localq"] = rate(_LOCALQ, "localq.engines.mlx", str(arguments.mlx), str(count), given)
                for dtype in ("float32", *(() if arguments.float32_only else ("own",))):
                    label = f"mlx_lm, {dtype} dtype" if dtype == "own" else f"mlx_lm, {dtype}"
                    found[label] = rate(_MLX_LM, "-", str(arguments.mlx), str(count), given, dtype)
            for tool, value in found.items():
                runs.setdefault(tool, []).append(value)
        for tool, values in runs.items():
            ratios = [own / value for own, value in zip(runs["localq"], values, strict=True)]
            print(
                f"| {name} | {tool} | {statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f}) "
                f"| {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}) |",
                flush=True,
            )


def main() -> None:
    """Read the arguments and compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--mlx", type=Path)
    parser.add_argument("--llama-bench", type=Path)
    parser.add_argument("--float32-only", action="store_true", help="Leave mlx_lm's own dtype out: slow on a CPU.")
    parser.add_argument("-n", "--tokens", type=int, default=128)
    parser.add_argument("-r", "--repetitions", type=int, default=5)
    parser.add_argument("-t", "--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    if (arguments.gguf is None) == (arguments.mlx is None):
        parser.error("give --gguf or --mlx")
    print("| sampling | tool | tokens/s | localq's rate over it |\n|---|---|---|---|")
    compare(arguments)


if __name__ == "__main__":
    main()
