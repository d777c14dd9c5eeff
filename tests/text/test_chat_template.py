"""The oracle is transformers 5: render_jinja_template, and AutoTokenizer's apply_chat_template for folders."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from localq.errors import ChatTemplateError, CheckpointError
from localq.text.chat_template import ChatTemplate, load_chat_template

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}

LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now("%d %b %Y") if strftime_now is defined else "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{{- system_message + "<|eot_id|>" }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
    {%- endfor %}
{%- endif %}
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {{- message.tool_calls[0].function.arguments | tojson }}
    {%- else %}
        {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' + message.content | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

PHI_3 = (
    "{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}"
    "{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% else %}"
    "{{'<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

EVERYTHING = """{# whitespace, namespaces, loops, refusals, generation blocks #}
{% set ns = namespace(turn=0, last='none') %}
{% set table = dict(user='U', assistant='A') %}
{% for message in messages %}
    {% if message.role == 'system' %}
        {% continue %}
    {% endif %}
    {% if (message.role == 'user') != (ns.turn % 2 == 0) %}
        {{ raise_exception('turns must alternate, not ' ~ message.role ~ ' & "quotes"') }}
    {% endif %}
  {%+ if loop.first %}first {% endif +%}
    {% set ns.turn = ns.turn + 1 %}
    {% set ns.last = message.role %}
    {{- loop.index0 }}:{{ table.get(message.role, '?') }}:
    {%- if message.role == 'assistant' %}
        {% generation %}
            {% set inside = 'leaks' %}
            {{- message.content | upper }}
        {% endgeneration %}
        {{ inside is defined }}
    {% else %}
        {{- message.content | tojson(ensure_ascii=True) }}{{ {'b': 1, 'a': '<é>'} | tojson(sort_keys=true) }}
        {{- [1, 2] | tojson(separators=(',', ':')) }}
    {% endif %}
    {% if ns.turn > 5 %}{% break %}{% endif %}
{% endfor %}
{{ ns.last }} {{ documents is none }} {{ undefined_name }} {{ reasoning_style | default('no style') }}
{% for message in messages if message.thinking is defined %}[{{ message.reasoning_content }}]{% endfor %}
"""

CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one user message": [{"role": "user", "content": ' Hi <there> & "you" é\n'}],
    "a longer conversation": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello", "tool_calls": None, "thinking": "hm"},
        {"role": "user", "content": "And 日本語?"},
    ],
    "a tool call": [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "w", "arguments": {"city": "Köln", "n": 1.5}}}],
        },
    ],
}
TOOL = {"type": "function", "function": {"name": "w", "description": "Gets <weather>", "parameters": {}}}


def oracle(source: str, messages: list[dict[str, Any]], **variables: Any) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    # apply_chat_template itself drops the keys without a value.
    present = [{key: value for key, value in message.items() if value is not None} for message in messages]
    rendered: list[str] = render_jinja_template([present], chat_template=source, **SPECIAL, **variables)[0]
    return rendered[0]


@pytest.mark.parametrize("add_generation_prompt", [True, False])
@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
@pytest.mark.parametrize("source", [LLAMA_3, PHI_3, EVERYTHING], ids=["llama-3", "phi-3", "everything"])
def test_a_template_renders_as_in_transformers(
    source: str, messages: list[dict[str, Any]], add_generation_prompt: bool
) -> None:
    variables: dict[str, Any] = {"date_string": "1 Jan 2025", "tools": [TOOL], "reasoning_style": "short"}
    rendered = ChatTemplate(source, SPECIAL).render(messages, add_generation_prompt=add_generation_prompt, **variables)
    assert rendered == oracle(source, messages, add_generation_prompt=add_generation_prompt, **variables)


def test_the_llama_3_template_gives_the_expected_text() -> None:
    rendered = ChatTemplate(LLAMA_3, SPECIAL).render([{"role": "user", "content": "Hi"}], date_string="today")
    assert rendered == (
        "<s><|start_header_id|>system<|end_header_id|>\n\nToday Date: today\n\n<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_strftime_now_is_the_local_date() -> None:
    before = datetime.now().strftime("%d %b %Y")
    rendered = ChatTemplate(LLAMA_3, SPECIAL).render([{"role": "user", "content": "Hi"}])
    after = datetime.now().strftime("%d %b %Y")
    assert f"Today Date: {before}" in rendered or f"Today Date: {after}" in rendered


def test_a_variable_overrides_a_special_token_of_the_same_name() -> None:
    template = ChatTemplate("{{ bos_token }}", SPECIAL)
    messages = [{"role": "user", "content": "Hi"}]
    assert template.render(messages) == "<s>"
    assert template.render(messages, bos_token="[B]") == "[B]"


def test_the_callers_messages_are_not_changed() -> None:
    messages = [{"role": "user", "content": "Hi", "reasoning": "r", "none": None}]
    ChatTemplate(EVERYTHING, SPECIAL).render(messages)
    assert messages == [{"role": "user", "content": "Hi", "reasoning": "r", "none": None}]


def test_the_message_of_raise_exception_is_shown() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(ChatTemplateError, match='turns must alternate, not user & "quotes"') as caught:
        ChatTemplate(EVERYTHING, SPECIAL).render(messages)
    assert "--raw" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ messages[0].content.none.deeper }}", "UndefinedError"),
        ("{{ messages[0].content + 1 }}", "TypeError"),
        ("{{ 1 // 0 }}", "ZeroDivisionError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "RecursionError"),
        ("{% for i in range(10000000) %}x{% endfor %}", "OverflowError"),
        ("{% include 'other' %}", "TypeError"),
    ],
)
def test_a_template_that_fails_is_reported_with_the_reason(source: str, reason: str) -> None:
    with pytest.raises(ChatTemplateError, match=f"chat template failed: {reason}"):
        ChatTemplate(source, SPECIAL).render([{"role": "user", "content": "Hi"}])


def test_a_template_that_is_not_jinja_is_refused_with_its_line() -> None:
    with pytest.raises(ChatTemplateError, match=r"not valid Jinja.*line 2"):
        ChatTemplate("first\n{% for %}", SPECIAL).render([{"role": "user", "content": "Hi"}])


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__() }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__globals__['json'] }}",
        "{{ (messages | map(attribute='__class__') | first).mro() }}",
        "{{ ''['__class__']['__mro__'] }}",
        "{{ '{0.__class__.__base__}'.format('') }}",
        "{{ ('{0.__class__}' | attr('format'))('') }}",
        "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}",
        "{{ self.__init__.__globals__ }}",
        "{{ dict.mro() }}",
        "{{ namespace.__init__.__globals__ }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}{{ ns }}",
        "{{ namespace(__html__='x') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='system') }}",
        "{{ messages[0].pop('role') }}",
    ],
)
def test_a_hostile_template_reaches_nothing(source: str) -> None:
    messages = [{"role": "user", "content": "Hi"}]
    try:
        rendered = ChatTemplate(source, SPECIAL).render(messages)
    except ChatTemplateError as error:
        assert "SecurityError" in error.message or "UndefinedError" in error.message
    else:
        assert rendered == ""
    assert messages == [{"role": "user", "content": "Hi"}]


@pytest.mark.parametrize(
    ("messages", "fault"),
    [
        ([], "at least one message"),
        ("Hi", "at least one message"),
        (["Hi"], r"messages\[0\] is 'Hi', not an object"),
        ([{"role": "user", "content": "a"}, {"content": "b"}], r"messages\[1\] has no role"),
        ([{"role": 1, "content": "b"}], r"messages\[0\] has no role"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": None}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": "Hi", "extra": object()}], "can't use a object"),
    ],
)
def test_malformed_messages_are_named_in_the_error(messages: Any, fault: str) -> None:
    with pytest.raises(ChatTemplateError, match=fault):
        ChatTemplate(PHI_3, SPECIAL).render(messages)


NAMED = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "by default {{ bos_token }}"}]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"chat_template.jinja": "a file {{ eos_token }}", "chat_template": "the configuration"}, "a file <|end|>"),
        ({"chat_template": "the configuration {{ bos_token }}\n"}, "the configuration <s>"),
        ({"chat_template": NAMED}, "by default <s>"),
        ({"chat_template": NAMED, "chat_template.jinja": "a file"}, "a file"),
    ],
)
def test_the_template_of_a_folder_is_the_one_that_transformers_uses(
    sentencepiece_folder: Path, tmp_path: Path, files: dict[str, Any], expected: str
) -> None:
    from transformers import AutoTokenizer

    (tmp_path / "tokenizer.json").write_bytes((sentencepiece_folder / "tokenizer.json").read_bytes())
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<|end|>"}
    if "chat_template" in files:
        config["chat_template"] = files["chat_template"]
    if "chat_template.jinja" in files:
        (tmp_path / "chat_template.jinja").write_text(files["chat_template.jinja"], encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    messages = [{"role": "user", "content": "Hi"}]
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.render(messages) == expected
    assert AutoTokenizer.from_pretrained(tmp_path).apply_chat_template(messages, tokenize=False) == expected


def test_the_file_for_processors_is_used_last(tmp_path: Path) -> None:
    (tmp_path / "chat_template.json").write_text('{"chat_template": "for processors"}', encoding="utf-8")
    template = load_chat_template(tmp_path)
    assert template is not None
    assert template.source == "for processors"


def test_a_base_model_has_no_template(folder: Path) -> None:
    assert load_chat_template(folder) is None


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ([{"name": "rag", "template": "x"}], "no chat template called default, only: rag"),
        ([], "no chat template called default, only: none"),
        (7, "neither a template nor a list"),
        (["x"], "neither a template nor a list"),
    ],
)
def test_an_entry_without_a_default_template_is_refused(tmp_path: Path, entry: object, fault: str) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry}), encoding="utf-8")
    with pytest.raises(ChatTemplateError, match=fault):
        load_chat_template(tmp_path)


def test_files_that_are_not_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="tokenizer_config.json"):
        load_chat_template(tmp_path)
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(ChatTemplateError, match="chat_template.jinja"):
        load_chat_template(tmp_path)
