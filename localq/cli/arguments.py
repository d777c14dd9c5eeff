"""Flags that several verbs share, described once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Reference = Annotated[
    str, typer.Argument(metavar="REF", help="org/name[@revision], a folder, a .gguf file or a toy; then :RECIPE.")
]
ModelsDir = Annotated[
    Path | None,
    typer.Option("--models-dir", metavar="DIR", help="Where artifacts live (default: LOCALQ_MODELS, or models/)."),
]
Json = Annotated[bool, typer.Option("--json", help="Write JSON to stdout.")]
ContextLength = Annotated[
    int | None,
    typer.Option("-c", "--context-length", metavar="N", help="Tokens of prompt and reply (default: 8192 or less)."),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads for llama.cpp (default: its cores).")
]
System = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System message.")]
MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", metavar="N", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temp", "--temperature", metavar="T", help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="Keep the likeliest tokens up to this share.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", metavar="P", help="Drop tokens below this share of the likeliest.")]
RepeatPenalty = Annotated[float, typer.Option("--repeat-penalty", metavar="X", help="Divide logits of recent tokens.")]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Repeat a sampled run exactly.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the reply here (repeatable).")]
