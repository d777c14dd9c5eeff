"""`localq chat`: a conversation in the terminal."""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from localq.cli import arguments as flags
from localq.cli.generate import statistics_line
from localq.cli.output import emit, say
from localq.errors import LocalqError, PromptTooLongError
from localq.options import MOST_BATCH_TOKENS, GenerationOptions

if TYPE_CHECKING:
    from localq.generation import GenerationStatistics
    from localq.model import Message, Model

_DEFAULTS = GenerationOptions()
_PROMPT = ">>> "
_HELP = """\
/help    this list
/retry   answer the last question again
/undo    forget the last question and its reply
/clear   forget the conversation, keep the system message
/stats   tokens and rates of the last reply
/exit    leave (also Ctrl-D)
Ctrl-C   stop the reply, or drop the line being typed"""


def chat(
    ref: flags.Reference,
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
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: flags.BatchTokens = MOST_BATCH_TOKENS,
    models_dir: flags.ModelsDir = None,
) -> None:
    """Talk to a model; /help lists the commands."""
    options, load_options = flags.generation_options(locals()), flags.load_options(locals())
    from localq.cli.progress import ByteBar, TerminalListener
    from localq.model import load

    with ByteBar() as bar:
        listener = TerminalListener(bar, tell_reused=False)
        model = load(ref, models_dir=models_dir, listener=listener, **load_options)
    with model:
        model.prompt_token_ids("")  # refuse a model without chat template before the first question
        say(f"{model.name}:{model.recipe_name}, context {model.context_length} tokens; /help for help, Ctrl-D to leave")
        Conversation(model, options, system).run()


class Conversation:
    """The messages so far, and the loop that adds to them."""

    def __init__(self, model: Model, options: GenerationOptions, system: str | None = None) -> None:
        self.model = model
        self.options = options
        self._opening: list[Message] = [{"role": "system", "content": system}] if system is not None else []
        self.messages: list[Message] = list(self._opening)
        self._statistics: GenerationStatistics | None = None

    def run(self) -> None:
        """Read lines until the end of input or /exit. Ctrl-C ends a reply or a line, never the conversation."""
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # line editing and history for input()
        while True:
            try:
                if not self._turn():
                    return
            except KeyboardInterrupt:
                say("\n(Ctrl-D or /exit leaves)")

    def _turn(self) -> bool:
        """Read a line and do what it says; False when the conversation is over."""
        try:
            line = input(_PROMPT) if sys.stdin.isatty() else _next_line()
        except EOFError:
            if sys.stdin.isatty():
                say("")
            return False
        except UnicodeDecodeError:
            say("error: that line is not UTF-8 text")
            return True
        if line.startswith("/"):
            return self._command(line.strip())
        if line.strip():
            self.ask(line)
        return True

    def ask(self, text: str) -> None:
        """Put a question and stream the reply; a reply that Ctrl-C cut short is kept as far as it came."""
        question = {"role": "user", "content": text}
        reply: list[str] = []
        try:
            with self.model.stream([*self.messages, question], options=self.options) as chunks:
                for chunk in chunks:
                    emit(chunk.text, end="")
                    reply.append(chunk.text)
                    self._statistics = chunk.statistics or self._statistics
            emit("")
            if chunk.finish_reason == "length":
                say("(cut: the reply reached --max-tokens or the end of the context)")
        except KeyboardInterrupt:
            emit("")
            say("(stopped)")
        except LocalqError as error:
            hint = "/clear starts again" if isinstance(error, PromptTooLongError) else error.hint
            say(f"error: {error.message}" + (f"\nhint: {hint}" if hint else ""))
            return
        if reply:
            self.messages += [question, {"role": "assistant", "content": "".join(reply)}]

    def retry(self) -> None:
        """Put the last question again; its reply is kept until a new one begins."""
        exchange = self._take_back()
        if not exchange:
            say("(no question yet)")
            return
        if self.options.greedy:
            say("(at temperature 0 the reply is the same; --temp 0.8 makes it vary)")
        elif self.options.seed is not None:
            say("(with --seed the reply is the same; without it replies vary)")
        kept = len(self.messages)
        self.ask(exchange[0]["content"])
        if len(self.messages) == kept:
            self.messages += exchange

    def undo(self) -> None:
        """Forget the last question and its reply."""
        exchange = self._take_back()
        say(f"(forgotten: {exchange[0]['content']})" if exchange else "(no question yet)")

    def _take_back(self) -> list[Message]:
        """Take the last question and its reply out of the conversation; empty where there is none."""
        start = max(len(self.messages) - 2, len(self._opening))
        exchange = self.messages[start:]
        del self.messages[start:]
        return exchange

    def _command(self, line: str) -> bool:
        if line == "/help":
            say(_HELP)
        elif line == "/retry":
            self.retry()
        elif line == "/undo":
            self.undo()
        elif line == "/clear":
            self.messages = list(self._opening)
            say("(forgotten)")
        elif line == "/stats":
            say(statistics_line(self._statistics) if self._statistics else "(no reply yet)")
        elif line in ("/exit", "/bye", "/quit"):
            return False
        else:
            say(f"unknown command {line}; /help lists them")
        return True


def _next_line() -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\n")
