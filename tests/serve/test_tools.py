"""Tools through public clients, with a toy whose chat template calls them as Llama 3.1 does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

from tests.serve.conftest import GGUF, Server, events_of, running
from tests.test_tools import LLAMA, PARAMETERS, PHI_4_MINI, TOOLS, check_calls

NAMES = ["local/toy-tools:gguf-q4_k_m", "local/toy-tools:mlx-4bit"]
PHI = "local/toy-phi-tools:mlx-4bit"
USER = [{"role": "user", "content": "What is the capital of France?"}]
CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"


def copy_of_a_toy(folder: Path, template: str, tokens: dict[str, str]) -> Path:
    """The Llama toy with another chat template, and other names for its tokens."""
    shutil.copytree(Path(__file__).parents[2] / "localq" / "demo" / "toy-llama", folder)
    for file in folder.glob("*token*.json"):
        text = file.read_text(encoding="utf-8")
        for name, other in tokens.items():
            text = text.replace(name, other)
        file.write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def tooled(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    parent = tmp_path_factory.mktemp("tools")
    llama = copy_of_a_toy(parent / "toy-tools", LLAMA.replace("<|end|>", "<|eot_id|>"), {})
    tokens = {"start_header_id": "tool_call", "end_header_id": "/tool_call", "eot_id": "end"}
    phi = copy_of_a_toy(parent / "toy-phi-tools", PHI_4_MINI, tokens)
    with running(models_dir, f"{llama}:gguf-q4_k_m", f"{llama}:mlx-4bit", f"{phi}:mlx-4bit") as started:
        yield started


@pytest.fixture(scope="module")
def client(tooled: Server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{tooled.url}/v1", api_key="any", max_retries=0) as opened:
        yield opened


def ask(server: Server, path: str = CHAT, **fields: Any) -> Any:
    body = {"model": NAMES[0], "messages": USER, "temperature": 0, "max_tokens": 200, **fields}
    status, answer = server.ask(path, body)
    assert status == 200, answer
    return answer


@pytest.mark.parametrize("name", NAMES)
def test_required_and_named_calls_obey_their_schema(client: openai.OpenAI, name: str) -> None:
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        answer = client.chat.completions.create(
            model=name, messages=USER, tools=TOOLS, tool_choice=choice, n=3, temperature=1.5, seed=1  # type: ignore[arg-type, call-overload]
        )  # fmt: skip
        for one in answer.choices:
            assert (one.finish_reason, one.message.content) == ("tool_calls", None)
            (call,) = one.message.tool_calls
            assert call.id.startswith("call_")
            check_calls([(call.function.name, call.function.arguments)])
            assert choice == "required" or call.function.name == "weather"


@pytest.mark.parametrize("name", NAMES)
def test_arguments_come_piece_by_piece(client: openai.OpenAI, tooled: Server, name: str) -> None:
    asked: Any = {"model": name, "tools": TOOLS[:1], "tool_choice": "required", "temperature": 0}
    *chunks, done = events_of(tooled.ask(CHAT, {**asked, "messages": USER, "stream": True})[1])
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert done == "[DONE]" and deltas[0] == {"role": "assistant", "content": "", "refusal": None}
    first, *others = [delta["tool_calls"][0] for delta in deltas if delta.get("tool_calls")]
    assert (first["index"], first["type"]) == (0, "function") and first["id"].startswith("call_")
    assert first["function"] == {"name": "weather", "arguments": ""}
    assert len(others) > 3 and all(set(one) == {"index", "function"} for one in others)
    arguments = "".join(one["function"]["arguments"] for one in others)
    check_calls([("weather", arguments)])
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "tool_calls"]
    assert not any(delta.get("content") for delta in deltas)
    whole = client.chat.completions.create(**asked, messages=USER)
    assert whole.choices[0].message.tool_calls[0].function.arguments == arguments


def test_several_calls_as_phi_4_mini_writes_them(tooled: Server) -> None:
    counts = set()
    for seed in range(6):
        asked: dict[str, Any] = {"model": PHI, "tools": TOOLS, "tool_choice": "required", "temperature": 1.5}
        one = ask(tooled, **asked, seed=seed)["choices"][0]
        is_cut = one["finish_reason"] == "length"
        calls = one["message"]["tool_calls"] = one["message"]["tool_calls"][: -1 if is_cut else None]
        assert one["message"]["content"] is None and calls
        check_calls([(call["function"]["name"], call["function"]["arguments"]) for call in calls])
        counts.add(len(calls))
        alone = ask(tooled, **asked, seed=seed, parallel_tool_calls=False)["choices"][0]["message"]["tool_calls"]
        assert len(alone) == 1
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "9"} for call in calls]
        history = [{"role": "system", "content": "Be brief."}, *USER, one["message"], *results]
        assert ask(tooled, model=PHI, tools=TOOLS, messages=history, max_tokens=1)["usage"]["prompt_tokens"] > 100
    assert len(counts) > 1


def test_auto_and_none_leave_text_as_it_is(tooled: Server) -> None:
    plain = ask(tooled)
    without = ask(tooled, tools=TOOLS, tool_choice="none")
    assert without["usage"]["prompt_tokens"] == plain["usage"]["prompt_tokens"]
    assert without["choices"][0]["message"] == plain["choices"][0]["message"]
    offered = ask(tooled, tools=TOOLS)
    assert offered["usage"]["prompt_tokens"] > plain["usage"]["prompt_tokens"]
    assert offered["choices"][0]["finish_reason"] in ("stop", "length", "tool_calls")


def test_a_call_and_its_result_in_the_conversation(tooled: Server) -> None:
    answer = ask(tooled, tools=TOOLS, tool_choice="required")["choices"][0]["message"]
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "Paris"}
    again = ask(tooled, tools=TOOLS, messages=[*USER, answer, result], tool_choice="none")
    assert again["choices"][0]["message"]["content"] is not None
    parts = [{"type": "text", "text": "Paris"}]
    same = ask(tooled, messages=[*USER, answer, result | {"content": parts}])
    assert same["choices"] == again["choices"]
    assert same["usage"]["prompt_tokens"] == again["usage"]["prompt_tokens"]


CALL = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "[1]"}}
BAD = {"type": "object", "properties": {"a": {"not": {}}}}
BAD_FORM = {"type": "json_schema", "json_schema": {"name": "a", "schema": BAD}}
BAD_SCHEMA = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"not": {}}}}}}


ANSWER = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
FORM: dict[str, Any] = {"type": "json_schema", "json_schema": {"name": "a", "schema": ANSWER}}


def test_a_reply_is_a_call_or_follows_the_response_format(tooled: Server) -> None:
    for name in (NAMES[0], PHI):
        asked: dict[str, Any] = {"model": name, "tools": TOOLS, "response_format": FORM, "temperature": 2, "n": 32}
        reasons = set()
        for choice in ask(tooled, **asked, seed=1)["choices"]:
            reasons.add(choice["finish_reason"])
            if choice["finish_reason"] == "tool_calls":
                called = [one["function"] for one in choice["message"]["tool_calls"]]
                check_calls([(one["name"], one["arguments"]) for one in called])
            elif choice["finish_reason"] == "stop":
                assert json.loads(choice["message"]["content"])["city"] in ("Paris", "Rome")
        assert {"stop", "tool_calls"} <= reasons
        (call,) = ask(tooled, **asked | {"n": 1}, tool_choice="required", parallel_tool_calls=False)["choices"]
        assert call["message"]["content"] is None


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tool_choice": "required"}, "tool_choice needs tools"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}}, "names 'other'"),
        ({"tools": [TOOLS[0], TOOLS[0]]}, "two functions of one name"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"tools": TOOLS, "regex": "a"}, "leave one of them out"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "this model's calls are JSON as well"),
        ({"tools": TOOLS, "response_format": BAD_FORM}, 'Unimplemented keys: ["not"]'),
        ({"tools": [BAD_SCHEMA]}, 'Unimplemented keys: ["not"]'),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [CALL]}]}, "'call_1' are not an object"),
        ({"messages": [*USER, {"role": "assistant", "tool_calls": [CALL, CALL]}]}, "call"),
        ({"messages": [*USER, {"role": "tool", "content": "x"}]}, "messages[1].tool_call_id is missing"),
    ],
)
def test_what_cannot_be_called_is_refused(tooled: Server, fields: dict[str, Any], reason: str) -> None:
    status, answer = tooled.ask(CHAT, {"model": NAMES[0], "messages": USER, "max_tokens": 2, **fields})
    assert status == 400 and reason in answer["error"]["message"], answer


def test_a_template_that_ignores_tools_is_refused(server: Server) -> None:
    result = {"role": "tool", "tool_call_id": "a", "content": "x"}
    for fields in ({"tools": TOOLS}, {"messages": [*USER, result]}):
        status, answer = server.ask(CHAT, {"model": GGUF, "messages": USER, "max_tokens": 2, **fields})
        assert status == 400 and "ignores tools" in answer["error"]["message"]
    assert (
        server.ask(CHAT, {"model": GGUF, "messages": USER, "max_tokens": 2, "tools": TOOLS, "tool_choice": "none"})[0]
        == 200
    )


FLAT = [{"type": "function", "parameters": None, "strict": True, **tool["function"]} for tool in TOOLS]  # type: ignore[dict-item]
CUSTOM = [
    {"name": "weather", "description": "Tells it.", "input_schema": PARAMETERS},
    {"name": "now", "input_schema": {"type": "object", "properties": {}}},
]


@pytest.mark.parametrize("name", NAMES)
def test_responses_call_functions(client: openai.OpenAI, name: str) -> None:
    asked: Any = {"model": name, "input": "Hi", "tools": FLAT, "temperature": 0}
    answer = client.responses.create(**asked, tool_choice={"type": "function", "name": "weather"})
    (call,) = answer.output
    assert (answer.status, call.type, call.status) == ("completed", "function_call", "completed")
    check_calls([(call.name, call.arguments)])
    with client.responses.stream(**asked, tool_choice={"type": "function", "name": "weather"}) as stream:
        events = list(stream)
        whole = stream.get_final_response()
    assert whole.output[0].arguments == call.arguments  # type: ignore[union-attr]
    deltas = [event.delta for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(deltas) == call.arguments and len(deltas) > 3
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "9 degrees"}
    history: Any = [{"role": "user", "content": "Hi"}, call.model_dump(exclude_none=True), result]
    again = client.responses.create(model=name, input=history, tools=FLAT, tool_choice="none", max_output_tokens=5)  # type: ignore[arg-type]
    assert again.output[0].type == "message"


@pytest.mark.parametrize("name", NAMES)
def test_messages_use_tools(tooled: Server, name: str) -> None:
    with anthropic.Anthropic(base_url=tooled.url, api_key="any", max_retries=0) as claude:
        asked: Any = {"model": name, "messages": USER, "tools": CUSTOM, "max_tokens": 200}
        asked["extra_body"] = {"temperature": 0}
        choice: Any = {"type": "tool", "name": "weather"}
        answer = claude.messages.create(**asked, tool_choice=choice)
        (use,) = answer.content
        assert (answer.stop_reason, use.type) == ("tool_use", "tool_use")
        assert use.name == "weather" and use.input["city"] in PARAMETERS["properties"]["city"]["enum"]  # type: ignore[index]
        with claude.messages.stream(**asked, tool_choice=choice) as stream:
            streamed = stream.get_final_message()
        assert (streamed.content[0].input, streamed.stop_reason) == (use.input, "tool_use")
        assert claude.messages.create(**asked, tool_choice={"type": "any"}).stop_reason == "tool_use"
        result: Any = {"type": "tool_result", "tool_use_id": use.id, "content": "9 degrees"}
        history: Any = [*USER, {"role": "assistant", "content": [use.model_dump(exclude_none=True)]}]
        history.append({"role": "user", "content": [result, {"type": "text", "text": "Go on."}]})
        again = claude.messages.create(
            **asked | {"messages": history, "max_tokens": 5, "tool_choice": {"type": "none"}}
        )
        assert again.content[0].type == "text"
        with_tools = claude.messages.count_tokens(model=name, messages=USER, tools=CUSTOM)  # type: ignore[arg-type]
        without = claude.messages.count_tokens(model=name, messages=USER)  # type: ignore[arg-type]
        assert with_tools.input_tokens > without.input_tokens
