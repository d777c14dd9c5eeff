"""Tokens per second of models on this machine: `localq bench` for a checkout where the command is not installed.

    python benchmarks/tokens_per_second.py toy-llama toy-phi
    python benchmarks/tokens_per_second.py org/name:mlx-4bit org/name:gguf-q4_k_m -r 10 --json

Needs localq's dependencies, but not localq itself: it uses the checkout that it lies in. README.md beside it
gives the method.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from localq.cli.main import main

if __name__ == "__main__":
    main(["bench", *sys.argv[1:]])
