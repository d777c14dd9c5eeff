"""The Python API as people meet it in a session: names, help, reprs, errors, notebooks. Real toys on both engines."""

from __future__ import annotations

import inspect
import pydoc
import re
import rlcompleter
import subprocess
import sys
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import localq
from localq.errors import ChatTemplateError, LocalqError, ModelReferenceError, OptionError, StoreError
from localq.measure.quality import EvalSettings
from localq.measure.reports import BenchSettings
from localq.options import GenerationKeywords, GenerationOptions, LoadKeywords, LoadOptions
from localq.text.chat_template import ChatTemplate, check_messages

BOTH = ("toy-llama:gguf-q4_k_m", "toy-llama:mlx-4bit")
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
USER = {"role": "user", "content": QUESTION}


@pytest.fixture(scope="module", params=BOTH)
def model(request: pytest.FixtureRequest) -> Iterator[localq.Model]:
    with localq.load(request.param) as opened:
        yield opened


@pytest.mark.parametrize("first", ["pass", "localq.load", "import localq.chat.session, localq.cli.main"])
def test_a_session_lists_the_public_names_and_nothing_else(first: str) -> None:
    code = f"import localq\n{first}\nprint(*dir(localq))"
    listed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert listed == localq.__all__


def test_tab_completes_the_public_names() -> None:
    completer = rlcompleter.Completer({"localq": localq})
    offered = {name.rstrip("()").removeprefix("localq.") for name in completer.attr_matches("localq.")}
    assert offered == {name for name in localq.__all__ if not name.startswith("_")}


@pytest.mark.parametrize(("keywords", "kind"), [(GenerationKeywords, GenerationOptions), (LoadKeywords, LoadOptions)])
def test_keywords_for_editors_are_the_fields_with_their_types(keywords: type, kind: type) -> None:
    assert typing.get_type_hints(keywords) == typing.get_type_hints(kind)


@pytest.mark.parametrize(
    ("function", "kind"),
    [
        (localq.load, LoadOptions),
        (localq.Model.generate, GenerationOptions),
        (localq.Model.stream, GenerationOptions),
        (localq.Conversation, GenerationOptions),
        (localq.Conversation.load, GenerationOptions),
        (localq.bench, BenchSettings),
        (localq.evaluate, EvalSettings),
    ],
)
def test_signatures_and_help_have_every_option(function: Callable[..., Any], kind: Any) -> None:
    parameters, text = inspect.signature(function).parameters, pydoc.plain(pydoc.render_doc(function))
    signature, _, described = text.partition(f"{kind.__name__}: How")
    for name in vars(kind).get("__dataclass_fields__") or kind.model_fields:
        assert parameters[name].default == getattr(kind(), name)
        assert f"{name}: " in signature
        assert re.search(rf"^[ |]+{name}: [A-Z0-9`]", described, re.MULTILINE), name
    assert all(item.kind is not inspect.Parameter.VAR_KEYWORD for item in parameters.values())


def test_a_wrong_option_is_named_with_the_nearest_one(model: localq.Model, tmp_path: Path) -> None:
    wrong: list[tuple[str, Callable[[], object]]] = [
        ("temprature: did you mean temperature", lambda: model.generate(QUESTION, temprature=1)),  # type: ignore[call-arg]
        ("max_token: did you mean max_tokens", lambda: model.stream(QUESTION, max_token=1)),  # type: ignore[call-arg]
        ("topk: did you mean top_k", lambda: localq.GenerationOptions(topk=1)),  # type: ignore[call-arg]
        ("seeds: did you mean seed", lambda: localq.Conversation(model, seeds=1)),  # type: ignore[call-arg]
        ("context_len: did you mean context_length", lambda: localq.load("toy-phi", context_len=1)),  # type: ignore[call-arg]
        ("thread: did you mean threads", lambda: localq.LoadOptions(thread=1)),  # type: ignore[call-arg]
        ("model_dir: did you mean models_dir", lambda: localq.ls(model_dir=tmp_path)),  # type: ignore[call-arg]
        ("recipe: did you mean recipes", lambda: localq.convert("toy-phi", recipe="mlx-4bit")),  # type: ignore[call-arg]
        ("listner: did you mean listener", lambda: localq.pull("org/name", listner=None)),  # type: ignore[call-arg]
        ("repetition: did you mean repetitions", lambda: localq.bench("toy-phi", repetition=1)),  # type: ignore[call-arg]
        ("windows_tokens: did you mean window_tokens", lambda: localq.evaluate("toy-phi", windows_tokens=1)),  # type: ignore[call-arg]
    ]
    for expected, use in wrong:
        with pytest.raises(OptionError, match=f"unknown option {expected}") as caught:
            use()
        assert "options: " in caught.value.hint
    with pytest.raises(OptionError, match="expected GenerationOptions"):
        model.generate(QUESTION, options={"temperature": 1})  # type: ignore[arg-type]


def test_options_by_name_count_more_than_those_in_one_object(model: localq.Model) -> None:
    chosen = GenerationOptions(max_tokens=2, stop=("Paris",))
    assert model.generate(QUESTION, options=chosen).statistics.generated_tokens == 2
    assert model.generate(QUESTION, options=chosen, max_tokens=50).text == "The capital of France is "


def test_objects_say_in_one_line_what_they_are(model: localq.Model) -> None:
    name = f"{model.name}:{model.recipe_name}"
    assert repr(model) == f"<Model {name}, context of 1,024 tokens>"
    completion = model.generate(QUESTION)
    assert str(completion) == completion.text == ANSWER
    assert repr(completion) == f"<Completion {ANSWER!r}, stop: {completion.statistics}>"
    assert "t/s" in repr(completion)
    assert len(repr(model.generate("word " * 30, raw=True, max_tokens=60)).splitlines()) == 1
    stream = model.stream(QUESTION)
    assert "not begun" in repr(stream)
    texts = [str(next(stream))]
    assert repr(stream) == "<ReplyStream, being read>"
    texts += map(str, stream)
    assert "".join(texts) == ANSWER
    assert repr(stream) == "<ReplyStream, ended>"
    unfinished = model.stream(QUESTION)
    next(unfinished)
    model.generate(QUESTION)
    assert "cut off" in repr(unfinished)


def test_a_closed_model_says_so() -> None:
    with localq.load("toy-llama:gguf-q4_k_m") as model:
        pass
    assert repr(model) == "<Model toy-llama:gguf-q4_k_m, closed>"


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        ([{"role": "usr", "content": "Hi"}], r"messages\[0\] has the unknown role 'usr': did you mean 'user'"),
        ([USER, {"role": "User", "content": "Hi"}], r"messages\[1\] has the unknown role 'User': did you mean 'user'"),
        ([{"role": "narrator", "content": "Hi"}], r"messages\[0\] has the unknown role 'narrator'$"),
        ([{"content": "Hi"}], r"messages\[0\] has no role"),
        ([USER, {"role": "assistant"}], r"messages\[1\] has no content"),
        ([{"role": "user", "content": 5}], r"messages\[0\] has content that is not text"),
        ([{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], r"messages\[0\] has content in parts"),
        (["Hi"], r"messages\[0\] is 'Hi', not an object"),
        ([], "expected at least one message"),
        (USER, "expected at least one message"),
        (5, "messages is 5"),
        (None, "messages is None"),
    ],
)
def test_wrong_messages_are_named(model: localq.Model, messages: Any, expected: str) -> None:
    for use in (model.generate, model.stream, model.prompt_token_ids):
        with pytest.raises(ChatTemplateError, match=expected):
            use(messages)
    if not isinstance(messages, list):
        with pytest.raises(OptionError, match="raw=True takes a string"):
            model.generate(messages, raw=True)


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "function", "ipython"])
def test_roles_that_programs_use_are_taken(role: str) -> None:
    check_messages([{"role": role, "content": "Hi"}], ChatTemplate("{{ messages[0].role }}", {}))


def test_a_template_may_have_roles_and_parts_of_its_own() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.role == 'critic' %}{{ m.content[0].text }}{% endif %}{% endfor %}", {}
    )
    messages = [{"role": "critic", "content": [{"type": "text", "text": "Hm"}]}]
    check_messages(messages, template)
    assert template.render(messages) == "Hm"


def test_what_was_converted_is_listed(tmp_path: Path) -> None:
    made = localq.convert("toy-llama", ["mlx-4bit", "gguf-q8_0"], models_dir=tmp_path)
    listed = localq.ls(tmp_path)
    assert list(listed) == sorted(made, key=lambda artifact: listed.index(artifact))
    assert [artifact.name for artifact in listed] == ["toy-llama:mlx-4bit", "toy-llama:gguf-q8_0"]
    assert repr(listed[0]).startswith("<Artifact toy-llama:mlx-4bit, ")
    assert repr(listed[0]).endswith(f"B, {listed[0].path}>")
    lines = repr(listed).splitlines()
    assert [line.split()[0] for line in lines] == ["model", "-" * 19, "toy-llama:mlx-4bit", "toy-llama:gguf-q8_0"]
    html = listed._repr_html_()
    assert html.count("<tr>") == 3 and "toy-llama:gguf-q8_0</td>" in html
    (tmp_path / "empty").mkdir()
    assert repr(localq.ls(tmp_path / "empty")) == "[]"
    with pytest.raises(StoreError, match="there is no folder"):
        localq.ls(tmp_path / "nothing")


def test_an_artifact_is_a_reference(tmp_path: Path) -> None:
    for artifact in localq.convert("toy-llama", ["mlx-4bit", "gguf-q8_0"], models_dir=tmp_path):
        with localq.load(artifact) as model:
            assert repr(model) == f"<Model {artifact.name}, context of 1,024 tokens>"


def test_pull_takes_repositories_alone() -> None:
    with pytest.raises(ModelReferenceError, match="is on this machine already"):
        localq.pull("toy-llama")


def test_a_conversation_is_had_saved_and_taken_up(model: localq.Model, tmp_path: Path) -> None:
    conversation = localq.Conversation(model, "Be brief.", max_tokens=30)
    name = f"{model.name}:{model.recipe_name}"
    assert repr(conversation) == f"<Conversation with {name}, 0 exchanges>"
    reply = conversation.ask(QUESTION)
    assert "not begun" in repr(reply)
    assert reply.read() == str(reply) == reply.text
    assert repr(reply) == f"<Reply {reply.text!r}, stop>"
    assert repr(conversation) == f"<Conversation with {name}, 1 exchange>"
    conversation.save(str(tmp_path / "talk.jsonl"))
    again = localq.Conversation.load(str(tmp_path / "talk.jsonl"), model, max_tokens=3)
    assert (again.messages, again.options.max_tokens) == (conversation.messages, 3)
    with pytest.raises(LocalqError, match="question is 5; expected text"):
        conversation.ask(5)  # type: ignore[arg-type]
    with pytest.raises(LocalqError, match="nothing"):
        localq.Conversation.load(tmp_path / "nothing.jsonl", model)
    with pytest.raises(OptionError, match="temperature is -1"):
        localq.Conversation(model, temperature=-1)


def test_a_prompt_cache_is_named_by_a_string(model: localq.Model, tmp_path: Path) -> None:
    model.generate(QUESTION)
    model.save_prompt_cache(str(tmp_path / "cache"))
    model.load_prompt_cache(str(tmp_path / "cache"))


def test_speed_is_measured_and_shown_as_tables(tmp_path: Path) -> None:
    made = localq.convert("toy-llama", ["gguf-q8_0"], models_dir=tmp_path)
    sizes: dict[str, Any] = {"prompt_tokens": 8, "generated_tokens": [4], "repetitions": 1}
    report = localq.bench(made, models_dir=tmp_path, **sizes)
    assert [(form.name, [test.test for test in form.tests]) for form in report.results] == [
        ("toy-llama:gguf-q8_0", ["pp8", "tg4"])
    ]
    assert str(report).startswith("toy-llama: speed by format\n")
    assert repr(report) == str(report)
    html = report._repr_html_()
    assert html.count("<table>") == 2 and ">gguf-q8_0</td>" in html
    elsewhere = localq.bench(made[0], models_dir=tmp_path / "other", **sizes)
    assert elsewhere.results[0].name == "toy-llama:gguf-q8_0"


def test_quality_is_measured_and_shown_as_tables(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The capital of France is Paris. " * 20, encoding="utf-8")
    settings: dict[str, Any] = {"window_tokens": 16, "most_windows": 1, "noise_floor": False}
    artifacts = localq.convert("toy-llama", ["gguf-q8_0", "gguf-f32"], models_dir=tmp_path)
    for text in ({}, {"text_file": str(tmp_path / "text.txt")}):
        report = localq.evaluate(artifacts[0], models_dir=str(tmp_path), **settings, **text)
        assert [form.name for form in report.results] == ["toy-llama:gguf-q8_0"]
        assert str(report).startswith("toy-llama: quality by format\n")
        assert report._repr_html_().count("<table>") == 2


@pytest.mark.parametrize(
    ("expected", "verb", "settings"),
    [
        ("threads is 0", "bench", {"threads": 0}),
        ("repetitions is 0", "bench", {"repetitions": 0}),
        ("prompt_tokens is 0", "bench", {"prompt_tokens": 0}),
        ("prompt_tokens.0: Input should be a valid integer", "bench", {"prompt_tokens": ["many"]}),
        ("most_windows is 'many'; expected a whole number", "evaluate", {"most_windows": "many"}),
        ("threads is 0", "evaluate", {"threads": 0}),
        ("can't read .*nowhere", "evaluate", {"text_file": "nowhere"}),
    ],
)
def test_wrong_settings_of_measurements_are_named(expected: str, verb: str, settings: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match=expected):
        getattr(localq, verb)("toy-llama", **settings)
    with pytest.raises(OptionError, match="no model"):
        getattr(localq, verb)([])


def test_a_notebook_shows_bars(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    localq.convert("toy-llama", ["mlx-4bit"], models_dir=tmp_path / "plain")
    assert capsys.readouterr().err == ""
    ipython = types.ModuleType("IPython")
    ipython.get_ipython = lambda: types.SimpleNamespace(config={})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    localq.convert("toy-llama", ["mlx-4bit", "gguf-q8_0"], models_dir=tmp_path / "shown")
    last = capsys.readouterr().err.rstrip().rpartition("\r")[2]
    assert last.startswith("gguf-q8_0, mlx-4bit: 100%")
    localq.convert("toy-llama", ["mlx-4bit"], models_dir=tmp_path / "silent", listener=localq.ConversionListener())
    assert capsys.readouterr().err == ""
