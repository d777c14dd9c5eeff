"""The commands of the chat, as a table: name, values, what it does, and the function that does it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from localq.backends import has_backend
from localq.chat import settings, terminal
from localq.chat.prompt import matching_files
from localq.errors import LocalqError, OptionError
from localq.recipes import DEFAULT_RECIPES, RECIPES, parse_recipe
from localq.store.store import Store
from localq.transcript import list_records, open_transcript

if TYPE_CHECKING:
    from localq.chat.session import Session

_LONGEST_PATH = 255
"""Characters; what is longer is a text, and asking the system for it would fail."""

Values = Callable[[str], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Command:
    """One command."""

    name: str
    values: str
    """As the help shows them."""
    help: str
    run: Callable[[Session, str], None]
    complete: Values = lambda word: ()


def run_command(session: Session, line: str) -> None:
    """Run a line that begins with a slash. Raises LocalqError; EOFError to leave the chat."""
    name, _, value = line.partition(" ")
    name = {"/?": "/help", "/bye": "/exit", "/quit": "/exit", "/regen": "/retry"}.get(name, name)
    command = next((known for known in COMMANDS if known.name == name), None)
    if command is None:
        near = get_close_matches(name, [known.name for known in COMMANDS], 1)
        raise OptionError(f"there is no command {name}", f"did you mean {near[0]}?" if near else "/help lists them")
    if value.strip() and not command.values:
        raise OptionError(f"{name} takes no value, but got {value.strip()!r}", f"{name} alone, or /help")
    command.run(session, value.strip())


def complete(before: str) -> Iterable[str]:
    """What may stand in the place of the last word before the cursor."""
    if not before.startswith("/") or "\n" in before:
        return
    name, space, rest = before.partition(" ")
    if not space:
        yield from (command.name for command in COMMANDS if command.name.startswith(name))
        return
    command = next((known for known in COMMANDS if known.name == name), None)
    word = rest.rsplit(" ", 1)[-1]
    if command is not None:
        yield from (value for value in command.complete(word) if value.startswith(word))


def _help(session: Session, value: str) -> None:
    width = max(len(f"{command.name} {command.values}") for command in COMMANDS) + 2
    lines = [f"{f'{command.name} {command.values}':<{width}}{command.help}" for command in COMMANDS]
    lines += [
        "",
        'Alt-Enter begins another line; so does Enter between """ and """. Tab completes,',
        "Ctrl-R searches what you typed before. Ctrl-C stops a reply, Ctrl-D leaves.",
    ]
    session.say("\n".join(lines))


def _exit(session: Session, value: str) -> None:
    raise EOFError


def _clear(session: Session, value: str) -> None:
    session.change(lambda conversation: conversation.clear())
    session.say("(the conversation is empty; the system message stays)")


def _system(session: Session, value: str) -> None:
    if not value:
        session.say(session.conversation.system or "(no system message)")
        return
    is_name = len(value) <= _LONGEST_PATH and "\n" not in value
    text = _text(Path(value)) if is_name and Path(value).expanduser().is_file() else value
    new = None if value in ("none", '""') else text
    session.change(lambda conversation: setattr(conversation, "system", new))
    session.say("(system message set)" if new else "(no system message)")


def _set(session: Session, value: str) -> None:
    conversation = session.conversation
    if not value:
        session.say("\n".join(settings.describe(conversation.options)) + "\n(* differs from the default)")
        return
    name, _, text = value.partition(" ")
    if not text.strip():
        raise OptionError(
            f"/set {name} has no value", f"for example: /set {name if name in settings.NAMES else 'temp'} 0.8"
        )
    conversation.options = settings.changed(conversation.options, name.strip(), text.strip())
    session.say(f"({name} is {text.strip()} now)")


def _show(session: Session, value: str) -> None:
    model, conversation = session.model, session.conversation
    transcript = conversation.transcript
    facts = {
        "model": model.name,
        "format": model.recipe_name,
        "context": f"{model.context_length:,} tokens",
        "system": conversation.system or "none",
        "messages": len(conversation.messages),
        "template": "none (raw text)" if conversation.raw else "the model's own",
        "kept in": transcript.file if transcript else "nowhere (--no-save)",
    }
    session.say("\n".join(f"{name:<10}{fact}" for name, fact in facts.items()))


def _save(session: Session, value: str) -> None:
    transcript = session.conversation.transcript
    if value:
        session.conversation.save(Path(value).expanduser())
        session.say(f"(saved to {value})")
    elif transcript is not None:
        session.say(f"(every turn is kept already: localq chat --resume {transcript.id})")
    else:
        raise OptionError("/save needs a file", "for example: /save talk.md")


def _load(session: Session, value: str) -> None:
    if not value:
        raise OptionError("/load needs a conversation or a file", "`localq chat --list` lists what is kept")
    record, transcript = open_transcript(value)
    session.change(lambda conversation: conversation.restore(record))
    session.conversation.transcript = transcript if session.conversation.transcript else None
    session.say(f"({len(record.turns)} questions and replies from {record.started[:10]}: {record.first_words})")


def _retry(session: Session, value: str) -> None:
    options = session.conversation.options
    if options.greedy:
        session.say("(at temperature 0 the reply is the same; /set temp 0.8 makes it vary)")
    elif options.seed is not None:
        session.say("(with a seed the reply is the same; /set seed none makes it vary)")
    session.reply(lambda conversation: conversation.retry())


def _undo(session: Session, value: str) -> None:
    exchange = session.change(lambda conversation: conversation.undo())
    session.say(f"(removed: {exchange.question})" if exchange else "(no question yet)")


def _edit(session: Session, value: str) -> None:
    import click

    exchanges = session.conversation.exchanges
    text = click.edit(value or (exchanges[-1].question if exchanges else ""), extension=".md")
    if text is None or not text.strip():
        session.say("(nothing was saved in the editor)")
    else:
        session.next_default = f'"""{text.rstrip()}"""' if "\n" in text.rstrip() else text.rstrip()


def _copy(session: Session, value: str) -> None:
    exchanges = session.conversation.exchanges
    if not exchanges:
        raise OptionError("there is no reply to copy yet")
    how = terminal.copy(exchanges[-1].reply)
    if not how:
        raise LocalqError("the reply could not be copied", "install xclip or wl-clipboard, or use /save FILE")
    session.say(f"({how})")


def _stats(session: Session, value: str) -> None:
    exchanges = session.conversation.exchanges
    known = exchanges[-1].statistics if exchanges else None
    session.say(str(known) if known else "(no reply yet)")


def _tokens(session: Session, value: str) -> None:
    conversation, model = session.conversation, session.model
    used = min(session.change(lambda conversation: conversation.context_tokens), model.context_length)
    line = f"{used:,} of {model.context_length:,} tokens of the context are used ({used / model.context_length:.0%})"
    left = conversation.forgotten
    session.say(f"{line}; no longer in it: {left} of {len(conversation.exchanges)} questions" if left else line)


def _read(session: Session, value: str) -> None:
    if not value:
        raise OptionError("/read needs a file", "for example: /read notes.txt")
    for name in value.split():
        text = _text(Path(name))
        session.files.append(text)
        session.say(f"({name}: {len(text):,} characters, which go before your next question)")


def _continue(session: Session, value: str) -> None:
    session.reply(lambda conversation: conversation.continue_reply())


def _model(session: Session, value: str) -> None:
    if not value:
        session.say("\n".join(models_here(session.models_dir)) or "(nothing is converted yet)")
    else:
        session.switch(value)


def _format(session: Session, value: str) -> None:
    if not value:
        raise OptionError("/format needs a format", "for example: /format mlx, /format gguf, /format gguf-q8_0")
    session.switch(_reference(session, value))
    if session.conversation.exchanges:
        session.next_default = "/retry"


def _compare(session: Session, value: str) -> None:
    exchanges = session.conversation.exchanges
    if not exchanges:
        raise OptionError("there is no question yet", "ask one, then /compare answers it by several formats")
    mine = session.model.recipe_name.partition("-")[0]
    others = value.split() or [name for name in DEFAULT_RECIPES if name.partition("-")[0] != mine]
    session.compare(list(dict.fromkeys([session.reference, *(_reference(session, name) for name in others)])))


def _reference(session: Session, form: str) -> str:
    """The model in another format, by any name that `--to` takes."""
    if form == session.model.recipe_name:  # maybe one that localq can't make, of a file from elsewhere
        return session.reference
    return f"{session.model.name}:{parse_recipe(form).name}"


def models_here(models_dir: Path | None) -> list[str]:
    """References of what is converted here."""
    return [artifact.name for artifact in Store(models_dir).artifacts() if has_backend(artifact.recipe.format)]


def _formats(word: str) -> Iterable[str]:
    return ("mlx", "gguf", *RECIPES)


def _conversations(word: str) -> Iterable[str]:
    return (*(record.id for record in list_records()), *matching_files(word))


def _text(file: Path) -> str:
    try:
        return file.expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"can't read {file}: {getattr(error, 'strerror', None) or 'it is not UTF-8 text'}") from error


COMMANDS: Sequence[Command] = (
    Command("/help", "", "this list (also /?)", _help),
    Command("/exit", "", "leave (also /bye, /quit, Ctrl-D)", _exit),
    Command("/clear", "", "forget the conversation, keep the system message", _clear),
    Command("/system", "[TEXT|FILE]", "show or set the system message; none removes it", _system, matching_files),
    Command("/set", "[NAME VALUE]", "show all options, or change one", _set, lambda word: settings.NAMES),
    Command("/show", "", "model, format, context and where this is kept", _show),
    Command("/save", "[FILE]", "export: FILE.md for people, else JSON lines", _save, matching_files),
    Command("/load", "ID|FILE", "go on with an earlier conversation", _load, _conversations),
    Command("/retry", "", "answer the last question again", _retry),
    Command("/undo", "", "remove the last question and its reply", _undo),
    Command("/edit", "[TEXT]", "write the next question in $EDITOR", _edit),
    Command("/copy", "", "put the last reply on the clipboard", _copy),
    Command("/stats", "", "tokens and rates of the last reply", _stats),
    Command("/tokens", "", "how full the context is", _tokens),
    Command("/read", "FILE...", "put files before the next question", _read, matching_files),
    Command("/continue", "", "go on with a reply that was stopped or cut", _continue),
    Command(
        "/model", "[REF]", "list the models here, or switch to another one", _model, lambda word: models_here(None)
    ),
    Command("/format", "mlx|gguf|RECIPE", "switch the format, keep the conversation", _format, _formats),
    Command("/compare", "[RECIPE...]", "answer the last question by several formats", _compare, _formats),
)
