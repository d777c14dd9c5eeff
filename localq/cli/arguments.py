"""Arguments and flags that several verbs share, described once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from localq.cli.completion import complete_reference
from localq.cli.plain_values import convert_plainly
from localq.errors import OptionError
from localq.options import DEFAULT_CONTEXT_LENGTH_TOKENS, GenerationOptions, LoadOptions

NEWEST = "newest"
"""What `--resume` without a value means."""

Reference = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="org/name[@revision], a folder, a .gguf file or a toy; :FORMAT may follow it.",
        autocompletion=complete_reference,
    ),
]
ModelsDir = Annotated[
    Path | None,
    typer.Option("--models-dir", metavar="DIR", help="Folder of converted models (default: see `localq --help`)."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be deleted, with bytes; delete nothing.")]
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
Files = Annotated[
    list[Path] | None,
    typer.Option("-f", "--file", metavar="FILE", help="Put this file before the prompt (repeatable)."),
]
Raw = Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without chat template.")]
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


class Verb(TyperCommand):
    """A verb whose help writes its arguments as manuals do: `REF`, `REF...`, `[PROMPT]`, `[REF...]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        convert_plainly(self.get_params(ctx))
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """What follows the verb's name in the line of usage."""
        return ["[OPTIONS]", *(name for name, _ in self._arguments())]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the lists of arguments and options."""
        options = [parameter for parameter in self.get_params(ctx) if parameter.param_type_name == "option"]
        records = [record for option in options if (record := option.get_help_record(ctx))]
        for title, rows in (("Arguments", self._arguments()), ("Options", records)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)

    def _arguments(self) -> list[tuple[str, str]]:
        """Name and help of each argument."""
        rows = []
        for parameter in self.params:
            if parameter.param_type_name == "argument":
                name = f"{parameter.metavar}{'' if parameter.nargs == 1 else '...'}"
                rows.append((name if parameter.required else f"[{name}]", getattr(parameter, "help", "")))
        return rows


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
