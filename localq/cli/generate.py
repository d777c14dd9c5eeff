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
_Logprobs = Annotated[
    int | None,
    typer.Option("--logprobs", metavar="N", help="With --json: log-probabilities of tokens and N alternatives."),
]


def generate(
    ref: flags.Reference,
    prompt: Annotated[str | None, typer.Argument(metavar="PROMPT", help="Piped text and files go before it.")] = None,
    files: flags.Files = None,
    raw: Annotated[bool, typer.Option("--raw", help="Continue the text as it is, without chat template.")] = False,
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
    """Answer one prompt; convert the model first if needed."""
    options, load_options = flags.generation_options(locals()), flags.load_options(locals())
    _require_json(json, logprobs)
    messages = _messages(_prompt_text(prompt, files or [], raw), system, raw)

    from localq.cli.progress import ByteBar, TerminalListener
    from localq.model import load

    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        model = load(ref, models_dir=models_dir, listener=listener, needs_chat_template=not raw, **load_options)
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


def write_stream(chunks: Iterator[Chunk]) -> GenerationStatistics:
    """Write a reply as it comes, and a line end; returns its statistics."""
    statistics = None
    for chunk in chunks:
        emit(chunk.text, end="")
        statistics = chunk.statistics
    emit("")
    assert statistics is not None
    return statistics


def _require_json(json: bool, logprobs: int | None) -> None:
    if logprobs is not None and not json:
        raise OptionError(f"--logprobs {logprobs} shows nothing without --json", "add --json")


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


def _prompt_text(argument: str | None, files: Sequence[Path], raw: bool) -> str:
    """Piped text, files and the argument, in this order, with an empty line between."""
    given = [read_file(file) for file in files]
    if sys.stdin is not None and not sys.stdin.isatty():
        given.insert(0, _decoded(sys.stdin.buffer.read(), "standard input"))
    if not raw:
        given = [text.rstrip("\n") for text in given]
    text = "\n\n".join(part for part in (*given, argument or "") if part)
    if not text:
        raise OptionError("no prompt", 'for example: localq generate toy-llama "What is the capital of France?"')
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
