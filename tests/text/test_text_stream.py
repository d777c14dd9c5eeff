"""The oracle is a plain search over the whole decoded text, and the tokenizers library's own decoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import OptionError
from localq.text.text_stream import TextStream
from localq.text.tokenizer import decode_tokens, load_tokenizer
from tests.text.conftest import TEXTS


class Pieces:
    """A tokenizer whose token number N is the Nth piece of bytes."""

    strips_leading_space = False
    special_tokens: Mapping[str, str] = {}
    added_tokens: Mapping[str, int] = {}

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.vocabulary_size = len(pieces)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        raise NotImplementedError

    def token_bytes(self, token_id: int) -> bytes:
        return self.pieces[token_id]

    def token_id(self, token: str) -> int | None:
        raise NotImplementedError

    def decode(self, token_ids: Iterable[int]) -> str:
        return decode_tokens(self, token_ids)


def stream_of(*pieces: bytes, stop: Sequence[str] = (), strip_leading_space: bool = False) -> list[str]:
    stream = TextStream(Pieces(pieces), stop, strip_leading_space)
    return [*map(stream.push, range(len(pieces))), stream.finish()]


def cut(text: str, stop: Sequence[str]) -> tuple[str, bool]:
    """The text before the stop string that is complete first, and whether there is one."""
    for end in range(1, len(text) + 1):
        ending = [len(s) for s in stop if text[:end].endswith(s)]
        if ending:
            return text[: end - max(ending)], True
    return text, False


def held_back(text: str, stop: Sequence[str]) -> int:
    """Characters at the end of a text that could begin a stop string."""
    return max((n for s in stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)


CHARACTERS = st.text("ab é€𝄞", max_size=24)
STOPS = st.lists(st.text("ab é€𝄞", min_size=1, max_size=6), max_size=4)


@st.composite
def split_bytes(draw: st.DrawFn) -> list[bytes]:
    """Some UTF-8, valid or with stray bytes in it, in pieces of any length."""
    content = draw(CHARACTERS).encode()
    if draw(st.booleans()):
        at = draw(st.integers(0, len(content)))
        content = content[:at] + draw(st.binary(max_size=3)) + content[at:]
    borders = sorted(draw(st.lists(st.integers(0, len(content)), max_size=12)))
    return [content[a:b] for a, b in zip([0, *borders], [*borders, len(content)], strict=True)]


@settings(max_examples=800)
@given(pieces=split_bytes(), stop=STOPS, strip=st.booleans())
def test_the_joined_text_is_the_whole_text_up_to_the_first_stop_string(
    pieces: list[bytes], stop: list[str], strip: bool
) -> None:
    text = b"".join(pieces).decode(errors="replace")
    expected, stopped = cut(text.removeprefix(" ") if strip else text, stop)
    stream = TextStream(Pieces(pieces), stop, strip)
    released = "".join(map(stream.push, range(len(pieces)))) + stream.finish()
    assert (released, stream.stopped) == (expected, stopped)


@settings(max_examples=400)
@given(text=CHARACTERS, stop=STOPS, data=st.data())
def test_text_that_is_certain_is_not_held_back(text: str, stop: list[str], data: st.DataObject) -> None:
    borders = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b].encode() for a, b in zip([0, *borders], [*borders, len(text)], strict=True)]
    stream = TextStream(Pieces(pieces), stop)
    released = seen = ""
    for token_id, piece in enumerate(pieces):
        released += stream.push(token_id)
        seen += piece.decode()
        expected, stopped = cut(seen, stop)
        assert released == (expected if stopped else expected[: len(expected) - held_back(expected, stop)])


@settings(max_examples=400)
@given(text=CHARACTERS, stop=STOPS, data=st.data())
def test_a_continued_reply_releases_only_what_follows(text: str, stop: list[str], data: st.DataObject) -> None:
    """Also when the reader knows a beginning of a stop string, which a later token completes."""
    pieces = [character.encode() for character in text]
    begun = data.draw(st.integers(0, len(pieces)))
    earlier, later = (TextStream(Pieces(pieces), stop) for _ in range(2))
    known = "".join(map(earlier.push, range(begun))) + earlier.finish()
    later.begin_with(range(begun))
    released = "".join(map(later.push, range(begun, len(pieces)))) + later.finish()
    assert known + released == max(cut(text, stop)[0], known, key=len)


def test_a_character_comes_when_its_last_byte_is_there() -> None:
    assert stream_of(b"\xe2", b"\x82", b"\xac!", b"") == ["", "", "€!", "", ""]


def test_half_a_character_at_the_end_becomes_a_replacement_character() -> None:
    assert stream_of(b"a\xf0\x9d", b"") == ["a", "", "\ufffd"]


def test_a_stop_string_is_not_part_of_the_text() -> None:
    assert stream_of(b"one ", b"two ST", b"OP three", b"four", stop=["STOP"]) == ["one ", "two ", "", "", ""]


def test_text_that_only_looked_like_a_stop_string_is_released() -> None:
    assert stream_of(b"a S", b"TO", b"RE ST", stop=["STOP"]) == ["a ", "", "STORE ", "ST"]


def test_the_stop_string_that_is_complete_first_wins() -> None:
    assert "".join(stream_of(b"abcd", stop=["abcd", "bc"])) == "a"


def test_of_stop_strings_that_end_together_the_longest_wins() -> None:
    assert "".join(stream_of(b"xabc", stop=["c", "abc", "bc"])) == "x"


def test_a_stop_string_may_overlap_a_false_start_of_itself() -> None:
    assert "".join(stream_of(b"aaa", b"ab", b"tail", stop=["aab"])) == "aa"


def test_a_stop_string_may_hold_the_leading_space_only_when_it_is_kept() -> None:
    assert "".join(stream_of(b" x", b"y", stop=[" x"])) == ""
    assert "".join(stream_of(b" x", b"y", stop=[" x"], strip_leading_space=True)) == "xy"


def test_only_the_very_first_space_is_stripped() -> None:
    assert "".join(stream_of(b"", b" ", b" a", b" b", strip_leading_space=True)) == " a b"


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(OptionError, match="no empty string"):
        TextStream(Pieces([]), ["a", ""])


def test_a_stream_gives_what_the_tokenizers_library_decodes(folder: Path) -> None:
    tokenizer = load_tokenizer(folder)
    oracle = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=True)
        stream = TextStream(tokenizer, strip_leading_space=tokenizer.strips_leading_space)
        assert "".join(map(stream.push, ids)) + stream.finish() == oracle.decode(ids)
