"""A chat in the terminal: reads a message, runs it as a command or streams the reply, until the end."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from localq.backends import BACKENDS
from localq.chat.commands import complete, run_command
from localq.chat.engine_thread import ReplyThread
from localq.chat.markdown_flow import MarkdownFlow
from localq.chat.prompt import PipedPrompt, TerminalPrompt
from localq.chat.terminal import HeldKeys
from localq.conversation import Conversation, Reply
from localq.errors import LocalqError, PromptTooLongError
from localq.options import GenerationOptions
from localq.reference import parse_reference
from localq.store.names import hint_with_nearest
from localq.transcript import Record, Transcript, new_transcript

if TYPE_CHECKING:
    from concurrent.futures import Future

    from localq.model import Model

_Result = TypeVar("_Result")

Load = Callable[[str], "Model"]
"""Opens a reference; a format that is not there yet is made, which is told on stderr."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """How a chat begins."""

    options: GenerationOptions
    system: str | None = None
    raw: bool = False
    plain: bool = False
    """Write replies as they are, not as Markdown."""
    stats: bool = False
    """Show tokens and rates after each reply."""
    saves: bool = True
    resumed: tuple[Record, Transcript] | None = None
    files: list[str] = field(default_factory=list)
    """Texts that go before the first question."""
    history: Path | None = None
    prompt_cache: Path | None = None
    models_dir: Path | None = None


class Session:
    """What the commands work with."""

    def __init__(self, engine: ReplyThread, load: Load, settings: ChatSettings, *, interactive: bool) -> None:
        self.settings = settings
        self.files = list(settings.files)
        self.models_dir = settings.models_dir
        self.next_default = ""
        """Text that the next prompt begins with."""
        self._engine = engine
        self._load = load
        self._opening: Future[Conversation] | None = None
        self._asked_for = ""  # the reference by which the model was opened
        self._prompt = TerminalPrompt(complete, settings.history) if interactive else PipedPrompt()
        self._is_plain = settings.plain or not sys.stdout.isatty() or os.environ.get("TERM") == "dumb"
        self._told_forgotten = False

    @property
    def conversation(self) -> Conversation:
        """The conversation; waits until the model is loaded."""
        assert self._opening is not None, "open comes first"
        if not self._opening.done() and self._prompt.source is not None:
            self.say("(loading the model)")
        return self._opening.result()

    @property
    def model(self) -> Model:
        """The model that answers now."""
        return self.conversation.model

    @property
    def reference(self) -> str:
        """What opens the model that answers now again."""
        return _path_elsewhere(self.model, self._asked_for) or f"{self.model.name}:{self.model.recipe_name}"

    def open(self, reference: str) -> None:
        """Begin to load a model, in the background."""
        self._asked_for = reference
        self._opening = self._engine.start(lambda: self._opened(reference))

    def wait(self) -> None:
        """Until the model is loaded. Raises what loading raises."""
        assert self._opening is not None, "open comes first"
        self._opening.result()

    def run(self) -> None:
        """Ask and answer until the end of input or /exit. Ctrl-C ends a reply or a line, never the conversation."""
        while True:
            try:
                default, self.next_default = self.next_default, ""
                message = self._prompt.ask(default=default)
                self._take(message)
            except EOFError:
                if self._prompt.source is None and sys.stdin.isatty():
                    self.say("")
                return
            except KeyboardInterrupt:
                if self._prompt.source is None:
                    raise
                self.say("(Ctrl-D or /exit leaves)")
            except UnicodeDecodeError:
                self.say("error: that line is not UTF-8 text")
            except LocalqError as error:
                if self._opening is not None and self._opening.done() and self._opening.exception() is error:
                    raise  # there is no model
                self.tell(error)

    def _take(self, message: str) -> None:
        if message.startswith("/") and "\n" not in message:
            run_command(self, message.strip())
        elif message.strip():
            question = "\n\n".join([*self.files, message])
            self.reply(lambda conversation: conversation.ask(question))
            self.files.clear()

    def say(self, text: str) -> None:
        """Tell something that is not the model's."""
        sys.stderr.write(text + "\n")
        sys.stderr.flush()

    def tell(self, error: LocalqError) -> None:
        """An error and what helps."""
        # Earlier questions leave the context by themselves: what is left is too long.
        is_long = isinstance(error, PromptTooLongError)
        advice = "ask a shorter question, or leave and give a larger context with -c"
        hint = advice if is_long else hint_with_nearest(error, self.models_dir)
        self.say(f"error: {error.message}" + (f"\nhint: {hint}" if hint else ""))

    def change(self, function: Callable[[Conversation], _Result]) -> _Result:
        """Run something with the conversation in the engine's thread, where nothing else happens to it meanwhile."""
        conversation = self.conversation
        return self._engine.run(lambda: function(conversation))

    def reply(self, begin: Callable[[Conversation], Reply]) -> Reply | None:
        """Stream a reply to stdout; None where it was stopped before its first token. `begin` runs in the engine's
        thread, when the model is loaded."""
        opening = self._opening
        assert opening is not None, "open comes first"
        begun: list[Reply] = []

        def start() -> Reply:
            begun.append(begin(opening.result()))
            return begun[0]

        if not opening.done() and self._prompt.source is not None:
            self.say("(loading the model)")
        flow = _PlainFlow() if self._is_plain else MarkdownFlow(_write, _width, has_colour=not _no_colour())
        with HeldKeys(self._prompt.source) as keys:
            try:
                for piece in self._engine.stream(start, keys.saw_ctrl_c):
                    if piece:
                        flow.feed(piece)
                        sys.stdout.flush()
            except KeyboardInterrupt:  # a signal, and no key
                if begun:
                    begun[0].stop()
            finally:
                flow.finish()
                sys.stdout.flush()
        reply = begun[0] if begun else None
        self._tell_outcome(reply)
        return reply if reply and reply.text else None

    def switch(self, reference: str) -> None:
        """Load another model or format in the place of this one, and keep the conversation. Raises LocalqError."""
        conversation, before = self.conversation, self.reference
        parse_reference(reference)  # refuses what is no reference while the earlier model is still open

        def exchange() -> None:
            conversation.model.close()  # first, because both may not fit into the memory
            try:
                conversation.switch(self._load(reference))
            except LocalqError:
                conversation.switch(self._load(before))
                raise
            path = _path_elsewhere(conversation.model, reference)
            if conversation.transcript is not None and path:
                conversation.transcript.append({"type": "model", "path": path})

        self._engine.run(exchange)
        self._asked_for = reference
        self.say(f"({self.model.name}:{self.model.recipe_name}, context {self.model.context_length:,} tokens)")

    def compare(self, references: list[str]) -> None:
        """Answer the last question by each, one after the other; then ask which reply to keep."""
        answers: list[tuple[str, Reply]] = []
        for reference in references:
            if self.reference != reference:
                self.switch(reference)
            self.say(f"--- {self.model.recipe_name} ---")
            reply = self.reply(lambda conversation: conversation.retry(keep=False))
            if reply is None or reply.finish_reason == "interrupted":
                break
            self.say(f"({reply.statistics})")
            answers.append((reference, reply))
        if not answers:
            return
        choices = ", ".join(f"{number} {reply.format}" for number, (_, reply) in enumerate(answers, 1))
        chosen = self._choose(f"keep which? {choices}, Enter: the earlier reply: ", len(answers))
        kept = references[0]
        if chosen is not None:
            kept, reply = answers[chosen]
            self.change(lambda conversation: reply.keep())
        if self.reference != kept:
            self.switch(kept)

    def close(self) -> None:
        """Keep the prompt cache where that is wanted, and close the model."""
        if self._opening is None or not self._opening.done() or self._opening.exception() is not None:
            return
        model, file = self._opening.result().model, self.settings.prompt_cache
        try:
            if file is not None:
                self._engine.run(lambda: model.save_prompt_cache(file))
        finally:
            self._engine.run(model.close)

    def _choose(self, question: str, count: int) -> int | None:
        while True:
            try:
                answer = self._prompt.ask(question).strip()
            except (EOFError, KeyboardInterrupt):
                return None
            if not answer:
                return None
            if answer.isdigit() and 1 <= int(answer) <= count:
                return int(answer) - 1
            self.say(f"a number between 1 and {count}, or nothing")

    def _opened(self, reference: str) -> Conversation:
        settings = self.settings
        model = self._load(reference)
        if settings.prompt_cache is not None and settings.prompt_cache.exists():
            model.load_prompt_cache(settings.prompt_cache)
        if settings.raw is False:
            model.prompt_token_ids("")  # a model without chat template is refused before the first question
        if settings.resumed:
            record, transcript = settings.resumed
            transcript = transcript if settings.saves else None  # type: ignore[assignment]
            conversation = Conversation(model, options=settings.options, raw=settings.raw, transcript=transcript)
            conversation.restore(record)
            if settings.system is not None:
                conversation.system = settings.system
            return conversation
        made_for = model.name, model.recipe_name, settings.system
        kept = new_transcript(*made_for) if settings.saves else None
        if kept is not None and (path := _path_elsewhere(model, reference)):
            kept.append({"type": "model", "path": path})
        return Conversation(model, settings.system, options=settings.options, raw=settings.raw, transcript=kept)

    def _tell_outcome(self, reply: Reply | None) -> None:
        reason = reply.finish_reason if reply else None
        if reason == "length":
            self.say("(cut: the reply reached --max-tokens or the end of the context; /continue goes on)")
        elif reason is None:
            self.say("(stopped)")
        elif reason == "interrupted":
            self.say("(stopped; /continue goes on)")
        if reply and self.conversation.forgotten and not self._told_forgotten:
            self._told_forgotten = True
            self.say("(the context is full: the oldest questions leave it; /tokens shows how full it is)")
        if self.settings.stats and reply and reply.statistics:
            self.say(f"({reply.statistics})")


class _PlainFlow:
    """Writes the text as it is, and a line end."""

    def __init__(self) -> None:
        self._is_empty = True

    def feed(self, text: str) -> None:
        self._is_empty = self._is_empty and not text
        sys.stdout.write(text)

    def finish(self) -> None:
        if not self._is_empty:
            sys.stdout.write("\n")


def _path_elsewhere(model: Model, reference: str) -> str:
    """What opens a model again that was converted elsewhere; empty for one that its name and format lead to."""
    if model.recipe_name not in BACKENDS:
        return ""
    path = Path(reference).expanduser()
    return str(path.resolve()) if path.exists() else reference


def _write(text: str) -> Any:
    return sys.stdout.write(text)


def _width() -> int:
    return shutil.get_terminal_size().columns


def _no_colour() -> bool:
    return bool(os.environ.get("NO_COLOR"))
