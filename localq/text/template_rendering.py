"""Renders chat templates, as transformers 5 does, in a process of its own: a template is code from a stranger.

jinja2's sandbox forbids changing the values that a template is given, private attributes, and `range` beyond 100,000.
Time, memory and length of the text are limited here: the system ends the process when it needs more.
"""

from __future__ import annotations

import json
import pickle
import resource
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import jinja2
    import jinja2.nodes
    import jinja2.parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

_MOST_CHARACTERS = 1_000_000
"""Of a text, more than twice those of the messages and other values."""
_MOST_REASON_CHARACTERS = 4000
_TEMPLATES_KEPT = 8


def main(descriptor: str, most_seconds: str, most_memory_bytes: str) -> None:
    """Answer requests until the other end of a connection is closed.

    The limits are those of one rendering; the memory is what it takes more than the process does now.

    A request is a pickle of (source, context), an answer a kind and a text in JSON: `text`, or `refused`, `failed` or
    `invalid` with the reason.
    """
    connection = Connection(int(descriptor))
    _environment().from_string("{{ 1 | tojson }}").render()  # imports and memory that every rendering needs
    _limit_memory(int(most_memory_bytes))
    connection.send_bytes(b"ready")
    with suppress(EOFError):
        while True:
            request = connection.recv_bytes()
            signal.setitimer(signal.ITIMER_REAL, float(most_seconds))  # its signal ends the process, also in C code
            source, context = pickle.loads(request)
            answer = _answer(source, context, len(request))
            signal.setitimer(signal.ITIMER_REAL, 0)
            connection.send_bytes(json.dumps(answer).encode())


def _limit_memory(most_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":  # macOS ignores the limit: there the parent looks how much memory the process has
        taken_bytes = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken_bytes + most_bytes,) * 2)


def _answer(source: str, context: Mapping[str, Any], given_bytes: int) -> tuple[str, str]:
    try:
        template = _compiled(source)
    except Exception as error:  # a template may fail in any way
        return "invalid", _reason(error)
    try:
        return "text", _rendered(template, context, _MOST_CHARACTERS + 2 * given_bytes)
    except _TemplateRefusal as error:
        return "refused", str(error)[:_MOST_REASON_CHARACTERS]
    except _TooLong as error:
        return "failed", str(error)
    except MemoryError:
        return "failed", "it needs more memory than a template may take"
    except Exception as error:
        return "failed", f"{type(error).__name__}: {error}"[:_MOST_REASON_CHARACTERS]


def _reason(error: Exception) -> str:
    """Why a template is no Jinja, or what Python can't compile."""
    import jinja2

    kind = "" if isinstance(error, jinja2.TemplateError) else f"{type(error).__name__}: "
    line = getattr(error, "lineno", None)
    return f"{kind}{error}"[:_MOST_REASON_CHARACTERS] + (f" (line {line})" if line else "")


def _rendered(template: jinja2.Template, context: Mapping[str, Any], most_characters: int) -> str:
    pieces, length = [], 0
    for piece in template.generate(context):
        pieces.append(piece)
        length += len(piece)
        if length > most_characters:
            raise _TooLong(f"it writes more than {most_characters:,} characters")
    return "".join(pieces)


@lru_cache(_TEMPLATES_KEPT)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


class _TooLong(Exception):
    """The text is longer than any prompt."""


class _TemplateRefusal(Exception):
    """Raised by the template itself, through `raise_exception`."""


def _raise_exception(message: str) -> None:
    raise _TemplateRefusal(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    x: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes <, > and & for HTML. Templates use these names of parameters.
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class _TemplateDict:
    """`dict` for templates: makes dictionaries, but does not give access to the class."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


@cache
def _environment() -> ImmutableSandboxedEnvironment:
    """Settings, filters and globals as in transformers (utils/chat_template_utils.py)."""
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_block(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _TemplateDict(),
        "namespace": _template_namespace(),
    }
    return environment


def _generation_block() -> type[jinja2.ext.Extension]:
    import jinja2.ext

    class GenerationBlock(jinja2.ext.Extension):
        """`{% generation %}` marks the assistant's text, for training. It is rendered as its content."""

        tags = {"generation"}

        def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            # A call block: variables that are set inside exist only inside, as in transformers.
            return jinja2.nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

        def _content(self, caller: Any) -> Any:
            return caller()

    return GenerationBlock


def _template_namespace() -> type[jinja2.utils.Namespace]:
    import jinja2

    class TemplateNamespace(jinja2.utils.Namespace):
        """Jinja's `namespace` without private names: with those it could imitate a Python protocol."""

        def __init__(*args: Any, **kwargs: Any) -> None:  # without `self`: `namespace(self=...)` is allowed
            namespace, *rest = args
            attributes = dict(*rest, **kwargs)
            for name in attributes:
                _refuse_private(name)
            jinja2.utils.Namespace.__init__(namespace, attributes)

        def __setitem__(self, name: str, value: Any) -> None:
            _refuse_private(name)
            super().__setitem__(name, value)

    return TemplateNamespace


def _refuse_private(name: object) -> None:
    from jinja2.exceptions import SecurityError

    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace can't hold {name!r}")
