"""Tokens per second of models on this machine: the script form of `localq bench`.

    python benchmarks/tokens_per_second.py toy-llama toy-phi
    python benchmarks/tokens_per_second.py org/name:mlx-4bit org/name:gguf-q4_k_m -r 10 --json

Needs localq's dependencies, but not localq itself to be installed: it uses the checkout that it lies in.
README.md beside it gives the method.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localq.errors import LocalqError
from localq.measure.bench import BenchSettings, bench_forms
from localq.measure.forms import find_forms
from localq.measure.report import render_table


def main() -> int:
    arguments = parse_arguments()
    settings = BenchSettings(arguments.p, arguments.g, arguments.r, arguments.context_length, arguments.threads)
    forms = find_forms(arguments.reference, arguments.models_dir)
    report = bench_forms(forms, settings, lambda step: print(step, file=sys.stderr, flush=True))
    if arguments.style == "json":
        print(json.dumps(report.to_json(), indent=2))
    else:
        print(render_table(report, arguments.style))
    return 0


def parse_arguments() -> argparse.Namespace:
    defaults = BenchSettings()
    parser = argparse.ArgumentParser(description="Tokens per second of models on this machine.")
    parser.add_argument("reference", nargs="+", help="as for `localq bench`; without :RECIPE, the default forms")
    parser.add_argument("-p", type=int, default=defaults.prompt_tokens, metavar="N", help="prompt tokens")
    parser.add_argument("-g", type=int, default=defaults.generated_tokens, metavar="N", help="generated tokens")
    parser.add_argument("-r", type=int, default=defaults.repetitions, metavar="N", help="repetitions")
    parser.add_argument("-c", "--context-length", type=int, metavar="N", help="tokens (the least that is needed)")
    parser.add_argument("--threads", type=int, metavar="N", help="threads of llama.cpp (one per physical core)")
    parser.add_argument("--models-dir", type=Path, metavar="FOLDER", help="where converted models lie")
    style = parser.add_mutually_exclusive_group()
    for name in ("json", "md", "csv"):
        style.add_argument(f"--{name}", dest="style", action="store_const", const=name)
    parser.set_defaults(style="text")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LocalqError as error:
        sys.exit(f"{error.message}\n{error.hint}".strip())
    except KeyboardInterrupt:
        sys.exit(130)
