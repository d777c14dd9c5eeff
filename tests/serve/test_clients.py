"""Public clients, and what they get: the same as the model gives without a server."""

from __future__ import annotations

import anthropic
import openai
import pytest

import localq
from localq.text.tokenizer import decode_tokens
from tests.serve.conftest import GGUF, MLX, PHI, Server, events_of

QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0}
MESSAGES = [{"role": "user", "content": QUESTION}]


@pytest.fixture(scope="session")
def client(server: Server) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)


@pytest.fixture(scope="session")
def claude(server: Server) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="any", max_retries=0)


@pytest.mark.parametrize("name", [GGUF, MLX, PHI])
def test_chat_gives_the_reply_of_the_model(client: openai.OpenAI, models: dict[str, localq.Model], name: str) -> None:
    expected = models[name].generate(QUESTION)
    answer = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0)
    assert answer.model == name
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(expected.prompt_token_ids)
    assert answer.usage.completion_tokens == len(expected.generated_token_ids)


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_a_streamed_chat_has_openais_chunks(client: openai.OpenAI, server: Server, name: str) -> None:
    body = {"model": name, "messages": MESSAGES, "temperature": 0, "stream": True}
    status, text = server.ask("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}})
    *chunks, usage, done = events_of(text)
    assert (status, done) == (200, "[DONE]")
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in [*chunks, usage]}) == 1
    reasons = [chunk["choices"][0]["finish_reason"] for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert usage["choices"] == [] and usage["usage"]["total_tokens"] > 0
    whole = client.chat.completions.create(model=name, messages=MESSAGES, temperature=0)
    said = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert said == whole.choices[0].message.content
    without = events_of(server.ask("/v1/chat/completions", body)[1])
    assert not any("usage" in chunk for chunk in without[:-1])


def test_a_stream_tells_its_rates_where_that_is_asked_for(server: Server) -> None:
    options = {"include_usage": True, "include_timings": True}
    body = {"model": GGUF, "messages": MESSAGES, "temperature": 0, "stream": True, "n": 2, "stream_options": options}
    *_, last, _ = events_of(server.ask("/v1/chat/completions", body)[1])
    assert [set(one) for one in last["timings"]] == [
        {"time_to_first_token_seconds", "prompt_tokens_per_second", "generated_tokens_per_second"}
    ] * 2
    assert all(one["generated_tokens_per_second"] > 0 for one in last["timings"])
    body["stream_options"] = {"include_usage": True}
    assert not any("timings" in one for one in events_of(server.ask("/v1/chat/completions", body)[1])[:-1])


def test_seeded_choices_are_drawn_apart_and_can_be_repeated(client: openai.OpenAI) -> None:
    def ask(n: int, seed: int) -> list[str | None]:
        answer = client.completions.create(
            model=GGUF, prompt="The", n=n, seed=seed, temperature=1.5, max_tokens=20, presence_penalty=1
        )
        return [choice.text for choice in answer.choices]

    three = ask(3, 7)
    assert len(set(three)) == 3
    assert [ask(1, 7 + number)[0] for number in range(3)] == three
    assert ask(1, -1) == ask(1, 2**32 - 2)


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_logprobs_are_those_of_the_model(
    client: openai.OpenAI, models: dict[str, localq.Model], name: str, server: Server
) -> None:
    expected = models[name].generate(QUESTION, logprobs=3)
    assert expected.logprobs is not None
    options = {"model": name, "messages": MESSAGES, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    answer = client.chat.completions.create(**options)  # type: ignore[call-overload]
    content = answer.choices[0].logprobs.content
    own = [one for one in expected.logprobs if one.token_id not in models[name].end_tokens]
    assert [one.logprob for one in content] == pytest.approx([one.logprob for one in own], abs=1e-4)
    assert b"".join(bytes(one.bytes) for one in content).decode() == expected.text
    assert all(len(one.top_logprobs) == 3 for one in content)
    chunks = events_of(server.ask("/v1/chat/completions", {**options, "stream": True})[1])[:-1]
    streamed = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    assert [one["token"] for part in streamed if part for one in part["content"]] == [one.token for one in content]


def test_the_logprobs_of_a_stop_string_are_not_given(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=GGUF, messages=MESSAGES, temperature=0, logprobs=True, stop=[" of France"]
    )
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert [one.token for one in answer.choices[0].logprobs.content] == ["The", " capital"]
    assert answer.choices[0].message.content == "The capital"


def test_logit_bias_bans_a_token(client: openai.OpenAI, models: dict[str, localq.Model]) -> None:
    (first, *_) = models[GGUF].tokenize("The")
    answer = client.chat.completions.create(
        model=GGUF, messages=MESSAGES, temperature=0, logit_bias={str(first): -100}, max_tokens=5
    )
    assert not (answer.choices[0].message.content or "").startswith("The")
    assert answer.choices[0].finish_reason == "length"


def test_completions_take_texts_and_ids(client: openai.OpenAI, models: dict[str, localq.Model]) -> None:
    text = "The capital of Italy"
    ids = models[GGUF].prompt_token_ids(text, raw=True)
    expected = models[GGUF].generate(text, raw=True, max_tokens=8).text
    for prompt in (text, ids):
        answer = client.completions.create(model=GGUF, prompt=prompt, temperature=0, max_tokens=8)  # type: ignore[arg-type]
        assert answer.choices[0].text == expected
    both = client.completions.create(model=GGUF, prompt=[text, "A"], temperature=0, max_tokens=8, n=2, echo=True)
    assert [choice.text[: len(text)] == text for choice in both.choices] == [True, True, False, False]
    assert both.choices[0].text == text + expected
    known = client.completions.create(model=GGUF, prompt=text, temperature=0, max_tokens=8, logprobs=2)
    logprobs = known.choices[0].logprobs
    assert logprobs is not None and logprobs.tokens and logprobs.text_offset
    assert "".join(logprobs.tokens) == expected
    assert [expected[at:].startswith(token) for at, token in zip(logprobs.text_offset, logprobs.tokens, strict=True)]
    assert decode_tokens(models[GGUF].tokenizer, ids) == text


def test_cached_tokens_are_counted(client: openai.OpenAI) -> None:
    messages = [*MESSAGES, {"role": "assistant", "content": "Paris."}, {"role": "user", "content": "And of Italy?"}]
    for _ in range(2):
        answer = client.chat.completions.create(model=PHI, messages=messages, max_tokens=1)  # type: ignore[arg-type]
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == answer.usage.prompt_tokens - 1


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_responses_say_the_same(client: openai.OpenAI, models: dict[str, localq.Model], name: str) -> None:
    expected = models[name].generate(QUESTION)
    answer = client.responses.create(model=name, input=QUESTION, temperature=0, store=False)
    assert (answer.output_text, answer.status) == (expected.text, "completed")
    assert answer.usage is not None and answer.usage.output_tokens == len(expected.generated_token_ids)
    with client.responses.stream(model=name, input=QUESTION, temperature=0) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert final.output_text == expected.text
    assert kinds[:2] == ["response.created", "response.in_progress"] and kinds[-1] == "response.completed"
    cut = client.responses.create(model=name, input=QUESTION, temperature=0, max_output_tokens=2)
    assert cut.status == "incomplete" and cut.incomplete_details is not None
    again = client.responses.create(model=name, input=[*answer.output, {"role": "user", "content": "Why?"}])  # type: ignore[list-item]
    assert again.usage is not None and again.usage.input_tokens > answer.usage.input_tokens


@pytest.mark.parametrize("name", [GGUF, MLX])
def test_anthropics_messages_say_the_same(
    claude: anthropic.Anthropic, models: dict[str, localq.Model], name: str
) -> None:
    expected = models[name].generate(QUESTION)
    answer = claude.messages.create(model=name, max_tokens=99, messages=MESSAGES, extra_body=GREEDY)  # type: ignore[arg-type]
    assert answer.content[0].type == "text" and answer.content[0].text == expected.text
    assert (answer.stop_reason, answer.usage.output_tokens) == ("end_turn", len(expected.generated_token_ids))
    assert answer._request_id is not None and answer._request_id.startswith("req_")
    with claude.messages.stream(model=name, max_tokens=3, messages=MESSAGES, extra_body=GREEDY) as stream:  # type: ignore[arg-type]
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert final.stop_reason == "max_tokens" and expected.text.startswith(text) and text
    count = claude.messages.count_tokens(model=name, messages=MESSAGES)  # type: ignore[arg-type]
    assert count.input_tokens == len(expected.prompt_token_ids)


def test_anthropics_reply_can_be_begun_and_stopped(claude: anthropic.Anthropic) -> None:
    answer = claude.messages.create(
        model=GGUF,
        max_tokens=99,
        messages=[*MESSAGES, {"role": "assistant", "content": "The capital"}],  # type: ignore[list-item]
        extra_body=GREEDY,
        stop_sequences=["xyz", "is", " is"],
    )
    assert answer.content[0].type == "text" and answer.content[0].text == " of France"
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", " is")


def test_models_are_listed_and_found(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    ids = {model.id for model in client.models.list()}
    assert {GGUF, MLX, PHI} <= ids
    assert {model.id for model in claude.models.list()} == ids
    assert client.models.retrieve("toy-llama").id == GGUF
    assert client.models.retrieve("toy-llama:mlx").id == MLX
    assert client.models.retrieve("toy-phi:q8_0").id == PHI


def test_errors_are_those_that_clients_know(client: openai.OpenAI, claude: anthropic.Anthropic) -> None:
    with pytest.raises(openai.NotFoundError, match="toy-lama"):
        client.chat.completions.create(model="toy-lama", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model=GGUF, messages=MESSAGES, tools=[{"type": "function"}])  # type: ignore[list-item]
    with pytest.raises(openai.BadRequestError) as too_long:
        client.chat.completions.create(model=GGUF, messages=[{"role": "user", "content": "word " * 5000}])
    assert too_long.value.code == "context_length_exceeded"
    with pytest.raises(anthropic.NotFoundError, match="toy-lama"):
        claude.messages.create(model="toy-lama", max_tokens=1, messages=MESSAGES)  # type: ignore[arg-type]
    with pytest.raises(anthropic.BadRequestError, match="thinking"):
        claude.messages.create(model=GGUF, max_tokens=9, messages=MESSAGES, thinking={"type": "between_tools"})  # type: ignore[arg-type]
