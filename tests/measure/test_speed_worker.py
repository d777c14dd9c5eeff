from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from localq.errors import EngineError, UnsupportedOptionError
from localq.generation import GenerationStatistics
from localq.measure import speed_worker
from localq.measure.forms import Form
from localq.measure.speed_worker import compute, depth_ids, measure, plain_token_ids, random_prompt
from localq.model import Model, open_form, open_gguf_file
from localq.options import GenerationOptions, LoadOptions
from localq.text.tokenizer import load_tokenizer
from tests.scripted_engine import ScriptedEngine

_OPTIONS = LoadOptions(context_length=128, threads=1)


def _model_with(engine: ScriptedEngine, form: Form, monkeypatch: pytest.MonkeyPatch) -> Model:
    """With a single run to warm up; a script is so fast that many fit into a tenth of a second."""
    monkeypatch.setattr(speed_worker, "_WARM_UP_SECONDS", 0)
    monkeypatch.setattr("localq.model._open_engine", lambda *_: engine)
    return open_form(form.path, _OPTIONS)


def _prompt(model: Model, number: int, tokens: int, depth: int = 0, batch: int = 512) -> tuple[float, float]:
    return measure(model, number, depth, tokens, 1, batch)


def _reply(model: Model, number: int, tokens: int, depth: int = 0) -> tuple[float, float]:
    return measure(model, number, depth, 1, tokens, 512)


class _RecordingEngine(ScriptedEngine):
    """Remembers how much of each prompt came from the cache, and the options of each generation.

    A depth is prefilled as well, and no reply is generated then.
    """

    def __init__(self, reply: Sequence[int], keeps: bool = True, replies: int = 100) -> None:
        super().__init__([reply] * replies, vocabulary_size=768)
        self.reused: list[int] = []
        self.options: list[GenerationOptions] = []
        self._keeps = keeps

    def prefill(self, prompt: Sequence[int], on_progress: Any = None) -> int:
        if not self._keeps:
            self._cached[0].cut(0)
        self.reused.append(super().prefill(prompt, on_progress))
        return self.reused[-1]

    def generate(self, options: GenerationOptions, constraint: Any = None) -> Generator[int, None, None]:
        self.options.append(options)
        return super().generate(options, constraint)


def test_all_forms_are_given_the_same_prompts_without_added_tokens(forms: list[Form]) -> None:
    tokenizer = load_tokenizer(forms[0].path)
    plain = plain_token_ids(tokenizer)
    assert plain == plain_token_ids(load_tokenizer(forms[1].path))
    assert tokenizer.added_tokens
    assert sorted([*plain, *tokenizer.added_tokens.values()]) == list(range(tokenizer.vocabulary_size))
    assert set(random_prompt(plain, 500, number=3)) <= set(plain)


def test_prompts_are_repeatable_and_share_no_prefix_with_the_next_one_and_the_depth() -> None:
    assert random_prompt(range(100), 5, number=7) == random_prompt(range(100), 5, number=7)
    assert [len(random_prompt(range(100), count, number=1)) for count in (1, 2, 300)] == [1, 2, 300]
    prompts = [random_prompt(range(100), 5, number) for number in range(250)]
    assert all(one[0] != next_one[0] for one, next_one in itertools.pairwise(prompts))
    assert depth_ids(range(100), 1)[0] not in {prompt[0] for prompt in prompts}


@pytest.mark.parametrize("depths", [(0,) * 6, (0, 12, 12, 5, 20, 0)])
def test_only_the_depth_is_taken_from_the_cache(
    depths: tuple[int, ...], forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1])
    model = _model_with(engine, forms[0], monkeypatch)
    prompts = []
    for number, depth in enumerate(depths):
        _prompt(model, number, 30, depth)  # an error where less or more is in the cache
        assert engine.reused[-1] == depth
        prompts.append(engine.prompts[-1][depth:])
    assert [len(prompt) for prompt in prompts] == [30] * 6
    assert len({tuple(prompt) for prompt in prompts}) == 6


def test_a_batch_of_the_prompt_and_some_generated_tokens_warm_up(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1] * 20)
    model = _model_with(engine, forms[0], monkeypatch)
    _prompt(model, 0, 40, batch=16)
    _prompt(model, 1, 12, batch=16)
    _reply(model, 2, 20)
    assert [len(prompt) for prompt in engine.prompts] == [16, 40, 12, 12, 1, 1]
    assert [options.max_tokens for options in engine.options] == [1, 1, 1, 1, 8, 20]
    assert engine.reused == [0] * 6


def test_a_fast_model_warms_up_for_a_while(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 0.03)
    engine = _RecordingEngine([1])
    model = _model_with(engine, forms[0], monkeypatch)
    monkeypatch.setattr(speed_worker, "_WARM_UP_SECONDS", 0.1)
    monkeypatch.setattr(speed_worker, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    _prompt(model, 0, 20)
    assert [len(prompt) for prompt in engine.prompts] == [20] * 5  # four of them for 0.12 seconds
    assert engine.reused == [0] * 5


def test_however_often_it_warms_up_no_prompt_is_in_the_cache(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_count = len(plain_token_ids(load_tokenizer(forms[0].path)))
    for times in range(plain_count - 3, plain_count + 1):
        clock = iter([0.0] * times + [1.0])
        engine = _RecordingEngine([1], replies=times + 1)
        model = _model_with(engine, forms[0], monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(speed_worker, "time", SimpleNamespace(perf_counter=lambda clock=clock: next(clock)))
            _prompt(model, 0, 2)
        assert engine.reused == [0] * (times + 1)


def test_the_depth_is_computed_once_and_kept(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _RecordingEngine([1] * 5)
    model = _model_with(engine, forms[0], monkeypatch)
    _prompt(model, 0, 8, depth=40)
    _reply(model, 1, 3, depth=40)
    # Warm-up and test of each: the depth without its newest token, which gives the logits; then the whole depth.
    assert engine.reused == [0, 40, 39, 40, 39, 40, 39, 40]
    assert len({tuple(prompt[:40]) for prompt in engine.prompts}) == 1
    _reply(model, 2, 3, depth=70)
    assert engine.reused[8:10] == [40, 70]


def test_a_greater_depth_begins_like_a_smaller_one() -> None:
    assert depth_ids(range(100), 0) == []
    assert depth_ids(range(100), 300)[:40] == depth_ids(range(100), 40)
    assert len(depth_ids(range(100), 300)) == 300


def test_a_cache_that_cannot_be_kept_is_no_depth_for_prompts(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1, 2], keeps=False)
    model = _model_with(engine, forms[0], monkeypatch)
    with pytest.raises(UnsupportedOptionError, match="can't be kept at 20 tokens") as caught:
        _prompt(model, 0, 5, depth=20)
    assert "-d" in caught.value.hint
    _reply(model, 1, 2, depth=20)
    assert [len(engine.prompts[-1]), engine.options[-1].max_tokens] == [21, 2]


def test_generation_is_greedy_and_goes_on_after_end_tokens(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    end_token = load_tokenizer(forms[0].path).added_tokens["<|end_of_text|>"]
    engine = _RecordingEngine([end_token] * 10)
    _reply(_model_with(engine, forms[0], monkeypatch), 0, 10)  # an error where fewer tokens come
    assert len(engine.prompts[-1]) == 1
    assert engine.options[-1] == GenerationOptions(max_tokens=10)
    assert engine.options[-1].temperature == 0


def test_a_generation_that_ends_early_is_an_error(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="3 tokens came instead of 4"):
        _reply(_model_with(_RecordingEngine([5, 6, 7]), forms[0], monkeypatch), 0, 4)


def test_the_rates_are_those_of_the_statistics(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    found = GenerationStatistics(
        prompt_tokens=60,
        cached_prompt_tokens=40,
        generated_tokens=5,
        prompt_seconds=2.0,
        decode_seconds=0.5,
        time_to_first_token_seconds=2.5,
    )
    model = _model_with(_RecordingEngine([1]), forms[0], monkeypatch)
    monkeypatch.setattr(speed_worker, "compute", lambda *_: found)
    assert _prompt(model, 0, 20, depth=40) == (20 / 2.0, 2.5)
    assert _reply(model, 0, 5) == (4 / 0.5, 2.5)


@pytest.mark.parametrize("depth", [0, 33])
@pytest.mark.parametrize("index", [0, 1], ids=["mlx", "gguf"])
def test_a_real_form_is_measured(forms: list[Form], index: int, depth: int) -> None:
    with open_form(forms[index].path, LoadOptions(context_length=128)) as model:
        for number in range(2):
            rate, first_token_seconds = _prompt(model, 2 * number, 20, depth)
            assert 0 < 20 / rate < first_token_seconds
            assert _reply(model, 2 * number + 1, 5, depth)[0] > 0
        found = compute(model, 9, depth, 20, 1)
        assert (found.prompt_tokens, found.cached_prompt_tokens) == (20 + depth, depth)


def test_a_foreign_gguf_file_is_measured(forms: list[Form]) -> None:
    with open_gguf_file(next(forms[1].path.glob("*.gguf")), _OPTIONS) as model:
        assert _reply(model, 0, 2)[0] > 0
