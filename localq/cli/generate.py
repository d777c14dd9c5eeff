"""`localq generate`: one answer on stdout."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli.output import emit, emit_json, format_rate, say
from localq.errors import OptionError
from localq.options import GenerationOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from localq.generation import Chunk, Completion, GenerationStatistics
    from localq.model import Model, Prompt

_DEFAULTS = GenerationOptions()


def generate(
    ref: flags.Reference,
    prompt: Annotated[str | None, typer.Argument(metavar="[PROMPT]", help="Piped input goes before it.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue plain text, without chat template.")] = False,
    system: flags.System = None,
    max_tokens: flags.MaxTokens = _DEFAULTS.max_tokens,
    temperature: flags.Temperature = _DEFAULTS.temperature,
    top_p: flags.TopP = _DEFAULTS.top_p,
    top_k: flags.TopK = _DEFAULTS.top_k,
    min_p: flags.MinP = _DEFAULTS.min_p,
    repeat_penalty: flags.RepeatPenalty = _DEFAULTS.repeat_penalty,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    stats: Annotated[bool, typer.Option("--stats", help="Tell tokens and rates on stderr.")] = False,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
) -> None:
    """Answer one prompt; a form that was not made yet is made first."""
    options = GenerationOptions(
        max_tokens=max_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        seed=seed,
        stop=tuple(stop or ()),
    )
    messages = _prompt(prompt, system, raw)

    from localq.cli.progress import ByteBar, TerminalListener
    from localq.model import load

    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        model = load(ref, context_length=context_length, threads=threads, models_dir=models_dir, listener=listener)
    with model:
        if json:
            completion = model.generate(messages, raw=raw, options=options)
            emit_json(_record(model, completion))
            statistics = completion.statistics
        else:
            with model.stream(messages, raw=raw, options=options) as chunks:
                statistics = write_stream(chunks)
    if stats:
        say(statistics_line(statistics))


def write_stream(chunks: Iterator[Chunk]) -> GenerationStatistics:
    """Write a reply as it comes, and a line end; returns its statistics."""
    statistics = None
    for chunk in chunks:
        emit(chunk.text, end="")
        statistics = chunk.statistics
    emit("")
    assert statistics is not None
    return statistics


def statistics_line(statistics: GenerationStatistics) -> str:
    """One line for people: tokens and rates."""
    parts = [f"{statistics.prompt_tokens} prompt tokens at {format_rate(statistics.prompt_tokens_per_second)} t/s"]
    if statistics.cached_prompt_tokens:
        parts.append(f"{statistics.cached_prompt_tokens} of them cached")
    parts.append(
        f"{statistics.generated_tokens} generated at {format_rate(statistics.generated_tokens_per_second)} t/s"
    )
    if statistics.time_to_first_token_seconds is not None:
        parts.append(f"first token after {statistics.time_to_first_token_seconds:.2f} s")
    return ", ".join(parts)


def _prompt(argument: str | None, system: str | None, raw: bool) -> Prompt:
    text = argument or ""
    if sys.stdin is not None and not sys.stdin.isatty():
        piped = _read_stdin() if raw else _read_stdin().rstrip("\n")
        text = "\n\n".join(part for part in (piped, text) if part)
    if not text:
        raise OptionError("no prompt", 'for example: localq generate toy-llama "What is the capital of France?"')
    if raw:
        if system is not None:
            raise OptionError("--system needs the chat template, which --raw leaves out", "drop one of the two")
        return text
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, {"role": "user", "content": text}]


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"standard input is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _record(model: Model, completion: Completion) -> dict[str, Any]:
    from localq.measure.machine import peak_memory_bytes

    statistics = completion.statistics
    return {
        "model": model.name,
        "recipe": model.recipe_name,
        "text": completion.text,
        "finish_reason": completion.finish_reason,
        "prompt_token_ids": list(completion.prompt_token_ids),
        "generated_token_ids": list(completion.generated_token_ids),
        "prompt_tokens": statistics.prompt_tokens,
        "cached_prompt_tokens": statistics.cached_prompt_tokens,
        "generated_tokens": statistics.generated_tokens,
        "prompt_seconds": statistics.prompt_seconds,
        "decode_seconds": statistics.decode_seconds,
        "time_to_first_token_seconds": statistics.time_to_first_token_seconds,
        "prompt_tokens_per_second": statistics.prompt_tokens_per_second,
        "generated_tokens_per_second": statistics.generated_tokens_per_second,
        "load_seconds": model.load_seconds,
        "peak_memory_bytes": peak_memory_bytes(),
    }
