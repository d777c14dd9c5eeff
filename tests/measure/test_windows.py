"""Windows of a text, as llama-perplexity cuts them: `perplexity` and `kl_divergence` of its perplexity.cpp."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest

from localq.errors import OptionError
from localq.measure.windows import Text, cut_windows, decode_text, first_difference, read_text
from localq.reference import parse_reference
from localq.text.tokenizer import HuggingFaceTokenizer, load_tokenizer

WORDS = " ".join(f"The fox number {number} walked to the river." for number in range(60))


@pytest.fixture(scope="module", params=["toy-llama", "toy-phi"])
def tokenizer(request: pytest.FixtureRequest) -> HuggingFaceTokenizer:
    """Byte-level BPE, and SentencePiece style; both put a beginning-of-text token in front."""
    folder = parse_reference(request.param).path
    assert folder is not None
    return load_tokenizer(folder)


class PlainTokenizer(HuggingFaceTokenizer):
    """One that puts nothing in front."""

    def __init__(self, other: HuggingFaceTokenizer) -> None:
        super().__init__(other._backend, other.special_tokens)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        return super().encode(text, add_special_tokens=False)


def text_of(content: str) -> Text:
    return Text("some text", content, "")


def llama_perplexity_windows(ids: list[int], size: int, begin: int | None) -> list[list[int]]:
    """Its loop: windows side by side over what the text became, the first token of each replaced."""
    windows = []
    for start in range(0, len(ids) // size * size, size):
        window = ids[start : start + size]
        windows.append(window if begin is None else [begin, *window[1:]])
    return windows


@pytest.mark.parametrize("size", [2, 7, 64])
def test_windows_are_those_of_llama_perplexity(tokenizer: HuggingFaceTokenizer, size: int) -> None:
    begin = tokenizer.token_id(tokenizer.special_tokens["bos_token"])
    ids = tokenizer.encode(WORDS, add_special_tokens=True)
    found = cut_windows(text_of(WORDS), tokenizer, size, 10**6)
    assert [list(window) for window in found.tokens] == llama_perplexity_windows(ids, size, begin)
    assert found.begin_token == begin
    assert ids[0] == begin


def test_nothing_is_put_in_front_where_the_tokenizer_puts_nothing(tokenizer: HuggingFaceTokenizer) -> None:
    plain = PlainTokenizer(tokenizer)
    ids = plain.encode(WORDS, add_special_tokens=True)
    found = cut_windows(text_of(WORDS), plain, 16, 32)
    assert [list(window) for window in found.tokens] == llama_perplexity_windows(ids, 16, None)[:32]
    assert found.begin_token is None


def test_the_last_newline_is_dropped_as_by_llama_cpp(tokenizer: HuggingFaceTokenizer) -> None:
    one, other, two = (cut_windows(text_of(WORDS + end), tokenizer, 4, 10**6) for end in ("", "\n", "\n\n\n"))
    assert one == other
    assert len(two.tokens) >= len(one.tokens)


def test_windows_are_full_and_not_more_than_wanted(tokenizer: HuggingFaceTokenizer) -> None:
    count = len(tokenizer.encode(WORDS, add_special_tokens=True))
    assert len(cut_windows(text_of(WORDS), tokenizer, 16, 3).tokens) == 3
    assert len(cut_windows(text_of(WORDS), tokenizer, count, 32).tokens) == 1
    with pytest.raises(OptionError, match=f"some text has {count:,} tokens; one window needs {count + 1:,}") as caught:
        cut_windows(text_of(WORDS), tokenizer, count + 1, 32)
    assert "--text" in caught.value.hint and "--window" in caught.value.hint


def test_special_tokens_in_the_text_are_found(tokenizer: HuggingFaceTokenizer) -> None:
    end = tokenizer.special_tokens["eos_token"]
    assert cut_windows(text_of(WORDS), tokenizer, 16, 32).special_tokens == ()
    assert cut_windows(text_of(f"The fox.{end} {WORDS}"), tokenizer, 16, 32).special_tokens == (end,)
    # After the last window it does not matter.
    assert cut_windows(text_of(f"{WORDS} {WORDS} {end}"), tokenizer, 16, 32).special_tokens == ()


def test_the_end_of_a_long_text_that_no_window_needs_is_not_read(tokenizer: HuggingFaceTokenizer) -> None:
    data = (WORDS * 50).encode()
    text = decode_text("long", data + b"\xff", 16)
    assert len(text.content) < len(data) / 10
    assert text.sha256 == hashlib.sha256(data + b"\xff").hexdigest()
    assert cut_windows(text, tokenizer, 8, 2) == cut_windows(text_of(WORDS * 50), tokenizer, 8, 2)


def test_a_character_that_is_cut_in_two_is_no_error() -> None:
    for length in range(1000, 1010):
        text = decode_text("long", ("x" * length + "é" * 2000).encode(), 16)
        assert set(text.content) == {"x", "é"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"abc\xff", "text.txt is not UTF-8: byte 0xff at 3"),
        ("é".encode()[:1], "byte 0xc3 at 0"),
        (None, "can't read .*text.txt: No such file"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(data: bytes | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    if data is not None:
        file.write_bytes(data)
    with pytest.raises(OptionError, match=message) as caught:
        read_text(file, 512)
    assert "--text" in caught.value.hint


def test_a_dash_is_standard_input(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text(WORDS, encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(WORDS.encode())))
    piped, read = read_text(Path("-"), 512), read_text(file, 512)
    assert (piped.content, piped.sha256) == (read.content, read.sha256) == (WORDS, read.sha256)
    assert (piped.name, read.name) == ("standard input", str(file))


def test_the_first_token_that_differs_is_named(tokenizer: HuggingFaceTokenizer) -> None:
    windows = cut_windows(text_of(WORDS), tokenizer, 16, 32)
    assert first_difference(windows, windows) is None
    other = cut_windows(text_of(WORDS.replace("river", "bridge")), tokenizer, 16, 32)
    said = first_difference(windows, other)
    assert said is not None
    number, index = next(
        (number, index)
        for number, pair in enumerate(zip(windows.tokens, other.tokens, strict=False))
        for index, (one, two) in enumerate(zip(*pair, strict=True))
        if one != two
    )
    one, two = windows.tokens[number][index], other.tokens[number][index]
    assert said == f"token {index} of window {number + 1} is {one} in the one and {two} in the other"
    fewer = cut_windows(text_of(WORDS), tokenizer, 16, 2)
    assert (
        first_difference(windows, fewer) == f"the text has {len(windows.tokens)} windows in the one and 2 in the other"
    )
