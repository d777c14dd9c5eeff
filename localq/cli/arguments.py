"""Arguments and flags that several verbs share, described once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from localq.errors import OptionError
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS, GenerationOptions, LoadOptions

Reference = Annotated[
    str,
    typer.Argument(metavar="REF", help="org/name[@revision], a folder, a .gguf file or a toy; :FORMAT may follow it."),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option("--models-dir", metavar="DIR", help="Folder of converted models (default: see `localq --help`)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ContextLength = Annotated[
    int | None,
    typer.Option(
        *("-c", "--context-length"),
        metavar="N",
        help=f"Most tokens of prompt and reply (default: {DEFAULT_CONTEXT_LENGTH_TOKENS}, or the model's limit).",
    ),
]
Threads = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads, for GGUF (default: one per physical core).")
]
KvCacheType = Annotated[
    str | None,
    typer.Option("--kv-cache-type", metavar="TYPE", help="Quantize the context in memory: q8_0 or q4_0."),
]
FlashAttention = Annotated[
    bool | None, typer.Option("--flash-attention/--no-flash-attention", help="For GGUF (default: llama.cpp decides).")
]
BatchTokens = Annotated[int, typer.Option("--batch-tokens", metavar="N", help="Prompt tokens computed in one pass.")]
PromptCache = Annotated[
    Path | None,
    typer.Option("--prompt-cache", metavar="FILE", help="Save the computed prompt here, and reuse it in the next run."),
]
System = Annotated[str | None, typer.Option("-s", "--system", metavar="TEXT", help="System message.")]
MaxTokens = Annotated[int, typer.Option("-n", "--max-tokens", metavar="N", help="Generate at most N tokens.")]
Temperature = Annotated[
    float, typer.Option("--temp", "--temperature", metavar="T", help="How random; 0 takes the most likely token.")
]
TopP = Annotated[
    float, typer.Option("--top-p", metavar="P", help="Keep the most likely tokens that reach probability P together.")
]
TopK = Annotated[int, typer.Option("--top-k", metavar="K", help="Keep the K most likely tokens; 0 keeps all.")]
MinP = Annotated[float, typer.Option("--min-p", metavar="P", help="Drop tokens below P times the most likely one.")]
RepeatPenalty = Annotated[
    float, typer.Option("--repeat-penalty", metavar="X", help="Divide the logits of recent tokens by X.")
]
PresencePenalty = Annotated[
    float, typer.Option("--presence-penalty", metavar="X", help="Subtract X from the logits of recent tokens.")
]
FrequencyPenalty = Annotated[
    float, typer.Option("--frequency-penalty", metavar="X", help="Subtract X for each time that they occur.")
]
LogitBias = Annotated[
    list[str] | None,
    typer.Option("--logit-bias", metavar="ID=X", help="Add X to the logit of token ID; -inf bans it (repeatable)."),
]
Seed = Annotated[int | None, typer.Option("--seed", metavar="N", help="Get the same reply in each run.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", metavar="TEXT", help="End the reply before this text (repeatable).")
]


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
