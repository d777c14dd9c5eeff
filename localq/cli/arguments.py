"""Flags that several verbs share, described once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from localq.errors import OptionError
from localq.options import GenerationOptions, LoadOptions

NEWEST = "newest"
"""What `--resume` alone stands for."""

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
KvCacheType = Annotated[
    str | None,
    typer.Option("--kv-cache-type", metavar="TYPE", help="Keep the context smaller: q8_0 or q4_0 (default: in full)."),
]
FlashAttention = Annotated[
    bool | None, typer.Option("--flash-attention/--no-flash-attention", help="For llama.cpp (default: its choice).")
]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", metavar="N", help="Prompt tokens in one pass.")]
PromptCache = Annotated[
    Path | None,
    typer.Option("--prompt-cache", metavar="FILE", help="Keep what is computed of the prompt, for the next run."),
]
Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Text that goes before the prompt; repeatable."),
]
System = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System message.")]
MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", metavar="N", help="Most tokens to generate.")]
Temperature = Annotated[float, typer.Option("--temp", "--temperature", metavar="T", help="0 is greedy.")]
TopP = Annotated[float, typer.Option("--top-p", metavar="P", help="Keep the likeliest tokens up to this share.")]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Keep the K likeliest tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", metavar="P", help="Drop tokens below this share of the likeliest.")]
RepeatPenalty = Annotated[float, typer.Option("--repeat-penalty", metavar="X", help="Divide logits of recent tokens.")]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", metavar="X", help="Subtract from logits of recent tokens.")
]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", metavar="X", help="The same, for each time that they occur.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=X", help="Add to the logit of a token; -inf bans it (repeatable)."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Repeat a sampled run exactly.")]
Stop = Annotated[list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the reply here (repeatable).")]


def generation_options(given: Mapping[str, Any]) -> GenerationOptions:
    """The options among a command's arguments, which have the same names."""
    chosen = {name: given[name] for name in GenerationOptions.__dataclass_fields__ if name in given}
    chosen["stop"] = tuple(chosen.get("stop") or ())
    chosen["logit_bias"] = dict(_logit_bias(chosen["logit_bias"] or ()))
    return GenerationOptions(**chosen)


def load_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `LoadOptions` among a command's arguments, which have the same names."""
    return {name: given[name] for name in LoadOptions.__dataclass_fields__ if name in given}


def _logit_bias(texts: Iterable[str]) -> Iterable[tuple[int, float]]:
    for text in texts:
        # llama.cpp writes 15043+1 and 15043-1; an equals sign is what people expect.
        found = re.fullmatch(r"(\d+)(?:=|(?=[+-]))(.+)", text, re.ASCII)
        try:
            if found is None:
                raise ValueError
            yield int(found[1]), float(found[2])
        except ValueError:
            raise OptionError(
                f"--logit-bias is {text!r}; expected a token's id and a number", "for example 15043=-1.5, or 15043=-inf"
            ) from None
