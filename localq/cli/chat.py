"""`localq chat`: a conversation in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localq.chat.terminal import is_interactive, quiet_terminal
from localq.cli import arguments as flags
from localq.cli.completion import complete_reference
from localq.cli.output import emit, say
from localq.errors import OptionError
from localq.options import MOST_BATCH_TOKENS, GenerationOptions, LoadOptions

if TYPE_CHECKING:
    from localq.chat.session import ChatSettings, Session

_DEFAULTS = GenerationOptions()

_Reference = Annotated[
    str | None,
    typer.Argument(
        metavar="REF",
        help="A model; :FORMAT may follow it (default: choose from a list).",
        autocompletion=complete_reference,
    ),
]
_Resume = Annotated[
    str | None,
    typer.Option("--resume", metavar="[ID]", help="Continue an earlier conversation (default: the newest)."),
]


class ChatCommand(flags.Verb):
    """`--resume` may stand alone, for the newest conversation."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """See click."""
        for place, word in enumerate(args):
            if word == "--resume" and (place + 1 == len(args) or args[place + 1].startswith("-")):
                args = [*args[: place + 1], flags.NEWEST, *args[place + 1 :]]
                break
        return super().parse_args(ctx, args)


def chat(
    ref: _Reference = None,
    resume: _Resume = None,
    list_: Annotated[bool, typer.Option("--list", help="List the saved conversations.")] = False,
    no_save: Annotated[bool, typer.Option("--no-save", help="Save neither the conversation nor the history.")] = False,
    files: flags.Files = None,
    raw: flags.Raw = False,
    plain: Annotated[bool, typer.Option("--plain", help="Show replies as they are, not as Markdown.")] = False,
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
    context_length: flags.ContextLength = None,
    threads: flags.Threads = None,
    kv_cache_type: flags.KvCacheType = None,
    flash_attention: flags.FlashAttention = None,
    batch_tokens: flags.BatchTokens = MOST_BATCH_TOKENS,
    prompt_cache: flags.PromptCache = None,
    stats: Annotated[bool, typer.Option("--stats", help="Show tokens and rates after each reply.")] = False,
    models_dir: flags.ModelsDir = None,
) -> None:
    """Talk to a model; /help lists the commands."""
    given = locals()
    if list_:
        _list()
        return
    interactive = is_interactive()
    if interactive:
        with quiet_terminal():  # until the first prompt, nothing that is typed gets lost
            session, reference = _prepare(given)
    else:
        session, reference = _prepare(given)
    try:
        if not interactive or not _is_here(reference, models_dir):
            session.wait()  # a conversion shows its progress, and needs the terminal for it
        session.run()
    finally:
        session.close()


def _prepare(given: Mapping[str, Any]) -> tuple[Session, str]:
    """Check the flags and begin to load the model."""
    from localq.chat.engine_thread import ReplyThread
    from localq.chat.session import Session
    from localq.reference import parse_reference

    settings = _settings(given)
    reference = given["ref"]
    if reference is None:
        reference = _resumed_reference(settings) or _choose(given["models_dir"])
    parse_reference(reference)
    LoadOptions(**flags.load_options(given))  # names a value that no engine takes
    session = Session(ReplyThread(), _loader(given), settings, interactive=is_interactive())
    session.open(reference)
    say(f"{reference}; /help lists the commands, Ctrl-D leaves")
    return session, reference


def _settings(given: Mapping[str, Any]) -> ChatSettings:
    from localq.chat.session import ChatSettings
    from localq.cli.generate import read_file
    from localq.disk import check_writable
    from localq.transcript import conversations_folder, open_transcript

    if given["raw"] and given["system"] is not None:
        raise OptionError("--system needs the chat template, which --raw leaves out", "leave one of them out")
    if given["prompt_cache"] is not None:
        check_writable(given["prompt_cache"], "--prompt-cache", replaced=True)
    resume = given["resume"]
    return ChatSettings(
        options=flags.generation_options(given),
        system=given["system"],
        raw=given["raw"],
        plain=given["plain"],
        stats=given["stats"],
        saves=not given["no_save"],
        resumed=None if resume is None else open_transcript(None if resume == flags.NEWEST else resume),
        files=[read_file(file) for file in given["files"] or []],
        history=None if given["no_save"] else conversations_folder().parent / "chat-history",
        prompt_cache=given["prompt_cache"],
        models_dir=given["models_dir"],
    )


def _loader(given: Mapping[str, Any]) -> Any:
    """Opens a reference with the options that were given."""
    options = {**flags.load_options(given), "needs_chat_template": not given["raw"]}

    def load(reference: str) -> Any:
        from localq.cli.progress import ByteBar, TerminalListener
        from localq.model import load

        with ByteBar() as bar:
            listener = TerminalListener(bar, tell_reused=False)
            return load(reference, models_dir=given["models_dir"], listener=listener, **options)

    return load


def _is_here(text: str, models_dir: Path | None) -> bool:
    """Whether a reference can be opened as it is."""
    from localq.model import chosen_recipe, is_form
    from localq.reference import ForeignForm, parse_reference
    from localq.store.store import Store

    reference = parse_reference(text)
    if reference.kind == "gguf":
        return True
    if isinstance(reference.recipe, ForeignForm):
        return False
    if reference.kind == "folder" and reference.recipe is None and reference.path and is_form(reference.path):
        return True
    return Store(models_dir).find(reference.without_recipe(), chosen_recipe(reference)) is not None


def _resumed_reference(settings: ChatSettings) -> str | None:
    if settings.resumed is None:
        return None
    record, _ = settings.resumed
    return record.reference


def _choose(models_dir: Path | None) -> str:
    """A model that is here, chosen from a list; the toys where there is none."""
    from localq.chat.commands import models_here

    names = models_here(models_dir) or ["toy-llama", "toy-phi"]
    if not is_interactive():
        raise OptionError("no model was given", f"for example: localq chat {names[0]}")
    say("\n".join(f"{number:>3}  {name}" for number, name in enumerate(names, 1)))
    from localq.chat.prompt import TerminalPrompt

    prompt = TerminalPrompt(lambda before: [name for name in names if name.startswith(before)], None)
    while True:
        try:
            answer = prompt.ask("model [1]: ").strip()
        except EOFError:
            raise KeyboardInterrupt from None
        if not answer:
            return names[0]
        if answer.isdigit() and 1 <= int(answer) <= len(names):
            return names[int(answer) - 1]
        if not answer.isdigit():
            return answer
        say(f"a number between 1 and {len(names)}, or a model's name")


def _list() -> None:
    from localq.tables import format_table
    from localq.transcript import conversations_folder, list_records

    rows = [
        [record.id, record.started[:16].replace("T", " "), f"{record.model}:{record.format}", record.first_words]
        for record in list_records()
    ]
    if rows:
        emit(format_table(["id", "started (UTC)", "model", "first words"], rows, 4))
    else:
        say(f"no conversation is kept in {conversations_folder()}")
