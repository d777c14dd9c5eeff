"""What requests may say: names, fields and values; what is not supported is refused by name."""

from __future__ import annotations

import sys
from typing import Any

import jsonschema
import pytest

import localq
from tests.serve.conftest import GGUF, Server, events_of
from tests.serve.fuzz import run

CHAT, TEXT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"
USER = [{"role": "user", "content": "Hi"}]
LEAST: dict[str, dict[str, Any]] = {
    CHAT: {"model": GGUF, "messages": USER, "max_tokens": 2},
    TEXT: {"model": GGUF, "prompt": "Hi", "max_tokens": 2},
    RESPONSES: {"model": GGUF, "input": "Hi", "max_output_tokens": 2},
    MESSAGES: {"model": GGUF, "messages": USER, "max_tokens": 2},
}

REFUSED = [
    *((path, {"unheard_of": 1}, "unheard_of") for path in LEAST),
    *((path, {"model": None}, "model") for path in LEAST),
    *((path, {"temperature": "0.5"}, "temperature") for path in LEAST),
    *((path, {"temperature": 2.1}, "temperature") for path in LEAST),
    *((path, {"top_p": 1.5}, "top_p") for path in LEAST),
    *((path, {"stream": "yes"}, "stream") for path in LEAST),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
    (RESPONSES, {"tools": [{"type": "function", "name": "f"}]}, "tools"),
    (RESPONSES, {"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].function"),
    (MESSAGES, {"tools": [{"name": "f", "input_schema": {}}]}, None),
    (CHAT, {"messages": []}, "messages"),
    (CHAT, {"messages": "Hi"}, "messages"),
    (CHAT, {"messages": [{"role": "robot", "content": "Hi"}]}, "messages[0].role"),
    (CHAT, {"messages": [*USER, {"role": "tool", "content": "Hi"}]}, "messages[1].tool_call_id"),
    (CHAT, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (CHAT, {"messages": [{"role": "user", "content": 3}]}, "messages[0].content"),
    (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "messages[0].content[0].image_url",
    ),
    (CHAT, {"response_format": {"type": "yaml"}}, "response_format"),
    (
        CHAT,
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema",
    ),
    (CHAT, {"choice": []}, "choice"),
    (CHAT, {"tool_choice": "required"}, "tool_choice"),
    (CHAT, {"n": 0}, "n"),
    (CHAT, {"n": 1.5}, "n"),
    (CHAT, {"n": True}, "n"),
    (CHAT, {"top_logprobs": 2}, "top_logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options"),
    (CHAT, {"stream": True, "stream_options": {"include_timings": True}}, "stream_options"),
    (CHAT, {"max_tokens": 0}, "max_tokens"),
    (CHAT, {"max_tokens": 1, "max_completion_tokens": 2}, "max_tokens"),
    (CHAT, {"store": True}, "store"),
    (CHAT, {"reasoning_effort": "high"}, "reasoning_effort"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities[1]"),
    (CHAT, {"stop": ""}, "stop"),
    (CHAT, {"stop": ["a"] * 17}, "stop"),
    (CHAT, {"logit_bias": {"x": 1}}, "logit_bias.x"),
    (CHAT, {"logit_bias": {"5": 101}}, "logit_bias.5"),
    (CHAT, {"logit_bias": {"99999999": 1}}, None),
    (CHAT, {"metadata": {"a": 1}}, "metadata.a"),
    (TEXT, {"prompt": []}, "prompt"),
    (TEXT, {"prompt": [1, "a"]}, "prompt[1]"),
    (TEXT, {"prompt": [99_999_999]}, None),
    (TEXT, {"prompt": [-1]}, "prompt[0]"),
    (TEXT, {"best_of": 2}, "best_of"),
    (TEXT, {"store": 0}, "store"),
    (TEXT, {"best_of": True}, "best_of"),
    (TEXT, {"suffix": "end"}, "suffix"),
    (TEXT, {"echo": True, "logprobs": 1}, "echo"),
    (TEXT, {"top_logprobs": 1}, "top_logprobs"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id"),
    (RESPONSES, {"store": True}, "store"),
    (RESPONSES, {"background": True}, "background"),
    (RESPONSES, {"truncation": "auto"}, "truncation"),
    (RESPONSES, {"input": [{"type": "function_call_output", "output": "x"}]}, "input[0].call_id"),
    (MESSAGES, {"stop": "x"}, None),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1}}, None),
    (MESSAGES, {"output_config": {"effort": "max"}}, None),
    (MESSAGES, {"messages": [{"role": "system", "content": "x"}]}, None),
    (RESPONSES, {"include": ["file_search_call.results"]}, "include[0]"),
    (RESPONSES, {"reasoning": {"effort": "high"}}, "reasoning.effort"),
    (RESPONSES, {"top_logprobs": 21}, "top_logprobs"),
    (RESPONSES, {"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name"),
]


@pytest.mark.parametrize(("path", "change", "param"), REFUSED)
def test_what_is_not_supported_is_refused_by_name(
    server: Server, path: str, change: dict[str, Any], param: str | None
) -> None:
    status, answer = server.ask(path, {**LEAST[path], **change})
    assert status == 400, answer
    if path == MESSAGES:
        assert answer["type"] == "error" and next(iter(change)) in answer["error"]["message"]
    elif param is None:
        assert "99999999" in answer["error"]["message"]
    else:
        assert answer["error"]["param"] == param and param in answer["error"]["message"]


@pytest.mark.parametrize("path", LEAST)
def test_a_missing_field_is_named(server: Server, path: str) -> None:
    for field in ("model", "prompt" if path == TEXT else "input" if path == RESPONSES else "messages"):
        status, answer = server.ask(path, {name: value for name, value in LEAST[path].items() if name != field})
        assert (status, answer["error"]["message"]) == (400, f"{field} is missing")


ROUTINE = [
    (CHAT, {"user": "me", "metadata": {"a": "b"}, "store": False, "service_tier": "auto", "n": None}),
    (CHAT, {"tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"}}),
    (CHAT, {"top_p": 0, "seed": -(2**63), "n": 1.0, "stop": None, "logit_bias": {}, "modalities": ["text"]}),
    (CHAT, {"messages": [{"role": "developer", "content": [{"type": "text", "text": "Be short."}]}, *USER]}),
    (CHAT, {"messages": [*USER, {"role": "assistant", "content": "A", "refusal": None, "tool_calls": None}, *USER]}),
    (TEXT, {"best_of": 1, "suffix": None, "user": "me", "logprobs": None, "echo": False}),
    (RESPONSES, {"text": {"format": {"type": "text"}}, "reasoning": None, "include": [], "tools": []}),
    (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}], "instructions": "Go"}),
    (RESPONSES, {"include": ["reasoning.encrypted_content"], "reasoning": {"effort": "none", "summary": "auto"}}),
    (RESPONSES, {"prompt_cache_retention": "24h", "prompt_cache_options": {"mode": "implicit"}}),
    (CHAT, {"response_format": {"type": "json_schema", "json_schema": {"schema": {"const": 7}}}}),
    (MESSAGES, {"system": [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}], "top_k": 3}),
    (MESSAGES, {"metadata": {"user_id": "me"}, "thinking": {"type": "disabled"}, "stop_sequences": []}),
    (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 31999}, "cache_control": {"type": "ephemeral"}}),
    (MESSAGES, {"thinking": {"type": "adaptive", "display": "omitted"}, "output_config": {}, "speed": "standard"}),
]


@pytest.mark.parametrize(("path", "change"), ROUTINE)
def test_what_clients_send_routinely_is_accepted(server: Server, path: str, change: dict[str, Any]) -> None:
    status, answer = server.ask(path, {**LEAST[path], **change})
    assert status == 200, answer


def test_every_stop_string_ends_the_text_wherever_tokens_end(server: Server, models: dict[str, localq.Model]) -> None:
    question = "What is the capital of France?"
    full = models[GGUF].generate(question).text
    cases = {full[begin : begin + length] for length in range(1, 9) for begin in range(len(full) - length + 1)}
    assert len(cases) >= 150
    body = {"model": GGUF, "messages": [{"role": "user", "content": question}], "temperature": 0, "stream": True}
    for stop in cases:
        *chunks, _ = events_of(server.ask(CHAT, {**body, "stop": [stop, "never"]})[1])
        said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks]
        assert "".join(said) == full[: full.index(stop)], stop
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


PARTS = ["..", "/etc/passwd", "~", "http://127.0.0.1:1/x", "org/name", "file:///etc", ".", "\\\\host\\share", "%2e%2e"]
FORMS = ["", ":gguf", ":gguf-q4_k_m", ":mlx-4bit", "@main", "/../toy-llama", "\0", " "]
NAMES = [part + form for part in PARTS for form in FORMS]

heard: list[str] | None = None


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    is_descriptor = event == "open" and isinstance(arguments[0], int)  # of a file whose opening was heard before
    if heard is not None and event in ("open", "socket.connect", "socket.getaddrinfo") and not is_descriptor:
        heard.append(f"{event} {arguments[1] if event == 'socket.connect' else arguments[0]}")


sys.addaudithook(hear)  # for the rest of the process


def test_a_model_is_a_name_and_never_a_place(server: Server, tmp_path: Any) -> None:
    global heard
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    names = [*NAMES, str(tmp_path), str(tmp_path / "model.gguf"), "x" * 100_000, "toy-llama:gguf-q2_k"]
    assert len(names) >= 60
    heard = []
    try:
        for name in names:
            status, answer = server.ask(CHAT, {**LEAST[CHAT], "model": name})
            assert (status, answer["error"]["code"]) == (404, "model_not_found"), name
            assert str(tmp_path) not in answer["error"]["message"] or str(tmp_path) in name
    finally:
        opened, heard = heard, None
    folder = str(server.models.catalogue._store.folder)
    places = [one for one in opened if not (one.startswith(f"open {folder}") or "127.0.0.1" in one)]
    assert places == []


def test_hostile_requests_get_well_formed_errors(server: Server) -> None:
    counts = run(server.port, requests=600, seed=1)
    assert sum(counts.values()) == 600 and set(counts) <= {200, 400, 403, 404, 405, 408, 413, 415, 431}
    assert counts[200] > 10


def test_the_description_says_what_is_accepted(server: Server) -> None:
    described = server.ask("/openapi.json")[1]

    def is_valid(path: str, body: dict[str, Any]) -> bool:
        schema = described["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        whole = {**schema, "components": described["components"]}
        return bool(jsonschema.Draft202012Validator(whole).is_valid({**LEAST[path], **body}))

    assert [change for path, change in ROUTINE if not is_valid(path, change)] == []
    unsaid = [change for path, change, _ in REFUSED if is_valid(path, change)]
    # What only a model knows (tools, ids), and two fields that exclude each other.
    assert all({"tools", "prompt", "logit_bias", "max_completion_tokens", "echo"} & set(change) for change in unsaid)
    assert len(unsaid) < len(REFUSED) / 8
