"""`localq generate`: one answer on stdout."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.cli import arguments as flags
from localq.cli.output import emit, emit_json, say
from localq.errors import OptionError
from localq.options import MOST_BATCH_TOKENS, GenerationOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from localq.generation import Chunk, Completion, GenerationStatistics, TokenLogprobs
    from localq.model import Model, Prompt

_DEFAULTS = GenerationOptions()
_Prompt = Annotated[
    str | None, typer.Argument(metavar="PROMPT", help="Piped text and files go before it; - is piped text alone.")
]
_NoStdin = Annotated[
    bool, typer.Option("--no-stdin", help="Read no piped text: for loops over a pipe (cmd | while read line).")
]
_Logprobs = Annotated[
    int | None,
    typer.Option("--logprobs", metavar="N", help="With --json: log-probabilities of tokens and N alternatives."),
]

_Schema = Annotated[
    Path | None, typer.Option("--schema", metavar="FILE", help="Answer with JSON by the JSON schema in this file.")
]
_Regex = Annotated[
    str | None, typer.Option("--regex", metavar="R", help="Answer with a text that matches this expression.")
]
_Choice = Annotated[
    str | None, typer.Option("--choice", metavar="A,B", help="Answer with one of these texts, with commas between.")
]


def generate(
    ref: flags.Reference,
    prompt: _Prompt = None,
    files: flags.Files = None,
    raw: flags.Raw = False,
    no_stdin: _NoStdin = False,
    system: flags.System = None,
    max_tokens: flags.MaxTokens = _DEFAULTS.max_tokens,
    temperature: flags.Temperature = _DEFAULTS.temperature,
    top_p: flags.TopP = _DEFAULTS.top_p,
    top_k: flags.TopK = _DEFAULTS.top_k,
    min_p: flags.MinP = _DEFAULTS.min_p,
    repeat_penalty: flags.RepeatPenalty = _DEFAULTS.repeat_penalty,
    presence_penalty: flags.PresencePenalty = _DEFAULTS.presence_penalty,
    frequency_penalty: flags.FrequencyPenalty = _DEFAULTS.frequency_penalty,
    logit_bias: flags.LogitBias = None,
    seed: flags.Seed = None,
    stop: flags.Stop = None,
    logprobs: _Logprobs = None,
    schema: _Schema = None,
    regex: _Regex = None,
    choice: _Choice = None,
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: flags.BatchTokens = MOST_BATCH_TOKENS,
    prompt_cache: flags.PromptCache = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print tokens and rates on stderr.")] = False,
    models_dir: flags.ModelsDir = None,
    json: flags.Json = False,
) -> None:
    """Answer one prompt; convert the model first if needed.

    Piped text goes before PROMPT: git diff | localq generate REF "Summarise this." In a loop over a pipe give
    --no-stdin, or the first prompt takes all lines of the pipe. A loop over a file does not need it.
    """
    options, load_options = _options(locals()), flags.load_options(locals())
    messages = _messages(_prompt_text(prompt, _piped_text(prompt, no_stdin), files or [], raw), system, raw)
    model = _loaded(ref, models_dir=models_dir, needs_chat_template=not raw, **load_options)
    with model, _kept_prompt(model, prompt_cache):
        if json:
            completion = model.generate(messages, raw=raw, options=options)
            emit_json(_record(model, completion))
            statistics = completion.statistics
        else:
            with model.stream(messages, raw=raw, options=options) as chunks:
                statistics = write_stream(chunks)
    if stats:
        say(str(statistics))


def _loaded(ref: str, **options: Any) -> Model:
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.model import load

    with ByteBar() as bar:
        return load(ref, listener=TerminalListener(bar, tell_reused=False), **options)


def write_stream(chunks: Iterator[Chunk]) -> GenerationStatistics:
    """Write a reply as it comes, and a line end; returns its statistics."""
    statistics = None
    for chunk in chunks:
        emit(chunk.text, end="")
        statistics = chunk.statistics
    emit("")
    assert statistics is not None
    return statistics


def _options(given: dict[str, Any]) -> GenerationOptions:
    if given["logprobs"] is not None and not given["json"]:
        raise OptionError(f"--logprobs {given['logprobs']} shows nothing without --json", "add --json")
    schema, choice = given["schema"], given["choice"]
    form = {"schema": schema and read_file(schema), "choice": () if choice is None else tuple(choice.split(","))}
    return flags.generation_options(given | form)


@contextmanager
def _kept_prompt(model: Model, file: Path | None) -> Iterator[None]:
    from localq.disk import check_writable

    if file is not None:
        check_writable(file, "--prompt-cache")
        if file.exists():
            model.load_prompt_cache(file)
    yield
    if file is not None:
        model.save_prompt_cache(file)


def _piped_text(prompt: str | None, no_stdin: bool) -> str | None:
    """What stdin has for the prompt; None where it is not read."""
    if no_stdin and prompt == "-":
        raise OptionError("the prompt - is standard input, which --no-stdin leaves out", "leave one of them out")
    is_read = not no_stdin and sys.stdin is not None and (prompt == "-" or _is_meant(prompt is not None))
    return _decoded(sys.stdin.buffer.read(), "standard input") if is_read else None


def _is_meant(has_prompt: bool) -> bool:
    """Whether stdin holds text for the prompt: not a terminal and, beside a prompt, no file that is partly read.

    `while read line; do localq generate REF "$line"; done < FILE` shares its open file with us; the shell has read it
    up to the end of the line. With a pipe nothing distinguishes such a loop from `git diff | localq generate REF TEXT`.
    """
    if sys.stdin.isatty():
        return False
    try:
        return not has_prompt or sys.stdin.buffer.tell() == 0
    except OSError:  # a pipe has no position
        return True


def _prompt_text(argument: str | None, piped: str | None, files: Sequence[Path], raw: bool) -> str:
    """Piped text, files and the argument, in this order, with an empty line between; the argument - is piped text."""
    given = [read_file(file) for file in files]
    if piped is not None:
        given.insert(len(given) if argument == "-" else 0, piped)
    if not raw:
        given = [text.rstrip("\n") for text in given]
    if argument is not None and argument != "-":
        given.append(argument)
    text = "\n\n".join(part for part in given if part)
    if not text.strip():
        what = "there is no prompt" if argument is None and piped is None else "the prompt is blank"
        raise OptionError(what, 'for example: localq generate toy-llama "What is the capital of France?"')
    return text


def _messages(text: str, system: str | None, raw: bool) -> Prompt:
    if raw:
        if system is not None:
            raise OptionError("--system needs the chat template, which --raw leaves out", "leave one of them out")
        return text
    messages = [{"role": "system", "content": system}] if system is not None else []
    return [*messages, {"role": "user", "content": text}]


def read_file(file: Path) -> str:
    """A text file. Raises OptionError for what can't be read, or is not UTF-8."""
    try:
        return _decoded(file.read_bytes(), str(file))
    except OSError as error:
        raise OptionError(f"can't read {file}: {error.strerror}") from error


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise OptionError(f"{name} is not UTF-8 text: {error.reason} at byte {error.start}") from error


def _record(model: Model, completion: Completion) -> dict[str, Any]:
    from localq.hardware import peak_memory_bytes

    statistics = completion.statistics
    record = {
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
    if completion.logprobs is not None:
        record["logprobs"] = [_logprobs_record(model, logprobs) for logprobs in completion.logprobs]
    return record


def _logprobs_record(model: Model, logprobs: TokenLogprobs) -> dict[str, Any]:
    def one(token_id: int, logprob: float) -> dict[str, Any]:
        text = model.tokenizer.token_bytes(token_id).decode(errors="replace")
        return {"token_id": token_id, "text": text, "logprob": logprob}

    return {**one(logprobs.token_id, logprobs.logprob), "top": [one(*alternative) for alternative in logprobs.top]}
