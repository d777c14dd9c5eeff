"""Structured output through public clients."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from tests.serve.conftest import GGUF, MLX, Server
from tests.serve.test_clients import MESSAGES, QUESTION, client
from tests.serve.test_requests import CHAT, LEAST, RESPONSES, TEXT

__all__ = ["client"]

SCHEMA = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "size": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "size"],
    "additionalProperties": False,
}


class City(BaseModel):
    city: Literal["Paris", "Rome"]
    is_large: bool


def is_city(text: str | None) -> bool:
    value = json.loads(text or "")
    return [*value] == ["city", "size"] and value["city"] in ("Paris", "Rome") and 1 <= value["size"] <= 9


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_chats_and_responses_keep_a_schema(client: openai.OpenAI, name: str) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(model=name, messages=MESSAGES, response_format=form, n=2, seed=1)  # type: ignore[arg-type]
    assert all(is_city(choice.message.content) for choice in answer.choices)
    stream = client.chat.completions.create(model=name, messages=MESSAGES, response_format=form, stream=True)  # type: ignore[arg-type]
    assert is_city("".join(chunk.choices[0].delta.content or "" for chunk in stream))
    flat: Any = {"format": {"type": "json_schema", "name": "city", "schema": SCHEMA, "strict": True}}
    response = client.responses.create(model=name, input=QUESTION, text=flat)
    assert is_city(response.output_text)
    assert response.text is not None and response.text.format is not None and response.text.format.type == "json_schema"


def test_classes_of_the_clients_are_parsed(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(model=GGUF, messages=MESSAGES, response_format=City)  # type: ignore[arg-type]
    assert isinstance(answer.choices[0].message.parsed, City)
    assert isinstance(client.responses.parse(model=MLX, input=QUESTION, text_format=City).output_parsed, City)


def test_extensions_and_any_object(client: openai.OpenAI, server: Server) -> None:
    def said(**fields: Any) -> str:
        asked = {"model": GGUF, "messages": MESSAGES, "max_tokens": 60, **fields}
        return str(server.ask("/v1/chat/completions", asked)[1]["choices"][0]["message"]["content"])

    assert said(choice=["Rome", "Lyon"]) in ("Rome", "Lyon")
    assert re.fullmatch(r"\d{3}", said(regex=r"\d{3}"))
    assert said(grammar='start: "a" "b"{2,3}') in ("abb", "abbb")
    assert said(response_format={"type": "json_object"}, seed=1).startswith("{")
    asked = {"model": MLX, "prompt": "It is", "choice": [" good", " bad"]}
    assert server.ask("/v1/completions", asked)[1]["choices"][0]["text"] in (" good", " bad")


def test_what_fails_only_while_it_is_computed_is_told_in_the_stream(client: openai.OpenAI, server: Server) -> None:
    slow = r"(\w{1,100} ?){1,500}"  # has too many states after some words
    asked: Any = {"model": GGUF, "prompt": "A", "max_tokens": 400, "seed": 1, "temperature": 2}
    status, body = server.ask(TEXT, {**asked, "regex": slow})
    assert status == 400 and "can't follow its regex" in body["error"]["message"]
    with (
        client.completions.create(**asked, stream=True, extra_body={"regex": slow}) as chunks,
        pytest.raises(openai.APIError, match="can't follow its regex") as told,
    ):
        list(chunks)
    assert told.value.code == "invalid_value" and not isinstance(told.value, openai.APIStatusError)
    with client.responses.stream(model=GGUF, input="A") as stream:  # the server goes on
        assert stream.get_final_response().output_text


@pytest.mark.parametrize(
    ("path", "change", "reason"),
    [
        (
            CHAT,
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}},
            "not",
        ),
        (CHAT, {"response_format": {"type": "json_object"}, "regex": "a"}, "a schema and a regex"),
        (CHAT, {"regex": "("}, "unclosed group"),
        (TEXT, {"regex": "(a{1000}){1000}"}, "too many expressions"),
        (CHAT, {"grammar": 'start: "a" start'}, "too many items"),
        (CHAT, {"grammar": "start: start"}, "no reply can follow it"),
        (TEXT, {"grammar": "start: word"}, "unknown name"),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "a", "schema": {"then": {}}}}}, "then"),
    ],
)
def test_what_cannot_be_kept_is_refused(server: Server, path: str, change: dict[str, Any], reason: str) -> None:
    for stream in (False, True):
        status, answer = server.ask(path, {**LEAST[path], **change, "stream": stream})
        assert status == 400 and reason.lower() in answer["error"]["message"].lower(), answer
