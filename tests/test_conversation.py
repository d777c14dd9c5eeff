"""Conversations: what is kept, what is computed, and a context that does not end; real toys on both engines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from localq import GenerationOptions, LocalqError, Model, load
from localq.conversation import Conversation, Exchange, Reply
from localq.errors import ModelNotFoundError, OptionError, PromptTooLongError
from localq.transcript import (
    Transcript,
    conversations_folder,
    list_records,
    new_transcript,
    open_transcript,
    read_record,
)

BOTH = ("toy-llama:gguf-q8_0", "toy-llama:mlx-8bit")


@pytest.fixture(scope="module", params=BOTH)
def model(request: pytest.FixtureRequest) -> Iterator[Model]:
    with load(request.param, context_length=256) as opened:
        yield opened


def whole(reply: Reply) -> str:
    for _ in reply:
        pass
    return reply.text


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where conversations are kept, empty at first."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    folder = conversations_folder()
    folder.mkdir(parents=True)
    return folder


def started(model: Model, system: str | None = None) -> Conversation:
    transcript = new_transcript(model.name, model.recipe_name, system)
    return Conversation(model, system, options=GenerationOptions(max_tokens=24), transcript=transcript)


def test_fifty_turns_go_into_a_context_of_256_tokens(model: Model) -> None:
    conversation = Conversation(model, "You are a helpful assistant.", options=GenerationOptions(max_tokens=24))
    computed = []
    for turn in range(50):
        reply = conversation.ask(f"What is the capital of {('France', 'Italy', 'Spain')[turn % 3]}?")
        assert whole(reply)
        assert reply.statistics is not None
        assert reply.statistics.prompt_tokens < 256
        computed.append(reply.statistics.prompt_tokens - reply.statistics.cached_prompt_tokens)
    assert len(conversation.exchanges) == 50
    assert 40 <= conversation.forgotten < 50
    assert conversation.context_tokens < 256
    # Exchanges leave the context in groups: most turns compute what is new alone.
    assert sorted(computed)[25] < 40


def test_the_system_message_stays_when_exchanges_leave(model: Model) -> None:
    conversation = Conversation(model, "Answer in one word.", options=GenerationOptions(max_tokens=16))
    for _ in range(12):
        whole(conversation.ask("What is the capital of France?"))
    assert conversation.forgotten
    ids = conversation._fitting_ids("And Italy?", 0)
    assert "Answer in one word." in model.tokenizer.decode(ids)


def test_a_question_that_is_too_long_by_itself_is_refused_and_nothing_is_lost(model: Model) -> None:
    conversation = Conversation(model, options=GenerationOptions(max_tokens=8))
    whole(conversation.ask("What is the capital of France?"))
    with pytest.raises(PromptTooLongError):
        whole(conversation.ask("word " * 400))
    assert len(conversation.exchanges) == 1
    assert whole(conversation.ask("What is the capital of Italy?"))


def test_a_stopped_reply_keeps_text_and_statistics_and_goes_on_without_a_word_twice(model: Model) -> None:
    options = GenerationOptions(max_tokens=40)
    uncut = whole(Conversation(model, options=options).ask("What is the capital of France?"))
    for tokens in (1, 3, 5):
        conversation = Conversation(model, options=options)
        reply = conversation.ask("What is the capital of France?")
        for count, _ in enumerate(reply, 1):
            if count == tokens:
                reply.stop()
        (exchange,) = conversation.exchanges
        assert exchange.finish_reason == "interrupted"
        assert exchange.statistics is not None
        assert exchange.statistics.generated_tokens == tokens
        assert uncut.startswith(exchange.reply)
        rest = conversation.continue_reply()
        assert exchange.reply + "".join(chunk.text for chunk in rest) == uncut
        assert [kept.reply for kept in conversation.exchanges] == [uncut]
        assert rest.statistics is not None
        assert rest.statistics.prompt_tokens - rest.statistics.cached_prompt_tokens <= 1


def test_a_reply_cut_by_its_length_goes_on(model: Model) -> None:
    uncut = whole(Conversation(model).ask("What is the capital of France?"))
    conversation = Conversation(model, options=GenerationOptions(max_tokens=2))
    whole(conversation.ask("What is the capital of France?"))
    for _ in range(100):
        if not conversation.exchanges[-1].is_open:
            break
        whole(conversation.continue_reply())
    assert conversation.exchanges[-1].reply == uncut
    with pytest.raises(OptionError, match="nothing to continue"):
        conversation.continue_reply()


def test_a_reply_stopped_within_a_character_goes_on_with_the_character(model: Model) -> None:
    ids = model.tokenize("a€")
    conversation = Conversation(model, options=GenerationOptions(max_tokens=1, logit_bias={ids[-1]: 1000.0}))
    conversation.exchanges = [Exchange("What?", "a\ufffd", "interrupted", tuple(ids[:-1]))]
    assert whole(conversation.continue_reply()) == "a€"


def test_a_question_that_does_not_fit_makes_the_model_forget_nothing(model: Model) -> None:
    conversation = Conversation(model, options=GenerationOptions(max_tokens=8))
    whole(conversation.ask("What is the capital of France?"))
    with pytest.raises(PromptTooLongError):
        whole(conversation.ask("word " * 300))
    assert (conversation.forgotten, len(conversation.exchanges)) == (0, 1)


def test_a_reply_stopped_before_its_first_token_leaves_no_trace(model: Model) -> None:
    conversation = Conversation(model)
    reply = conversation.ask("What is the capital of France?")
    reply.stop()
    assert whole(reply) == ""
    assert conversation.exchanges == []


def test_retry_keeps_the_earlier_reply_until_the_new_one_begins(model: Model) -> None:
    conversation = Conversation(model, options=GenerationOptions(max_tokens=8))
    first = whole(conversation.ask("What is the capital of France?"))
    reply = conversation.retry()
    reply.stop()
    whole(reply)
    assert [exchange.reply for exchange in conversation.exchanges] == [first]
    again = conversation.retry()
    assert whole(again) == first
    assert len(conversation.exchanges) == 1
    assert again.statistics is not None
    assert again.statistics.prompt_tokens - again.statistics.cached_prompt_tokens == 1


def test_what_is_asked_without_keeping_is_kept_when_chosen(model: Model) -> None:
    conversation = Conversation(model, options=GenerationOptions(max_tokens=8))
    reply = conversation.ask("What is the capital of France?", keep=False)
    whole(reply)
    assert conversation.exchanges == []
    reply.keep()
    assert conversation.exchanges[0].reply == reply.text


def test_the_same_conversation_goes_on_in_the_other_format() -> None:
    with load(BOTH[0]) as one, load(BOTH[1]) as other:
        conversation = Conversation(one, options=GenerationOptions(max_tokens=12))
        whole(conversation.ask("What is the capital of France?"))
        conversation.switch(other)
        whole(conversation.ask("What is the capital of Italy?"))
        assert [exchange.format for exchange in conversation.exchanges] == ["gguf-q8_0", "mlx-8bit"]


def test_raw_text_is_continued(model: Model) -> None:
    conversation = Conversation(model, raw=True, options=GenerationOptions(max_tokens=6))
    first = whole(conversation.ask("The capital of"))
    whole(conversation.ask(" and"))
    expected = model.prompt_token_ids("The capital of" + first + " and", raw=True)
    assert conversation._ids(0, None)[: len(expected)] == expected
    with pytest.raises(OptionError, match="system message"):
        Conversation(model, "system", raw=True)


def test_a_transcript_says_what_happened(model: Model, kept: Path) -> None:
    conversation = started(model, "Be brief.")
    assert list(kept.iterdir()) == []  # nothing was said yet
    whole(conversation.ask("What is the capital of France?"))
    whole(conversation.ask("What is the capital of Italy?"))
    conversation.undo()
    whole(conversation.retry())
    (file,) = kept.iterdir()
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [event["type"] for event in events] == ["conversation", "turn", "turn", "undo", "undo", "turn"]
    assert events[0]["system"] == "Be brief."
    assert events[1]["messages"] == conversation.exchanges[0].messages
    assert events[1]["options"] == {"max_tokens": 24}
    assert events[1]["statistics"]["generated_tokens"] > 0
    record, transcript = open_transcript()
    resumed = Conversation(model, transcript=transcript)
    resumed.restore(record)
    assert resumed.exchanges == conversation.exchanges
    assert resumed.messages == conversation.messages
    assert record.first_words == "What is the capital of France?"


def test_a_conversation_goes_on_after_it_was_resumed(model: Model, kept: Path) -> None:
    conversation = started(model)
    reply = conversation.ask("What is the capital of France?")
    next(reply), next(reply)
    reply.close()
    record, transcript = open_transcript(conversation.transcript.id[:8] if conversation.transcript else "")
    resumed = Conversation(model, options=GenerationOptions(max_tokens=40), transcript=transcript)
    resumed.restore(record)
    whole(resumed.continue_reply())
    assert resumed.exchanges[0].reply == whole(Conversation(model).ask("What is the capital of France?"))
    assert len(read_record(transcript.file).turns) == 1


def test_a_line_that_a_crash_cut_short_costs_that_line_alone(model: Model, kept: Path) -> None:
    conversation = started(model)
    whole(conversation.ask("What is the capital of France?"))
    (file,) = kept.iterdir()
    with file.open("ab") as stream:
        stream.write(b'{"type": "turn", "messages": [{"ro')
    whole(conversation.ask("What is the capital of Italy?"))
    record = read_record(file)
    assert [turn["messages"][0]["content"][-6:] for turn in record.turns] == ["rance?", "Italy?"]


def test_unusual_line_ends_and_a_character_cut_in_two_lose_no_other_turn(model: Model, kept: Path) -> None:
    conversation = started(model)
    whole(conversation.ask("one\u2028two\x85three"))
    (file,) = kept.iterdir()
    with file.open("ab") as stream:
        stream.write('{"type": "turn", "messages": [{"role": "user", "content": "caf\u00e9'.encode()[:-1])
    whole(conversation.ask("What is the capital of Italy?"))
    questions = [turn["messages"][0]["content"] for turn in read_record(file).turns]
    assert questions == ["one\u2028two\x85three", "What is the capital of Italy?"]


def test_what_is_no_conversation_is_named(kept: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no conversation is kept"):
        open_transcript()
    (kept / "a1.jsonl").write_text("{}\n")
    (kept / "a2.jsonl").write_text('{"type": "conversation", "version": 99}\n')
    with pytest.raises(ModelNotFoundError, match="2 conversations begin with 'a'"):
        open_transcript("a")
    with pytest.raises(ModelNotFoundError, match="no conversation begins with 'b'"):
        open_transcript("b")
    with pytest.raises(LocalqError, match="a1.jsonl is no conversation"):
        open_transcript("a1")
    with pytest.raises(LocalqError, match="version 99"):
        open_transcript("a2")
    assert list(list_records()) == []


def test_a_disk_that_is_full_is_told(tmp_path: Path) -> None:
    transcript = Transcript(tmp_path / "file" / "below.jsonl", {"type": "conversation"})
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalqError, match="can't write"):
        transcript.append({"type": "turn"})


def test_a_saved_conversation_is_read_back_and_markdown_is_for_people(model: Model, tmp_path: Path) -> None:
    conversation = Conversation(model, "Be brief.", options=GenerationOptions(max_tokens=12))
    whole(conversation.ask("What is the capital of France?"))
    conversation.save(tmp_path / "talk.jsonl")
    loaded = Conversation.load(tmp_path / "talk.jsonl", model)
    assert (loaded.exchanges, loaded.system) == (conversation.exchanges, "Be brief.")
    conversation.save(tmp_path / "talk.md")
    text = (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert text.startswith(
        f"# toy-llama:{model.recipe_name}\n\n> Be brief.\n\n## You\n\nWhat is the capital of France?"
    )
