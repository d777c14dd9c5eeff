"""Markdown that streams: the same for any pieces, never wider than the window, and never written twice."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wcwidth import wcswidth

from localq.chat.markdown_flow import MarkdownFlow

REPLY = """# A heading with `code`

A paragraph with **bold words**, *italics*, `inline code`, snake_case_name, 2 * 3 * 4, and a [link](https://x.org/a).

- one item which is quite long and must wrap with an indent on its second line, if the window is narrow
  - nested **item**
1. first
2. second

> a quotation that goes on and on until it wraps, and begins its next line with a bar

```python
def hello(name: str) -> None:
    print(f"hello {name}", 42)  # a comment
```

| name | count |
|------|------:|
| **one** | 1 |
| two | 22 |

日本語の文章はどこでも折り返すことができますので、これは折り返されるはずです。
---
The end, **not closed and *so on.
"""
CODES = re.compile(r"\x1b\[[0-9;]*[mK]")


def written(pieces: list[str], width: int = 60, *, has_colour: bool = True) -> str:
    out: list[str] = []
    flow = MarkdownFlow(out.append, lambda: width, has_colour=has_colour)
    for piece in pieces:
        flow.feed(piece)
    flow.finish()
    return "".join(out)


def shown(text: str, width: int = 60) -> str:
    """What stands on the screen in the end, without styles."""
    lines = CODES.sub("", written([text], width)).split("\n")
    return "\n".join(line.rpartition("\r")[2].rstrip() for line in lines)


def in_pieces(text: str, seed: int) -> list[str]:
    draw, pieces = random.Random(seed), []
    while text:
        length = draw.randint(1, 9)
        pieces.append(text[:length])
        text = text[length:]
    return pieces


@pytest.mark.parametrize("seed", range(20))
def test_pieces_of_any_size_give_the_same(seed: int) -> None:
    assert written(in_pieces(REPLY, seed)) == written([REPLY])


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_line_of_text_is_wider_than_the_window(width: int) -> None:
    is_code = False
    for line in shown(REPLY, width).splitlines():
        is_code ^= line.startswith("```")
        assert is_code or wcswidth(line) < width


def test_the_cursor_never_moves_up() -> None:
    codes = set(re.findall(r"\x1b\[[0-9;]*([A-Za-z])", written([REPLY])))
    assert codes <= {"m", "K"}


def test_lists_headings_and_quotations_look_so() -> None:
    text = shown(REPLY, 60)
    assert "A heading with code\n" in text
    assert "\n• one item which is quite long and must wrap with an indent\n  on its second" in text
    assert "\n  • nested item\n1. first\n2. second\n" in text
    assert "\n│ a quotation that goes on and on until it wraps, and\n│ begins its next" in text
    assert "snake_case_name, 2 * 3 * 4, and a link (https://x.org/a)." in text
    assert "The end, **not closed and *so on." in text


def test_a_table_is_aligned_at_its_end() -> None:
    assert "name   count\n────────────\none        1\ntwo       22\n" in shown(REPLY)


def test_what_only_begins_like_a_table_stays_as_it_is() -> None:
    assert shown("| no table\n| at all\n") == "| no table\n| at all\n"


def test_code_keeps_every_character_and_is_coloured_line_by_line() -> None:
    assert 'def hello(name: str) -> None:\n    print(f"hello {name}", 42)  # a comment\n```' in shown(REPLY, 20)
    assert "\x1b[35mdef\x1b[0m" in written([REPLY])
    assert shown("```nolanguage\nx  y\n") == "```nolanguage\nx  y\n"


def test_without_colours_bold_stays_and_code_keeps_its_marks() -> None:
    text = written([REPLY], has_colour=False)
    assert "\x1b[1mbold\x1b[0m" in text
    assert "`inline code`" in CODES.sub("", text)
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("**a** b", "\x1b[1ma\x1b[0m b\n"),
        ("a **b *c* d** e", "a \x1b[1mb\x1b[0m \x1b[1;3mc\x1b[0m \x1b[1md\x1b[0m e\n"),
        ("***a***", "\x1b[1;3ma\x1b[0m\n"),
        ("`` a`b ``", "\x1b[36ma`b\x1b[0m\n"),
        ("5*3 and 4*2", "5*3 and 4*2\n"),
        ("a_b_c", "a_b_c\n"),
        ("* * *", "• * *\n"),
        ("", ""),
        ("\n\nx", "\n\nx\n"),
        ("-", "-\n"),
        ("1985", "1985\n"),
        ("#hash", "#hash\n"),
        ("```", "\x1b[2m```\x1b[0m\n"),
        ("`" * 4 + " x", "\x1b[2m```` x\x1b[0m\n"),
    ],
)
def test_marks(text: str, expected: str) -> None:
    assert written([text]) == expected


@given(st.text(alphabet="ab *_`~#->|[]()1.\n\\日", max_size=300), st.integers(10, 80))
@settings(max_examples=300)
def test_no_letter_is_lost_whatever_comes(text: str, width: int) -> None:
    out = CODES.sub("", written([text], width)).replace("(table:", "")
    for letter in "ab日":
        assert out.count(letter) >= text.count(letter)
