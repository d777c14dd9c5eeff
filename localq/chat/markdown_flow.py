"""Markdown as it streams, on a terminal where nothing that was written is ever written again.

The cursor never moves up: a word appears when it is complete, wrapped at the width that the window has then; a line of
code when it is complete; a table at its end. So resizing, slow connections and scrolling back harm nothing. What kind
a line is, its first characters decide. Text is taken character by character, so that pieces of any size give the same.
Knows no model and no keyboard.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

_LONGEST_SPAN = 120
"""Characters of bold text, inline code and the like that are held back until they are closed."""

_BOLD, _ITALIC, _UNDERLINE, _STRIKE, _DIM, _CODE, _HEADING = "1", "3", "4", "9", "2", "36", "1;34"
_FIRST_COLOUR = 30
"""Codes from here on are colours, which NO_COLOR leaves out."""

_UNDECIDED = re.compile(r" *(#{0,6}|[-*_+]*|\d{0,3}[.)]?|`{0,2}|~{0,2}|>)$")
_HEADING_START = re.compile(r" {0,3}#{1,6} ")
_ITEM_START = re.compile(r"( *)([-*+]|\d{1,3}[.)]) ")
_QUOTE_START = re.compile(r" {0,3}> ?(?=[^ ]|$)")
_FENCE = re.compile(r" *(`{3,}|~{3,})(.*)$")
_RULE = re.compile(r" {0,3}([-*_])\1{2,} *$")

_SPANS = (
    (re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)"), _CODE),
    (re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1(?!\*)"), _BOLD),
    (re.compile(r"([*_])(?=[^\s*_])(.+?)(?<=[^\s*_])\1(?![*_])"), _ITALIC),
    (re.compile(r"(~~)(?=\S)(.+?)(?<=\S)\1"), _STRIKE),
)
_LINK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")
_MARKS = "*_`~["
_CODE_COLOURS = {
    "Keyword": "35",
    "Name.Function": "1",
    "Name.Class": "1",
    "Literal.String": "32",
    "Literal.Number": "36",
    "Comment": _DIM,
}


@dataclass(slots=True)
class _Words:
    """Wraps words at the window's width; remembers the column."""

    write: Callable[[str], object]
    width: Callable[[], int]
    has_colour: bool
    column: int = 0
    indent: int = 0
    """Of lines that follow from wrapping."""
    lead: str = ""
    """Begins such lines, within the indent: the bar of a quotation."""
    gap: str = ""
    word: list[tuple[str, str]] = field(default_factory=list)
    """Characters with their style, not yet written."""

    def add(self, text: str, style: str = "") -> None:
        """Text without line ends, in one style."""
        for character in text:
            if character == " ":
                self.flush()
                self.gap += " "
            elif unicodedata.east_asian_width(character) in "WF":
                self.flush()
                self.word.append((character, style))
                self.flush()
            else:
                self.word.append((character, style))

    def flush(self) -> None:
        """Write the word, on the next line where this one has no room for it."""
        if not self.word:
            return
        size = _columns("".join(character for character, _ in self.word))
        width = max(self.width() - 1, 1)  # the last column makes some terminals wrap by themselves
        if self.column > self.indent and self.column + len(self.gap) + size > width:
            self.next_line()
        else:
            self.write(self.gap)
            self.column += len(self.gap)
        self.gap = ""
        self._write_word(width)
        self.word.clear()

    def _write_word(self, width: int) -> None:
        style = ""
        for character, wanted in self.word:
            if self.column + _columns(character) > width and self.column > self.indent:
                self.write(self._switch(style, ""))
                self.next_line()
                style = ""
            self.write(self._switch(style, wanted) + character)
            style, self.column = wanted, self.column + _columns(character)
        self.write(self._switch(style, ""))

    def next_line(self) -> None:
        """Begin the next line of the same paragraph."""
        self.write("\n" + self.lead + " " * (self.indent - len(self.lead)))
        self.column = self.indent

    def end_line(self) -> None:
        """End the line and what belongs to it."""
        self.flush()
        self.write("\n")
        self.column = self.indent = 0
        self.gap = self.lead = ""

    def _switch(self, style: str, wanted: str) -> str:
        if not self.has_colour:
            style, wanted = _without_colour(style), _without_colour(wanted)
        if style == wanted:
            return ""
        return ("\x1b[0m" if style else "") + (f"\x1b[{wanted}m" if wanted else "")


class MarkdownFlow:
    """Takes a reply in pieces of any size and writes it."""

    def __init__(self, write: Callable[[str], object], width: Callable[[], int], *, has_colour: bool = True) -> None:
        """`width` gives the window's columns now; without colours, bold and italics stay."""
        self._write = write
        self._words = _Words(write, width, has_colour)
        self._has_colour = has_colour
        self._line = ""  # the beginning of a line whose kind is not decided, or a whole line that is collected
        self._handle: Callable[[str], None] = self._begin_line
        self._inline = ""
        self._before = " "  # the character before what is held in `_inline`
        self._style = ""
        self._fence = ""
        self._lexer: Any = None
        self._table: list[str] = []

    def feed(self, text: str) -> None:
        """The next piece."""
        for character in text:
            if character != "\r":
                self._handle(character)

    def finish(self) -> None:
        """The reply is over: write what is held back, and end the line."""
        if self._line or self._handle not in (self._begin_line, self._in_code):
            self._handle("\n")
        self._end_table()

    def _begin_line(self, character: str) -> None:
        """Collect the characters that decide what kind of line it is."""
        if character == "\n":
            line, self._line = self._line, ""
            self._end_table()
            if _RULE.match(line):
                self._write("─" * min(self._words.width() - 1, 40))
                self._words.end_line()
            else:
                self._text(line.strip() and line)
                self._end_line("\n")
            return
        self._line += character
        if self._line.lstrip(" ").startswith("|"):
            self._handle = self._in_table
        elif _FENCE.match(self._line):
            self._end_table()
            self._handle = self._in_fence_line
        elif not _UNDECIDED.match(self._line) or len(self._line) > _LONGEST_SPAN:
            self._end_table()
            self._decide()

    def _decide(self) -> None:
        line, self._line = self._line, ""
        self._handle = self._in_line
        if found := _HEADING_START.match(line):
            self._style = _HEADING
        elif found := _ITEM_START.match(line):
            mark = found[2] if found[2][0].isdigit() else "•"
            self._words.add(f"{found[1]}{mark} ")
            self._words.flush()
            self._words.indent = len(found[1]) + len(mark) + 1
        elif found := _QUOTE_START.match(line):
            self._style = _DIM
            self._words.lead, self._words.indent = "│", 2
            self._words.add("│ ")
        self._text(line[found.end() :] if found else line)

    def _text(self, text: str) -> None:
        for character in text:
            self._in_line(character)

    def _in_line(self, character: str) -> None:
        """Text in a line; holds back what may be bold, italic or code until that is decided."""
        if character == "\n":
            self._end_line(character)
            return
        self._inline += character
        self._write_spans(is_over=False)

    def _end_line(self, _: str) -> None:
        self._write_spans(is_over=True)
        self._words.end_line()
        self._before, self._style, self._handle = " ", "", self._begin_line

    def _write_spans(self, *, is_over: bool) -> None:
        """Give to the words what is decided at the beginning of what is held back."""
        while self._inline:
            text = self._inline
            plain = next((place for place, character in enumerate(text) if character in _MARKS), len(text))
            # Whether a span is closed, the character behind it decides: it may belong to the mark.
            length = self._closed_span(text)
            if plain:
                self._take(plain)
            elif length is not None and (is_over or length < len(text)):
                self._take_span(length)
            elif is_over or len(text) > _LONGEST_SPAN or not self._may_open(text):
                self._take(len(text) - len(text.lstrip(text[0])))
            else:
                return

    def _may_open(self, text: str) -> bool:
        """Whether a mark at the beginning of `text` can begin a span."""
        if text[0] in "`[":
            return True
        is_within = self._before.isalnum() and (text[0] == "_" or self._before.isdigit())
        return not is_within and text.lstrip(text[0])[:1] != " "

    def _closed_span(self, text: str) -> int | None:
        """Length of the span that `text` begins with; None where it is not closed."""
        for pattern, _ in (*_SPANS, (_LINK, _UNDERLINE)):
            if (found := pattern.match(text)) and self._may_open(text):
                return found.end()
        return None

    def _take_span(self, length: int) -> None:
        text, self._inline = self._inline[:length], self._inline[length:]
        self._before = text[-1]
        if link := _LINK.match(text):
            self._words.add(link[1], _joined(self._style, _UNDERLINE))
            self._words.add(f" ({link[2]})", self._style)
            return
        found, style = next((match, style) for pattern, style in _SPANS if (match := pattern.match(text)))
        if style == _CODE:
            inner = found[2].strip() or found[2]
            self._words.add(inner if self._has_colour else f"`{inner}`", _joined(self._style, style))
        else:
            self._nested(found[2], _joined(self._style, style))

    def _nested(self, text: str, style: str) -> None:
        """The inside of a span, which may have spans of its own."""
        outer, held, before = self._style, self._inline, self._before
        self._style, self._inline, self._before = style, text, " "
        self._write_spans(is_over=True)
        self._style, self._inline, self._before = outer, held, before

    def _take(self, count: int) -> None:
        text, self._inline = self._inline[:count], self._inline[count:]
        self._before = text[-1]
        self._words.add(text, self._style)

    def _in_fence_line(self, character: str) -> None:
        if character != "\n":
            self._line += character
            return
        found = _FENCE.match(self._line)
        if found is None or found[1][0] in found[2]:  # inline code that fills a line
            line, self._line = self._line, ""
            self._text(line)
            self._end_line("\n")
            return
        self._fence = found[1]
        self._lexer = _lexer(found[2].strip()) if self._has_colour else None
        self._code_line(self._line, _DIM)
        self._line, self._handle = "", self._in_code

    def _in_code(self, character: str) -> None:
        if character != "\n":
            self._line += character
            return
        line, self._line = self._line, ""
        stripped = line.strip()
        if stripped and not stripped.strip(self._fence[0]) and len(stripped) >= len(self._fence):
            self._code_line(line, _DIM)
            self._handle = self._begin_line
        else:
            self._code_line(line, "")

    def _code_line(self, line: str, style: str) -> None:
        if style:
            self._write(f"\x1b[{style}m{line}\x1b[0m\n")
        else:
            self._write((_highlighted(line, self._lexer) if self._lexer else line) + "\n")

    def _in_table(self, character: str) -> None:
        if character != "\n":
            self._line += character
            return
        self._table.append(self._line)
        self._line, self._handle = "", self._begin_line
        rows = max(len(self._table) - 2, 0)
        self._write(f"\r\x1b[{_DIM}m(table: {rows} rows)\x1b[0m\x1b[K")

    def _end_table(self) -> None:
        if self._table:
            lines, self._table = self._table, []
            self._write("\r\x1b[K" + _rendered_table(lines, self._words.width() - 1, self._has_colour))


def _rendered_table(lines: list[str], width: int, has_colour: bool) -> str:
    """A Markdown table with lines, by rich; as it is where it is none."""
    rows = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))] for line in lines]
    if len(rows) < 2 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1]):
        return "".join(line + "\n" for line in lines)
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for name, rule in zip(rows[0], rows[1], strict=False):
        justify: Any = "center" if rule[0] == rule[-1] == ":" else "right" if rule[-1] == ":" else "left"
        table.add_column(_cell(name, has_colour), justify=justify, overflow="fold")
    for row in rows[2:]:
        cells = (row + [""] * len(rows[0]))[: len(rows[0])]
        table.add_row(*(_cell(cell.replace(r"\|", "|"), has_colour) for cell in cells))
    console = Console(width=max(width, 10), force_terminal=True, no_color=not has_colour, highlight=False)
    with console.capture() as captured:
        console.print(table)
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


def _cell(text: str, has_colour: bool) -> Any:
    """A cell's text with its spans, for rich."""
    from rich.text import Text

    written: list[str] = []
    flow = MarkdownFlow(written.append, lambda: 1 << 20, has_colour=has_colour)
    flow._text(text)
    flow._end_line("\n")
    return Text.from_ansi("".join(written).rstrip("\n"))


def _highlighted(line: str, lexer: Any) -> str:
    parts = []
    for kind, text in lexer.get_tokens(line):
        name = str(kind).removeprefix("Token.")
        code = next((code for prefix, code in _CODE_COLOURS.items() if name.startswith(prefix)), "")
        text = text.removesuffix("\n")
        parts.append(f"\x1b[{code}m{text}\x1b[0m" if code and text else text)
    return "".join(parts)


def _lexer(name: str) -> Any:
    """pygments' lexer of a language; None for an unknown one."""
    from pygments.lexers import get_lexer_by_name
    from pygments.util import ClassNotFound

    try:
        return get_lexer_by_name(name.split()[0].strip("{}.").lower(), stripnl=False, ensurenl=False) if name else None
    except (ClassNotFound, IndexError):
        return None


def _joined(*styles: str) -> str:
    return ";".join(filter(None, styles))


def _without_colour(style: str) -> str:
    return _joined(*(code for code in style.split(";") if code and int(code) < _FIRST_COLOUR))


def _columns(text: str) -> int:
    from wcwidth import wcswidth

    return max(wcswidth(text), 0)
