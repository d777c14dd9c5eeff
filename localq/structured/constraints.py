"""What a reply may be: a JSON schema, a regular expression, one of several texts, or a grammar; by llguidance.

The same on every engine: a mask of the tokens that may come next, before each token is drawn. What must come next
(`{"name": "`) is not drawn but appended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from localq.errors import OptionError
from localq.structured.schemas import prepared
from localq.text.tokenizer import utf8_bytes

if TYPE_CHECKING:
    import llguidance
    import numpy as np
    from numpy.typing import NDArray

    from localq.options import GenerationOptions
    from localq.text.tokenizer import Tokenizer

_SPECIAL = b"\xff"
"""How llguidance tells tokens without text from those with text: this byte is not UTF-8."""
_LINE = b"\n"


class Grammars:
    """Makes the constraints of one model's replies. Its vocabulary is read once, when the first one is made."""

    def __init__(self, tokenizer: Tokenizer, end_tokens: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens

    def constraint(self, options: GenerationOptions) -> GrammarConstraint | None:
        """For one reply; None where the options allow anything. Raises OptionError with the reason of a refusal."""
        if options.schema is not None:
            return self._made("schema", _schema_grammar(cast(Mapping[str, Any], options.schema)))
        if options.regex is not None:
            return self._made("regex", options.regex)
        if options.choice:
            return self.lark(f"start: {' | '.join(map(quoted, options.choice))}", "choice")
        return None if options.grammar is None else self.lark(options.grammar)

    def lark(self, text: str, name: str = "grammar") -> GrammarConstraint:
        """A constraint by a grammar in Lark's notation, as llguidance reads it. Raises OptionError."""
        return self._made(name, text)

    def _made(self, name: str, text: str) -> GrammarConstraint:
        import llguidance

        utf8_bytes(text)
        if not self._end_tokens:
            raise OptionError(f"{name}: this model has no end token, so a reply could not end", f"leave {name} out")
        from_regex, from_lark = llguidance.LLMatcher.grammar_from_regex, llguidance.LLMatcher.grammar_from_lark
        grammar = text if name == "schema" else from_regex(text) if name == "regex" else from_lark(text)
        limits = llguidance.LLParserLimits(verbose_errors=False)
        matcher = llguidance.LLMatcher(self._vocabulary, grammar, log_level=0, limits=limits)
        if not matcher.is_error():
            # What can't begin is an error too: a schema that refers to itself alone, an expression that is too large.
            begun = matcher.deep_copy()
            begun.consume_tokens(begun.compute_ff_tokens())
            matcher.compute_bitmask()
            matcher = begun if begun.is_error() else matcher
        if matcher.is_error():
            reason = matcher.get_error().partition("\n<")[0].strip()
            if "coerce_one_of" in reason:
                reason = "oneOf whose parts may fit the same value is not supported; anyOf is"
            elif reason == "NoExtensionBias":
                reason = "no reply can follow it"
            raise OptionError(f"{name} can't be kept: {reason}", "correct it, or make it simpler")
        return GrammarConstraint(matcher, self._tokenizer, self._end_tokens, name)

    @cached_property
    def _vocabulary(self) -> llguidance.LLTokenizer:
        import llguidance

        wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._end_tokens))
        return llguidance.LLTokenizer(wrapper, eos_token=sorted(self._end_tokens))


def quoted(text: str) -> str:
    """A text as a grammar in Lark's notation writes it."""
    return json.dumps(text, ensure_ascii=False)


def _schema_grammar(schema: Mapping[str, Any]) -> str:
    import llguidance

    # With blanks allowed anywhere, small models write nothing else to the end of the context.
    try:
        return llguidance.LLMatcher.grammar_from_json_schema(
            json.dumps(prepared(schema)), overrides={"whitespace_flexible": False, "lenient": False}
        )
    except (TypeError, ValueError, RecursionError) as error:
        raise OptionError(f"schema can't be kept: {error}", "give a JSON schema") from error


class GrammarConstraint:
    """The place of one reply in its grammar. Fulfils `localq.engines.base.Constraint`."""

    def __init__(
        self, matcher: llguidance.LLMatcher, tokenizer: Tokenizer, end_tokens: frozenset[int], name: str
    ) -> None:
        self._matcher = matcher
        self._tokenizer = tokenizer
        self._end_tokens = end_tokens
        self._name = name
        self._is_over = False

    def mask(self) -> NDArray[np.int32] | None:
        """The tokens that may come next, a bit for each; end tokens only where the reply may end."""
        import numpy as np

        packed = self._matcher.compute_bitmask()
        self._check()
        return np.frombuffer(packed, dtype=np.int32)

    def accept(self, token_id: int) -> None:
        """A token was generated."""
        if token_id in self._end_tokens:
            self._is_over = True
            return
        self._matcher.consume_token(token_id)
        self._check()

    def forced(self) -> Sequence[int]:
        """What must come next: the only way to go on, or the end."""
        if self._is_over:
            return ()
        if self._matcher.is_stopped():
            self._check()
            return [self._end]
        ids = self._matcher.compute_ff_tokens()
        self._check()
        # A text such as "<|end|>" must not become the token of that name.
        text = b"".join(map(self._tokenizer.token_bytes, ids))
        is_plain = all(map(self._tokenizer.token_bytes, ids)) and self._matcher.compute_ff_bytes().startswith(text)
        return ids if is_plain else ()

    @property
    def _end(self) -> int:
        named = self._tokenizer.special_tokens.get("eos_token")
        token = self._tokenizer.token_id(named) if named else None
        return token if token in self._end_tokens and token is not None else min(self._end_tokens)

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().strip().partition("\n")[0]
            raise OptionError(f"the reply can't follow its {self._name}: {reason}", f"simplify the {self._name}")


class _Vocabulary:
    """A tokenizer as llguidance's TokenizerWrapper reads it."""

    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, end_tokens: frozenset[int]) -> None:
        numbers = range(tokenizer.vocabulary_size)
        texts = [b"" if number in end_tokens else tokenizer.token_bytes(number) for number in numbers]
        self.eos_token_id = min(end_tokens)
        self.tokens = [text or _SPECIAL + f"<[{number}]>".encode() for number, text in enumerate(texts)]
        self.special_token_ids = [number for number, text in enumerate(texts) if not text]
        self._tokenizer = tokenizer

    def __call__(self, text: str | bytes) -> list[int]:
        """The ids of a piece of text, as they follow other text."""
        text = text if isinstance(text, str) else text.decode()
        if not self._tokenizer.strips_leading_space:
            return self._tokenizer.encode(text, add_special_tokens=False)
        # SentencePiece puts a space before a text: it is given to a line end, and cut off with it.
        ids = self._tokenizer.encode(_LINE.decode() + text, add_special_tokens=False)
        begun = b""
        while ids and not begun.endswith(_LINE):
            begun += self._tokenizer.token_bytes(ids.pop(0))
        return ids
