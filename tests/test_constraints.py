"""Replies by JSON schemas, expressions, choices and grammars: kept, alike on both engines, refused with the reason."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field
from typer.testing import CliRunner

import localq
from localq.batching import Batcher, ReplyRequest
from localq.cli.main import app
from localq.errors import OptionError
from localq.options import GenerationOptions

pytest.importorskip("mlx_lm")

QUESTION = "What is the capital of France?"
FORMS = ("gguf-f32", "mlx-f32")


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: Annotated[int, Field(ge=1, le=9)]


class Dog(BaseModel):
    kind: Literal["dog"]
    barks: bool


class Home(BaseModel):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


class City(BaseModel):
    name: Literal["Paris", "Rome"]
    is_large: bool


def record(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SHORT = {"type": "string", "maxLength": 12}
DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
NODE = record(value=DIGIT, next={"anyOf": [{"type": "null"}, {"$ref": "#/$defs/leaf"}]})
SCHEMAS: dict[str, tuple[dict[str, Any], Callable[[Any], bool]]] = {
    "object": (record(a=DIGIT, b={"type": "boolean"}), lambda v: [*v] == ["a", "b"] and type(v["b"]) is bool),
    "enum": ({"enum": ["Paris", 3, None]}, lambda v: v in ("Paris", 3, None)),
    "const": (record(a={"const": "<|end|>"}), lambda v: v == {"a": "<|end|>"}),
    "text": (SHORT, lambda v: isinstance(v, str) and len(v) <= 12),
    "pattern": ({"type": "string", "pattern": "^[A-Z][a-z]{2,5}$"}, lambda v: bool(re.fullmatch("[A-Z][a-z]{2,5}", v))),
    "list": ({"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 4}, lambda v: 2 <= len(v) <= 4),
    "tuple": (
        {"type": "array", "prefixItems": [DIGIT, {"type": "boolean"}], "items": False, "minItems": 2},
        lambda v: type(v[1]) is bool and len(v) == 2,
    ),
    "nested": (record(a=record(b=record(c=DIGIT))), lambda v: 0 <= v["a"]["b"]["c"] <= 9),
    "reference": ({**NODE, "$defs": {"leaf": record(x=DIGIT)}}, lambda v: v["next"] is None or [*v["next"]] == ["x"]),
    "union": ({"anyOf": [record(a=DIGIT), record(b=SHORT)]}, lambda v: [*v] in (["a"], ["b"])),
    "date": (record(day={"type": "string", "format": "date"}), lambda v: len(v["day"]) == 10),
    "number": ({"type": "integer", "minimum": 17, "maximum": 2000}, lambda v: 17 <= v <= 2000),
    "combined": (
        {"allOf": [{"type": "object", "properties": {"a": DIGIT}, "required": ["a"]}, record(a=DIGIT)]},
        lambda v: 0 <= v["a"] <= 9,
    ),
    "not closed": ({"type": "object", "properties": {"a": DIGIT, "b": DIGIT}}, lambda v: {*v} <= {"a", "b"}),
    "optional": (
        {"type": "object", "properties": {"a": DIGIT, "b": DIGIT}, "additionalProperties": False},
        lambda v: {*v} <= {"a", "b"},
    ),
}
OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": r"[A-Z][a-z]{2,8} \d{2}"}, r"[A-Z][a-z]{2,8} \d{2}"),
    "choice": ({"choice": ["Lyon", "a \"b\"\n", "日本"]}, "Lyon|a \"b\"\n|日本"),
    "a special token's name": ({"choice": ["<|eot_id|>", "</s><|end|>"]}, re.escape("<|eot_id|>") + "|</s><\\|end\\|>"),
    "grammar": ({"grammar": 'start: "<" word{2} ">"\nword: /[a-z]{1,5}/ " "'}, "<([a-z]{1,5} ){2}>"),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(models_dir: Path) -> Iterator[dict[str, localq.Model]]:
    opened = {form: localq.load(f"toy-llama:{form}", models_dir=models_dir) for form in FORMS}
    yield opened
    for model in opened.values():
        model.close()


@pytest.mark.parametrize("name", SCHEMAS)
def test_json_follows_its_schema_alike_on_both_engines(models: dict[str, localq.Model], name: str) -> None:
    schema, fits = SCHEMAS[name]
    greedy = [models[form].generate(QUESTION, schema=schema, max_tokens=200) for form in FORMS]
    assert greedy[0].generated_token_ids == greedy[1].generated_token_ids
    drawn = [models[form].generate(QUESTION, schema=schema, temperature=1.5, seed=3, max_tokens=300) for form in FORMS]
    for reply in (greedy[0], *drawn):
        assert reply.finish_reason == "stop"
        assert fits(json.loads(reply.text)), reply.text


@pytest.mark.parametrize("name", OTHERS)
def test_texts_follow_their_form_alike_on_both_engines(models: dict[str, localq.Model], name: str) -> None:
    options, expected = OTHERS[name]
    greedy = [models[form].generate(QUESTION, max_tokens=60, **options) for form in FORMS]
    assert greedy[0].generated_token_ids == greedy[1].generated_token_ids
    for reply in (greedy[0], models[FORMS[0]].generate(QUESTION, max_tokens=60, temperature=1.5, seed=1, **options)):
        assert reply.finish_reason == "stop"
        assert re.fullmatch(expected, reply.text), reply.text


def test_a_sentencepiece_vocabulary_and_that_of_a_gguf_file(models_dir: Path, tmp_path: Path) -> None:
    schema, fits = SCHEMAS["object"]
    with localq.load("toy-phi:gguf-q8_0", models_dir=models_dir) as model:
        own = [model.generate(QUESTION, schema=schema), model.generate(QUESTION, choice=["Rome", "Nairobi, Kenya"])]
    (artifact,) = [one for one in localq.ls(models_dir) if one.name == "toy-phi:gguf-q8_0"]
    shutil.copy(artifact.path, tmp_path / "foreign.gguf")
    with localq.load(tmp_path / "foreign.gguf") as model:
        foreign = [model.generate(QUESTION, schema=schema), model.generate(QUESTION, choice=["Rome", "Nairobi, Kenya"])]
    assert fits(json.loads(own[0].text))
    assert own[1].text in ("Rome", "Nairobi, Kenya")
    assert [reply.text for reply in foreign] == [reply.text for reply in own]


def test_forced_tokens_are_not_drawn_and_the_reply_ends_at_once(
    models: dict[str, localq.Model], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = models[FORMS[0]]
    only = "The only text that may come, word for word."
    asked = list[Any]()

    def count(*_: object) -> None:
        asked.append(1)

    constraint = model.constraint(GenerationOptions(choice=(only,)))
    assert constraint is not None
    original = constraint.mask
    constraint.mask = lambda: (count(), original())[1]  # type: ignore[method-assign, func-returns-value]
    monkeypatch.setattr(model, "constraint", lambda *_: constraint)
    reply = list(model.stream(QUESTION))
    assert "".join(chunk.text for chunk in reply) == only
    assert len(asked) < sum(len(chunk.token_ids) for chunk in reply) / 3


def test_with_log_probabilities_every_token_is_drawn(models: dict[str, localq.Model]) -> None:
    reply = models[FORMS[0]].generate(QUESTION, choice=["Rome, Italy"], logprobs=1)
    assert reply.text == "Rome, Italy" and reply.logprobs is not None
    assert len(reply.logprobs) == len(reply.generated_token_ids)


def test_replies_together_keep_their_own_forms(models_dir: Path) -> None:
    wanted = [GenerationOptions(schema=SCHEMAS["object"][0]), GenerationOptions(choice=("Rome",)), GenerationOptions()]
    for form in FORMS:
        with localq.load(f"toy-llama:{form}", models_dir=models_dir, sequences=3, reproducible=True) as model:
            ids = tuple(model.prompt_token_ids(QUESTION))
            alone = [model.generate(QUESTION, options=options).text for options in wanted]
            got: list[list[Any]] = [[], [], []]
            batcher = Batcher(model)
            for options, events in zip(wanted, got, strict=True):
                batcher.submit(ReplyRequest(ids, options), events.append)
            while not all(events and events[-1].finish_reason for events in got):
                pass
            batcher.close()
        assert ["".join(chunk.text for chunk in events) for events in got] == alone


def test_a_pydantic_class_a_text_and_a_chat_with_a_form(models: dict[str, localq.Model], tmp_path: Path) -> None:
    model = models[FORMS[1]]
    city = City.model_validate_json(str(model.generate(QUESTION, schema=City)))
    assert Home.model_validate_json(str(model.generate(QUESTION, schema=Home)))
    text = json.dumps(City.model_json_schema())
    assert City.model_validate_json("".join(map(str, model.stream(QUESTION, schema=text)))) == city
    chat = localq.Conversation(model, schema=City)
    assert City.model_validate_json(chat.ask(QUESTION).read()) == city
    chat.save(tmp_path / "chat.jsonl")
    again = localq.Conversation.load(tmp_path / "chat.jsonl", model)
    assert [exchange.reply for exchange in again.exchanges] == [exchange.reply for exchange in chat.exchanges]


def test_a_reply_that_is_continued_stays_in_its_form(models: dict[str, localq.Model]) -> None:
    model = models[FORMS[0]]
    options = GenerationOptions(choice=("Nairobi", "Rome"))
    ids, begun = model.prompt_token_ids(QUESTION), model.tokenize("Nai")
    chunks = model.stream_ids(ids, options, begun=begun)
    assert "".join(chunk.text for chunk in chunks) == "robi"
    with pytest.raises(OptionError, match="can't follow its choice"):
        model.stream_ids(ids, options, begun=model.tokenize("Berlin"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"schema": {"not": {"type": "string"}}}, r'schema can\'t be kept: .*"not"'),
        ({"schema": {"type": "array", "uniqueItems": True}}, "uniqueItems"),
        ({"schema": {"type": "string", "format": "idn-hostname"}}, "idn-hostname"),
        ({"schema": {"type": "string", "format": "unheard-of"}}, None),
        ({"schema": {"if": {}, "then": {}, "x-guidance": {"lenient": True}}}, '"if", "then"'),
        ({"schema": {"$ref": "https://example.com/schema"}}, "example.com"),
        ({"schema": {"enum": []}}, "Unsatisfiable"),
        ({"schema": {"oneOf": [record(a=DIGIT), record(a=DIGIT, b=DIGIT)]}}, None),
        ({"schema": {"oneOf": [{"properties": {"a": DIGIT}}, {"properties": {"b": DIGIT}}]}}, "oneOf .*anyOf is"),
        ({"schema": {"type": "object", "properties": {"a": DIGIT}, "required": ["b"]}}, None),
        ({"schema": {"$ref": "#"}}, "schema can't be kept"),
        ({"schema": "{"}, "schema is not JSON"),
        ({"schema": 3}, "schema is 3"),
        ({"regex": "a(?=b)"}, "look-ahead"),
        ({"regex": "("}, "unclosed group"),
        ({"grammar": "start: word"}, 'unknown name: "word"'),
        ({"grammar": "\ud800"}, "not valid Unicode"),
        ({"choice": []}, None),
        ({"choice": "yes"}, "choice is 'yes'"),
        ({"choice": [""]}, "choice is"),
        ({"regex": "a", "choice": ["a"]}, "can't have a regex and a choice"),
    ],
)
def test_what_cannot_be_kept_is_refused_with_the_reason(
    models: dict[str, localq.Model], options: dict[str, Any], reason: str | None
) -> None:
    if reason is None:
        assert models[FORMS[0]].generate(QUESTION, max_tokens=2, **options).text
        return
    with pytest.raises(OptionError, match=reason):
        models[FORMS[0]].generate(QUESTION, max_tokens=2, **options)


def test_the_command_line(models_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "schema.json"
    file.write_text(json.dumps(City.model_json_schema()), encoding="utf-8")

    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["generate", "toy-llama:gguf-f32", QUESTION, "--no-stdin", *arguments])
        return result.exit_code, result.output

    code, text = run("--schema", str(file))
    assert (code, City.model_validate_json(text).name) == (0, "Paris")
    assert run("--choice", "Rome,Lyon")[1].strip() in ("Rome", "Lyon")
    assert re.fullmatch(r"\d{3}\n", run("--regex", r"\d{3}")[1])
    assert "can't have a regex and a choice" in run("--choice", "Rome", "--regex", "a")[1]
    assert "can't read" in run("--schema", str(tmp_path / "none.json"))[1]
    assert "choice is ('a', '')" in run("--choice", "a,")[1]
