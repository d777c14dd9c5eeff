"""Messages to one prompt text, by the checkpoint's own chat template, rendered as transformers 5 does.

A template is code from the network. It runs in jinja2's sandbox, in a process of its own with limits of time, memory
and length (`localq.text.template_rendering`).

localq never invents a template: a base model has none.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from localq.disk import reason
from localq.errors import ChatTemplateError, shown
from localq.json_files import read_optional_json
from localq.regular_files import is_there, read_regular
from localq.text.template_process import PROCESS
from localq.text.tokenizer_config import read_special_tokens

_RAW_HINT = "use --raw to send the text without a chat template"
_MESSAGE_HINT = 'each message is {"role": "system", "user" or "assistant", "content": text}'
_MOST_TEMPLATE_BYTES = 4 << 20
"""Of chat_template.jinja; the largest of the public ones have 30 kB."""
_MOST_REASON_CHARACTERS = 500
_ROLES = ("system", "developer", "user", "assistant", "tool", "function", "ipython")
_READS_PARTS = re.compile(r"""\.text\b|["']text["']""")
# Names that programs use for a message's reasoning; templates read the first (gpt-oss: the second).
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """A chat template in Jinja, and the special tokens that it may use."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self.source = source
        self.special_tokens = special_tokens

    def render(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The prompt text for a conversation, as `apply_chat_template` of transformers gives it.

        A message is `{"role": str, "content": str}`; `content` may be a list of parts where the template
        reads one, and may be missing where there are `tool_calls`. `add_generation_prompt` adds what comes before a
        reply. The template gets `variables` by name (`tools`, `documents`, `date_string`, ...).
        Encode the result with `add_special_tokens=False`: the template writes its own. Raises
        ChatTemplateError when the messages are malformed or the template refuses them or fails.
        """
        context = {"tools": None, "documents": None, **self.special_tokens, **_plain(variables)}
        context["messages"] = _checked_messages(messages)
        context["add_generation_prompt"] = add_generation_prompt
        kind, text = PROCESS.render(self.source, context)
        if kind == "text":
            return text
        if kind == "refused":
            hint = f"change the messages (roles and their order), or {_RAW_HINT}"
            raise ChatTemplateError(f"the chat template refuses these messages: {_quoted(text)}", hint)
        what = "failed" if kind == "failed" else "is not valid Jinja"
        hint = f"the checkpoint's template is wrong; {_RAW_HINT}"
        raise ChatTemplateError(f"the chat template {what}: {_quoted(text)}", hint)


def _quoted(text: str) -> str:
    return shown(text, _MOST_REASON_CHARACTERS)


def load_chat_template(folder: Path) -> ChatTemplate | None:
    """The chat template of a Hugging Face folder; None when it has none, like a base model.

    The first of `chat_template.jinja`, `chat_template` in `tokenizer_config.json` (both as in transformers 5), and
    `chat_template.json`, which transformers reads for processors only. Of several named templates the one called
    `default` is used. Raises ChatTemplateError when none of them has this name.
    """
    source = _template_source(folder)
    return None if source is None else ChatTemplate(source, read_special_tokens(folder))


def check_messages(messages: object, template: ChatTemplate) -> None:
    """Raise ChatTemplateError for what a template would render without complaint, and wrongly.

    That is a role that neither programs use nor the template names, and content in parts for a template that reads no
    parts. Also for what `render` refuses.
    """
    for position, message in enumerate(_checked_messages(messages)):
        role = message["role"]
        if role not in _ROLES and not re.search(rf"""["']{re.escape(role)}["']""", template.source):
            nearest = difflib.get_close_matches(role.lower(), _ROLES, 1)
            meant = f": did you mean {nearest[0]!r}?" if nearest else ""
            raise ChatTemplateError(f"messages[{position}] has the unknown role {role!r}{meant}", _MESSAGE_HINT)
        if isinstance(message.get("content"), list) and not _READS_PARTS.search(template.source):
            raise ChatTemplateError(
                f"messages[{position}] has content in parts, and this model's chat template takes one text",
                "join the parts to one string",
            )


def missing_chat_template(model_name: str) -> ChatTemplateError:
    """The refusal of a model without a chat template."""
    return ChatTemplateError(
        f"{model_name} has no chat template: it is a base model, or its files are incomplete",
        "`localq generate --raw` (raw=True) continues plain text",
    )


def _template_source(folder: Path) -> str | None:
    try:
        if is_there(folder / "chat_template.jinja"):
            return read_regular(folder / "chat_template.jinja", _MOST_TEMPLATE_BYTES).decode()
    except (OSError, ValueError) as error:
        message = f"{folder / 'chat_template.jinja'} can't be read: {reason(error)}"
        raise ChatTemplateError(message, "download the file again: `localq pull --verify REPO`") from error
    for name in ("tokenizer_config.json", "chat_template.json"):
        entry = read_optional_json(folder / name).get("chat_template")
        if entry is not None:
            return _default_template(entry, folder / name)
    return None


def _default_template(entry: object, path: Path) -> str:
    if isinstance(entry, str):
        return entry
    try:
        templates = {str(item["name"]): str(item["template"]) for item in entry}  # type: ignore[attr-defined]
    except (TypeError, KeyError) as error:
        message = f"chat_template in {path} is neither a template nor a list of named ones"
        raise ChatTemplateError(message, f"correct {path.name}, or {_RAW_HINT}") from error
    if "default" not in templates:
        message = f"{path} has no chat template called default, only: {', '.join(sorted(templates)) or 'none'}"
        raise ChatTemplateError(message, f"rename one of them to default, or {_RAW_HINT}")
    return templates["default"]


def _checked_messages(messages: object) -> list[dict[str, Any]]:
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise ChatTemplateError(
            f"messages is {messages!r}; expected at least one message",
            'give a list of {"role": ..., "content": ...}',
        )
    return [_checked_message(position, message) for position, message in enumerate(messages)]


def _checked_message(position: int, message: object) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise ChatTemplateError(f"messages[{position}] is {message!r}, not an object", _MESSAGE_HINT)
    fault, content = None, message.get("content")
    if not isinstance(message.get("role"), str):
        fault = "no role"
    elif not isinstance(content, (str, list)) and not message.get("tool_calls"):
        fault = "no content" if content is None else "content that is not text"
    if fault is not None:
        raise ChatTemplateError(f"messages[{position}] has {fault}: {dict(message)!r}", _MESSAGE_HINT)
    # transformers removes keys without a value, so that a template can test `'tool_calls' in message`.
    present = {key: _plain(value) for key, value in message.items() if value is not None}
    reasoning = next((present[key] for key in _REASONING_KEYS if key in present), None)
    if reasoning is None:
        return present
    return {"thinking": reasoning, **present, "reasoning_content": reasoning}


def _plain(value: Any) -> Any:
    """A copy of JSON's types only: a template must not reach the methods of a caller's objects."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_plain(item) for item in value)
    raise ChatTemplateError(
        f"a chat template can't use a {type(value).__name__}: {value!r}",
        "give text, numbers, lists and objects",
    )
