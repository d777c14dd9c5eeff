'''The prompt: one message at a time, with history, search, completion, and messages of several lines.

Enter sends; Alt-Enter begins another line; so does Enter after an opening `"""`, until a closing one. A paste is one
message, however long. Up and down walk through the history, Ctrl-R searches it, Tab completes.
'''

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.input import Input

PROMPT, CONTINUATION = ">>> ", "... "
SEND = "f24"
"""The key that stands for an Enter that was typed while no prompt was shown (`localq.chat.terminal`)."""

_QUOTES = '"""'
_MOST_HISTORY_BYTES = 4 << 20
"""Some 50,000 questions; older ones are cut off when a chat begins."""

Complete = Callable[[str], Iterable[str]]
"""From the text before the cursor to what may stand in the place of its last word."""


def without_quotes(text: str) -> str:
    '''The message that was typed: the marks of one of several lines taken off.

    """one
    two"""      is the message "one\\ntwo".
    '''
    stripped = text.strip()
    if stripped.startswith(_QUOTES):
        return stripped.removeprefix(_QUOTES).removesuffix(_QUOTES).strip("\n")
    return text


def is_unfinished(text: str) -> bool:
    """Whether a message of several lines was opened and not closed."""
    stripped = text.strip()
    if not stripped.startswith(_QUOTES):
        return False
    return len(stripped) < 2 * len(_QUOTES) or not stripped.endswith(_QUOTES)


class TerminalPrompt:
    """Asks a person at a terminal."""

    def __init__(self, complete: Complete, history: Path | None) -> None:
        """`history` is the file that keeps what was typed; None keeps nothing."""
        self._session = _session(complete, history)

    @property
    def source(self) -> Input:
        """Where the keys come from."""
        return self._session.input

    def ask(self, prompt: str = PROMPT, default: str = "") -> str:
        """A message. Raises EOFError at Ctrl-D, KeyboardInterrupt at Ctrl-C."""
        return without_quotes(self._session.prompt(prompt, default=default))


class PipedPrompt:
    """Reads a message from each line of stdin; one of several lines stands between triple quotes."""

    source = None

    def ask(self, prompt: str = PROMPT, default: str = "") -> str:
        """The next message. Raises EOFError at the end, UnicodeDecodeError for a line that is not UTF-8."""
        lines = [self._line(prompt)]
        while is_unfinished("\n".join(lines)):
            try:
                lines.append(self._line(CONTINUATION))
            except EOFError:
                break
        return without_quotes("\n".join(lines))

    def _line(self, prompt: str) -> str:
        if sys.stdin.isatty():
            return input(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")


def _session(complete: Complete, history: Path | None) -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    if history is not None:
        _shorten(history)
    return PromptSession(
        multiline=True,
        history=FileHistory(history) if history is not None else InMemoryHistory(),
        completer=_completer(complete),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        key_bindings=_keys(),
        prompt_continuation=CONTINUATION,
        enable_suspend=True,
        enable_history_search=True,
        output=create_output(stdout=sys.stdout if sys.stdout.isatty() else sys.stderr),
    )


def _shorten(file: Path) -> None:
    """Cut the oldest half off a history that has grown too long, and see to it that the file can be written."""
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    if file.exists() and file.stat().st_size > _MOST_HISTORY_BYTES:
        content = file.read_bytes()[-_MOST_HISTORY_BYTES // 2 :]
        file.write_bytes(content[content.find(b"\n# ") :])  # prompt_toolkit begins each entry so
    file.touch(mode=0o600)


def _completer(complete: Complete) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Words(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterable[Completion]:
            before = document.text_before_cursor
            last = before.rsplit(None, 1)[-1] if before and not before[-1].isspace() else ""
            for word in complete(before):
                yield Completion(word, start_position=-len(last))

    return Words()


def _keys() -> Any:
    from prompt_toolkit import search
    from prompt_toolkit.filters import completion_is_selected, is_searching
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter", filter=is_searching, eager=True)
    def _(event: Any) -> None:
        search.accept_search()
        event.app.current_buffer.validate_and_handle()

    @keys.add("enter", filter=~completion_is_selected & ~is_searching)
    def _(event: Any) -> None:
        buffer = event.current_buffer
        # Text behind Enter, all at once: a paste into a terminal that does not mark pastes.
        is_paste = any(key.data.isprintable() and key.data for key in event.key_processor.input_queue)
        if is_paste or is_unfinished(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @keys.add(SEND)
    def _(event: Any) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def matching_files(word: str) -> Sequence[str]:
    """File names that begin with a word, folders with a slash behind."""
    path = Path(word).expanduser()
    folder, start = (path, "") if word.endswith("/") else (path.parent, path.name)
    try:
        found = sorted(child for child in folder.iterdir() if child.name.startswith(start))
    except OSError:
        return []
    kept = word[: len(word) - len(start)]
    return [kept + child.name + ("/" if child.is_dir() else "") for child in found[:200] if " " not in child.name]
