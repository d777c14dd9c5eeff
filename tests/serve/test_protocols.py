"""Parts of the protocols that clients use less often: log-probabilities, counts of tokens, thinking, figures."""

from __future__ import annotations

from typing import Any

import anthropic
import openai
import pytest

from localq.serve.messages import Message
from tests.serve.conftest import GGUF, MLX, Server
from tests.serve.test_clients import MESSAGES, QUESTION, claude, client
from tests.serve.test_requests import CHAT, LEAST, RESPONSES
from tests.serve.test_structured import SCHEMA as CITY
from tests.serve.test_structured import City, is_city
from tests.serve.test_tools import NAMES, ask, tooled
from tests.test_tools import TOOLS

__all__ = ["claude", "client", "tooled"]

LOGPROBS: Any = ["message.output_text.logprobs"]


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_responses_have_the_logprobs_of_chats(client: openai.OpenAI, name: str) -> None:
    chat = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0, logprobs=True, top_logprobs=2)  # type: ignore[arg-type]
    assert chat.choices[0].logprobs is not None and chat.choices[0].logprobs.content
    expected = [(one.token, one.bytes, len(one.top_logprobs)) for one in chat.choices[0].logprobs.content]
    asked: dict[str, Any] = {"model": name, "input": QUESTION, "temperature": 0, "top_logprobs": 2}
    answer = client.responses.create(**asked, include=LOGPROBS)
    part: Any = answer.output[0].content[0]  # type: ignore[union-attr]
    assert [(one.token, one.bytes, len(one.top_logprobs)) for one in part.logprobs] == expected
    assert answer.top_logprobs == 2
    with client.responses.stream(**asked) as stream:
        deltas = [event for event in stream if event.type == "response.output_text.delta"]
        whole: Any = stream.get_final_response().output[0].content[0]  # type: ignore[union-attr]
    assert [one.token for delta in deltas for one in delta.logprobs] == [token for token, _, _ in expected]
    assert [one.token for one in whole.logprobs] == [token for token, _, _ in expected]
    again = client.responses.create(model=name, input=[*answer.output, *MESSAGES], max_output_tokens=1)  # type: ignore[list-item]
    assert again.output[0].content[0].logprobs == []  # type: ignore[union-attr]


def test_the_logprobs_of_calls_are_not_those_of_a_text(tooled: Server) -> None:
    flat = [{"type": "function", "name": "now", "parameters": None}]
    body = {"model": NAMES[0], "input": "Hi", "tools": flat, "tool_choice": "required", "include": LOGPROBS}
    status, answer = tooled.ask(RESPONSES, body)
    assert status == 200 and [item["type"] for item in answer["output"]] == ["function_call"]


def test_tokens_of_a_response_are_counted(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": GGUF, "input": QUESTION, "instructions": "Be short."}
    count = client.responses.input_tokens.count(**asked)
    assert count.object == "response.input_tokens"
    answer = client.responses.create(**asked, max_output_tokens=1)
    assert answer.usage is not None and count.input_tokens == answer.usage.input_tokens


def test_anthropics_replies_keep_a_schema(claude: anthropic.Anthropic, server: Server) -> None:
    config: Any = {"format": {"type": "json_schema", "schema": CITY}}
    answer = claude.messages.create(model=GGUF, max_tokens=99, messages=MESSAGES, output_config=config)  # type: ignore[arg-type]
    assert answer.content[0].type == "text" and is_city(answer.content[0].text)
    parsed = claude.messages.parse(model=MLX, max_tokens=99, messages=MESSAGES, output_format=City)  # type: ignore[arg-type]
    assert isinstance(parsed.parsed_output, City)


def test_earlier_thoughts_go_to_the_template(server: Server) -> None:
    thoughts = [{"type": "thinking", "thinking": "Easy.", "signature": "x"}, {"type": "redacted_thinking", "data": "x"}]
    said = {"role": "assistant", "content": [*thoughts, {"type": "text", "text": "Paris."}]}
    plain = Message.model_validate(said).plain()
    assert plain == [{"role": "assistant", "content": "Paris.", "reasoning_content": "Easy."}]
    status, answer = server.ask("/v1/messages", {**LEAST["/v1/messages"], "messages": [*MESSAGES, said, *MESSAGES]})
    assert status == 200, answer


def test_calls_and_results_come_back_as_programs_write_them(tooled: Server) -> None:
    """The number that a stream gives a call, the name of the function beside its result, fields of litellm."""
    answer = ask(tooled, tools=TOOLS, tool_choice="required")["choices"][0]["message"]
    (call,) = answer["tool_calls"]
    result = {"role": "tool", "tool_call_id": call["id"], "content": "Paris"}
    plain = ask(tooled, messages=[*MESSAGES, answer, result], max_tokens=3)
    named = {**result, "name": call["function"]["name"]}
    own = {"provider_specific_fields": {"refusal": None}}
    calling = {**answer, **own, "tool_calls": [{**call, **own, "index": 0}]}
    same = ask(tooled, messages=[*MESSAGES, calling, named], max_tokens=3)
    assert same["choices"] == plain["choices"]


def test_every_figure_is_explained(server: Server) -> None:
    server.ask(CHAT, LEAST[CHAT])
    lines = server.ask("/metrics")[1].splitlines()
    told = {line.split()[2] for line in lines if line.startswith("# HELP")}
    typed = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    figures = {line.partition("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert told == typed and figures <= told and len(told) == 7
