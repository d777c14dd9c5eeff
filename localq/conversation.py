"""A conversation with a model: system message, exchanges, a context that does not end, and a transcript.

Shared by the chat, the Python API and the server. Knows no terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from localq.disk import write_text
from localq.errors import OptionError
from localq.generation import Chunk, FinishReason, GenerationStatistics, first_words
from localq.keywords import named_options
from localq.options import GenerationKeywords, GenerationOptions, chosen_options
from localq.transcript import Event, Record, Transcript, as_lines, header_event, read_record, turn_event

if TYPE_CHECKING:
    from localq.model import Model
    from localq.turns import ReplyStream

_REPLY_SHARE = 4
"""One part in so many of the context is kept free for a reply, or `max_tokens` where that is less."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and its reply."""

    question: str
    reply: str
    finish_reason: FinishReason = "stop"
    token_ids: tuple[int, ...] = ()
    """Of the reply, without its end token; empty where they are not known."""
    statistics: GenerationStatistics | None = None
    model: str = ""
    format: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the reply was stopped or cut, so that it can be continued."""
        return self.finish_reason != "stop"

    @property
    def messages(self) -> list[dict[str, str]]:
        """As a chat template takes them."""
        return [{"role": "user", "content": self.question}, {"role": "assistant", "content": self.reply}]


class Conversation:
    """Ask, and read the reply piece by piece; the exchange is kept when the reply ends.

        conversation = localq.Conversation(model, "Be brief.", temperature=0.7)
        for chunk in conversation.ask("What is the capital of France?"):
            print(chunk, end="", flush=True)
        print(conversation.ask("And of Italy?").read())
        conversation.save("capitals.jsonl")

    When the next turn would not fit into the context, the oldest exchanges leave it, down to half of the context, so
    that this happens rarely; the system message stays. They stay in `exchanges` and in the transcript.

    `exchanges` has the questions with their replies and statistics. `options` may be replaced between two turns.
    """

    @named_options(GenerationOptions)
    def __init__(
        self,
        model: Model,
        system: str | None = None,
        *,
        options: GenerationOptions | None = None,
        raw: bool = False,
        transcript: Transcript | None = None,
        **changes: Unpack[GenerationKeywords],
    ) -> None:
        """`system` is the system message. `raw` continues plain text without a chat template or system message.

        `options` holds many options at once; those that are given by name count more. With a `transcript`
        (`localq.transcript.new_transcript`) every exchange is written to disk at once. Raises OptionError.
        """
        if raw and system is not None:
            raise OptionError(
                "a system message needs the chat template, which raw text has none of", "drop one of them"
            )
        self.model = model
        self.options = chosen_options(options, changes)
        self.raw = raw
        self.exchanges: list[Exchange] = []
        self.transcript = transcript
        self._system = system
        self._first = 0  # exchange in the context

    def __repr__(self) -> str:
        count = len(self.exchanges)
        said = f"{count} exchange" if count == 1 else f"{count} exchanges"
        forgotten = f", {self.forgotten} of them no longer in the context" if self.forgotten else ""
        return f"<Conversation with {self.model.name}:{self.model.recipe_name}, {said}{forgotten}>"

    @property
    def system(self) -> str | None:
        """The system message; setting it changes the turns to come."""
        return self._system

    @system.setter
    def system(self, text: str | None) -> None:
        if self.raw and text is not None:
            raise OptionError("raw text has no system message")
        self._system = text
        self._write({"type": "system", "content": text})

    @property
    def messages(self) -> list[dict[str, str]]:
        """All messages, also those that left the context."""
        return self._messages(0)

    @property
    def forgotten(self) -> int:
        """Exchanges that no longer fit into the context."""
        return self._first

    @property
    def context_tokens(self) -> int:
        """Tokens of the context that the conversation takes now."""
        return len(self._ids(self._first, None)) if self.exchanges or self._system is not None else 0

    def ask(self, question: str, *, keep: bool = True) -> Reply:
        """Begin a reply; iterate over it, or `read` it whole. With `keep` false only `Reply.keep` keeps the exchange.

        Raises OptionError for a question that is not text, else as `Model.stream`; reading raises PromptTooLongError
        where the question alone does not fit.
        """
        if not isinstance(question, str):
            raise OptionError(f"question is {question!r}; expected text")
        return Reply(self, question, self._stream(question), keep=keep)

    def retry(self, *, keep: bool = True) -> Reply:
        """Answer the last question again; the earlier reply is kept until the new one begins.

        Raises OptionError where nothing was asked yet.
        """
        last = self._last()
        earlier = self.exchanges.pop()
        try:
            return Reply(self, last.question, self._stream(last.question), replaces=1, keep=keep)
        finally:
            self.exchanges.append(earlier)

    def continue_reply(self) -> Reply:
        """Go on with a reply that was stopped or cut. Raises OptionError where the last one is complete."""
        last = self._last()
        if not last.is_open:
            raise OptionError("the last reply is complete: there is nothing to continue")
        self.exchanges.pop()
        try:
            begun = last.token_ids or tuple(self.model.tokenize(last.reply))
            shown = replace(last, reply=last.reply.removesuffix("\ufffd"))  # half a character, which is completed now
            return Reply(self, last.question, self._stream(last.question, begun), begun=(shown, begun), replaces=1)
        finally:
            self.exchanges.append(last)

    def undo(self) -> Exchange | None:
        """Remove the last exchange and return it; None where there is none."""
        if not self.exchanges:
            return None
        self._write({"type": "undo"})
        exchange = self.exchanges.pop()
        self._first = min(self._first, len(self.exchanges))
        return exchange

    def clear(self) -> None:
        """Remove all exchanges; the system message stays."""
        self._write({"type": "clear"})
        self.exchanges.clear()
        self._first = 0

    def switch(self, model: Model) -> None:
        """Go on with another model or format; the caller closes the earlier one."""
        if model.name != self.model.name:  # another tokenizer: its ids mean nothing here
            self.exchanges = [replace(exchange, token_ids=()) for exchange in self.exchanges]
        self.model = model
        self._first = 0

    def save(self, file: Path | str) -> None:
        """Write a transcript, or Markdown where the name ends in `.md`. Raises LocalqError."""
        file = Path(file)
        if file.suffix.lower() == ".md":
            write_text(file, self.to_markdown())
        else:
            header = header_event(file.stem, self.model.name, self.model.recipe_name, self._system)
            write_text(file, as_lines([header, *map(self._turn_event, self.exchanges)]))

    def to_markdown(self) -> str:
        """The whole conversation, for people."""
        system = [f"> {line}" for line in self._system.splitlines()] if self._system else []
        parts = [f"# {self.model.name}:{self.model.recipe_name}", *(["\n".join(system)] if system else [])]
        for exchange in self.exchanges:
            parts += ["## You", exchange.question, "## Model", exchange.reply]
        return "\n\n".join(parts) + "\n"

    def restore(self, record: Record) -> None:
        """Take up what a transcript says."""
        self._system = record.system
        self.exchanges = [_exchange(turn, self.model.name) for turn in record.turns]
        self._first = 0

    @classmethod
    @named_options(GenerationOptions)
    def load(
        cls,
        file: Path | str,
        model: Model,
        *,
        options: GenerationOptions | None = None,
        **changes: Unpack[GenerationKeywords],
    ) -> Conversation:
        """A conversation that `save` wrote as a transcript. Options as for a new one. Raises LocalqError."""
        conversation = cls(model, options=options, **changes)
        conversation.restore(read_record(Path(file)))
        return conversation

    def _last(self) -> Exchange:
        if not self.exchanges:
            raise OptionError("there is no question yet")
        return self.exchanges[-1]

    def _stream(self, question: str, begun: tuple[int, ...] = ()) -> ReplyStream:
        ids = self._fitting_ids(question, len(begun))
        return self.model.stream_ids(ids, self.options, begun=begun, raw=self.raw)

    def _fitting_ids(self, question: str, begun_tokens: int) -> list[int]:
        """The prompt's ids; lets the oldest exchanges leave the context where the turn would not fit."""
        context = self.model.context_length
        room = min(self.options.max_tokens, max(context // _REPLY_SHARE, 1))
        ids = self._ids(self._first, question)
        if len(ids) + begun_tokens + room <= context:
            return ids
        first = self._first
        while first < len(self.exchanges) and len(ids) + begun_tokens > context // 2:
            first += 1
            ids = self._ids(first, question)
        if len(ids) + begun_tokens < context:  # else the engine will refuse it: nothing is forgotten in vain
            self._first = first
        return ids

    def _ids(self, first: int, question: str | None) -> list[int]:
        if self.raw:
            parts = [part for exchange in self.exchanges[first:] for part in (exchange.question, exchange.reply)]
            return self.model.prompt_token_ids("".join([*parts, question or ""]), raw=True)
        asked = [] if question is None else [{"role": "user", "content": question}]
        return self.model.prompt_token_ids([*self._messages(first), *asked])

    def _messages(self, first: int) -> list[dict[str, str]]:
        system = [] if self._system is None else [{"role": "system", "content": self._system}]
        return system + [message for exchange in self.exchanges[first:] for message in exchange.messages]

    def _write(self, *events: Event) -> None:
        if self.transcript is not None:
            self.transcript.append(*events)

    def _turn_event(self, exchange: Exchange) -> Event:
        defaults = GenerationOptions()
        names = [field.name for field in fields(defaults)]
        chosen = {name: value for name in names if (value := getattr(self.options, name)) != getattr(defaults, name)}
        if "logit_bias" in chosen:  # JSON has texts as keys, and no infinity
            chosen["logit_bias"] = {str(token): str(bias) for token, bias in self.options.logit_bias.items()}
        details: dict[str, Any] = {
            "options": chosen,
            "statistics": asdict(exchange.statistics) if exchange.statistics else None,
            "token_ids": list(exchange.token_ids),
        }
        return turn_event(exchange.messages, exchange.model, exchange.format, exchange.finish_reason, details)

    def _keep(self, exchange: Exchange, replaces: int) -> None:
        """Put an exchange at the end, in the place of the `replaces` newest ones."""
        if replaces:
            del self.exchanges[-replaces:]
        self.exchanges.append(exchange)
        self._write(*[{"type": "undo"}] * replaces, self._turn_event(exchange))


class Reply(Iterator[Chunk]):
    """A reply as it comes. When it ends, or is closed, the exchange is kept, unless no token came.

    `str()` of it is what has come so far.
    """

    def __init__(
        self,
        conversation: Conversation,
        question: str,
        stream: ReplyStream,
        *,
        begun: tuple[Exchange, tuple[int, ...]] | None = None,
        replaces: int = 0,
        keep: bool = True,
    ) -> None:
        self.question = question
        self.statistics: GenerationStatistics | None = None
        """Known at the end."""
        self.finish_reason: FinishReason | None = None
        self._conversation = conversation
        self._stream = stream
        self._texts = [begun[0].reply] if begun else []
        self._begun = begun[1] if begun else ()
        self._ids: list[int] = []
        self._replaces = replaces
        self._keeps = keep
        self._model = conversation.model

    @property
    def format(self) -> str:
        """Of the model that answers."""
        return self._model.recipe_name

    @property
    def text(self) -> str:
        """What has come so far, with what a continued reply began with."""
        return "".join(self._texts)

    def __repr__(self) -> str:
        return f"<Reply {first_words(self.text)!r}, {self.finish_reason or self._stream.state}>"

    def __str__(self) -> str:
        return self.text

    def read(self) -> str:
        """Read to the end; returns the whole text."""
        for _ in self:
            pass
        return self.text

    def __next__(self) -> Chunk:
        try:
            chunk = next(self._stream)
        except StopIteration:
            self._finish()
            raise
        self._texts.append(chunk.text)
        self._ids += chunk.token_ids
        self.statistics = chunk.statistics or self.statistics
        self.finish_reason = chunk.finish_reason or self.finish_reason
        return chunk

    def stop(self) -> None:
        """End the reply at its next token; may be called from another thread. The last chunk brings the statistics."""
        self._stream.stop()

    def give_up(self) -> None:
        """As `stop`, and keep nothing."""
        self._keeps = False
        self.stop()

    def close(self) -> None:
        """Stop at once, and keep what came."""
        self._stream.close()
        self._finish()

    def keep(self) -> None:
        """Make the exchange part of the conversation."""
        finish_reason = self.finish_reason or "interrupted"
        ids = self._ids
        if finish_reason == "stop" and ids and ids[-1] in self._model.end_tokens:
            ids = ids[:-1]
        name, recipe = self._model.name, self._model.recipe_name
        exchange = Exchange(
            self.question, self.text, finish_reason, (*self._begun, *ids), self.statistics, name, recipe
        )
        self._conversation._keep(exchange, self._replaces)

    def _finish(self) -> None:
        if self._keeps and self._ids:
            self._keeps = False
            self.keep()

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _exchange(turn: Event, model_name: str) -> Exchange:
    """Of a transcript's line; token ids of another model's tokenizer are left out."""
    question, reply = (message["content"] for message in turn["messages"])
    statistics = turn.get("statistics")
    ids = turn.get("token_ids") or () if turn.get("model") == model_name else ()
    return Exchange(
        question,
        reply,
        turn.get("finish_reason", "stop"),
        tuple(ids),
        GenerationStatistics(**statistics) if statistics else None,
        turn.get("model", ""),
        turn.get("format", ""),
    )
