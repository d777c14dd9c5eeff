from __future__ import annotations

import itertools
import os
import site
from collections.abc import Generator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from localq.errors import EngineError, UnsupportedOptionError
from localq.measure.forms import Form
from localq.measure.process import WorkerProcess, _environment
from localq.measure.serving import answer
from localq.measure.speed import worker as worker_module
from localq.measure.speed.results import BenchTest
from localq.measure.speed.worker import MeasuredModel, Worker, depth_ids, plain_token_ids, random_prompt
from localq.options import GenerationOptions, LoadOptions
from localq.text.tokenizer import load_tokenizer
from tests.scripted_engine import ScriptedEngine

_OPTIONS = LoadOptions(context_length=128, threads=1)


def _measured_with(
    engine: ScriptedEngine, form: Form, monkeypatch: pytest.MonkeyPatch, options: LoadOptions = _OPTIONS
) -> MeasuredModel:
    """With a single run to warm up; a script is so fast that many fit into a tenth of a second."""
    monkeypatch.setattr(worker_module, "_WARM_UP_SECONDS", 0)
    monkeypatch.setattr("localq.model._open_engine", lambda *_: engine)
    return MeasuredModel(form.path, options)


class _RecordingEngine(ScriptedEngine):
    """Remembers how much of each prompt came from the cache, and the options of each generation.

    A depth is prefilled as well, and no reply is asked for then.
    """

    def __init__(self, reply: Sequence[int], keeps: bool = True, replies: int = 100) -> None:
        super().__init__([reply] * replies, vocabulary_size=768)
        self.reused: list[int] = []
        self.options: list[GenerationOptions] = []
        self._keeps = keeps

    def prefill(self, prompt: Sequence[int], on_progress: Any = None) -> int:
        if not self._keeps:
            self._tokens.clear()
        self.reused.append(super().prefill(prompt, on_progress))
        return self.reused[-1]

    def generate(self, options: GenerationOptions) -> Generator[int, None, None]:
        self.options.append(options)
        return super().generate(options)


def test_both_forms_are_given_the_same_prompts(forms: list[Form]) -> None:
    mlx, gguf = (plain_token_ids(load_tokenizer(form.path)) for form in forms)
    assert mlx == gguf
    for run in range(4):
        assert random_prompt(mlx, 40, run) == random_prompt(gguf, 40, run)


def test_a_prompt_holds_no_added_token(forms: list[Form]) -> None:
    tokenizer = load_tokenizer(forms[0].path)
    plain = plain_token_ids(tokenizer)
    assert tokenizer.added_tokens
    assert sorted([*plain, *tokenizer.added_tokens.values()]) == list(range(tokenizer.vocabulary_size))
    assert set(random_prompt(plain, 500, run=3)) <= set(plain)


def test_a_prompt_is_repeatable_and_as_long_as_asked_for() -> None:
    assert random_prompt(range(100), 5, run=7) == random_prompt(range(100), 5, run=7)
    assert [len(random_prompt(range(100), count, run=1)) for count in (1, 2, 300)] == [1, 2, 300]


def test_following_prompts_share_no_prefix() -> None:
    prompts = [random_prompt(range(100), 5, run) for run in range(250)]
    assert all(one[0] != next_one[0] for one, next_one in zip(prompts, prompts[1:], strict=False))


@pytest.mark.parametrize("depths", [(0,) * 6, (0, 12, 12, 5, 20, 0)])
def test_nothing_but_the_depth_is_taken_from_the_cache(
    depths: tuple[int, ...], forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1])
    measured = _measured_with(engine, forms[0], monkeypatch)
    prompts = []
    for run, depth in enumerate(depths):
        statistics = measured.measure(run, BenchTest(prompt_tokens=30, depth_tokens=depth)).statistics
        assert (statistics.prompt_tokens, statistics.cached_prompt_tokens) == (30 + depth, depth)
        prompts.append(engine.prompts[-1][depth:])
    assert [len(prompt) for prompt in prompts] == [30] * 6
    assert len({tuple(prompt) for prompt in prompts}) == 6


def test_a_batch_of_the_prompt_and_some_generated_tokens_warm_up(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1] * 20)
    measured = _measured_with(engine, forms[0], monkeypatch, LoadOptions(context_length=128, batch_tokens=16))
    for run, test in enumerate(
        (BenchTest(prompt_tokens=40), BenchTest(prompt_tokens=12), BenchTest(generated_tokens=20))
    ):
        measured.measure(run, test)
    assert [len(prompt) for prompt in engine.prompts] == [16, 40, 12, 12, 1, 1]
    assert [options.max_tokens for options in engine.options] == [1, 1, 1, 1, 8, 20]
    assert engine.reused == [0] * 6


def test_a_fast_model_warms_up_for_a_while(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 0.03)
    engine = _RecordingEngine([1])
    measured = _measured_with(engine, forms[0], monkeypatch)
    monkeypatch.setattr(worker_module, "_WARM_UP_SECONDS", 0.1)
    monkeypatch.setattr(worker_module, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    measured.measure(0, BenchTest(prompt_tokens=20))
    assert [len(prompt) for prompt in engine.prompts] == [20] * 5  # four of them for 0.12 seconds
    assert engine.reused == [0] * 5


def test_however_often_it_warms_up_no_prompt_is_in_the_cache(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain_count = len(plain_token_ids(load_tokenizer(forms[0].path)))
    for times in range(plain_count - 3, plain_count + 1):
        clock = iter([0.0] * times + [1.0])
        engine = _RecordingEngine([1], replies=times + 1)
        measured = _measured_with(engine, forms[0], monkeypatch)
        with monkeypatch.context() as patch:
            patch.setattr(worker_module, "time", SimpleNamespace(perf_counter=lambda clock=clock: next(clock)))
            measured.measure(0, BenchTest(prompt_tokens=2))
        assert engine.reused == [0] * (times + 1)


def test_the_depth_is_computed_once_and_kept(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    engine = _RecordingEngine([1] * 5)
    measured = _measured_with(engine, forms[0], monkeypatch)
    for run, test in enumerate(
        (BenchTest(prompt_tokens=8, depth_tokens=40), BenchTest(generated_tokens=3, depth_tokens=40))
    ):
        measured.measure(run, test)
    # Warm-up and test of each: all but the newest token, which gives the logits; then the whole depth.
    assert engine.reused == [0, 40, 39, 40, 39, 40, 39, 40]
    assert len({tuple(prompt[:40]) for prompt in engine.prompts}) == 1
    measured.measure(2, BenchTest(generated_tokens=3, depth_tokens=70))
    assert engine.reused[8:10] == [40, 70]


def test_a_greater_depth_begins_like_a_smaller_one() -> None:
    assert depth_ids(range(100), 0) == []
    assert depth_ids(range(100), 300)[:40] == depth_ids(range(100), 40)
    assert len(depth_ids(range(100), 300)) == 300


def test_no_prompt_begins_like_the_depth() -> None:
    assert all(random_prompt(range(50), 3, run)[0] != depth_ids(range(50), 1)[0] for run in range(120))


def test_a_cache_that_cannot_be_kept_is_no_depth_for_prompts(
    forms: list[Form], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _RecordingEngine([1, 2], keeps=False)
    measured = _measured_with(engine, forms[0], monkeypatch)
    with pytest.raises(UnsupportedOptionError, match="can't be kept at 20 tokens") as caught:
        measured.measure(0, BenchTest(prompt_tokens=5, depth_tokens=20))
    assert "-d" in caught.value.hint
    statistics = measured.measure(1, BenchTest(generated_tokens=2, depth_tokens=20)).statistics
    assert (statistics.prompt_tokens, statistics.generated_tokens) == (21, 2)


def test_generation_is_greedy_and_goes_on_after_end_tokens(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    end_token = load_tokenizer(forms[0].path).added_tokens["<|end_of_text|>"]
    engine = _RecordingEngine([end_token] * 10)
    found = _measured_with(engine, forms[0], monkeypatch).measure(0, BenchTest(generated_tokens=10))
    assert found.statistics.generated_tokens == 10
    assert found.statistics.prompt_tokens == 1
    assert engine.options[-1] == GenerationOptions(max_tokens=10)
    assert engine.options[-1].temperature == 0


def test_a_generation_that_ends_early_is_an_error(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    measured = _measured_with(_RecordingEngine([5, 6, 7]), forms[0], monkeypatch)
    with pytest.raises(EngineError, match="3 tokens came instead of 4"):
        measured.measure(0, BenchTest(generated_tokens=4))


@pytest.mark.parametrize("depth", [0, 33])
@pytest.mark.parametrize("index", [0, 1], ids=["mlx", "gguf"])
def test_a_real_form_is_measured(forms: list[Form], index: int, depth: int) -> None:
    measured = MeasuredModel(forms[index].path, LoadOptions(context_length=128))
    for run in range(2):
        prompt = measured.measure(2 * run, BenchTest(prompt_tokens=20, depth_tokens=depth))
        statistics = prompt.statistics
        assert (statistics.prompt_tokens, statistics.cached_prompt_tokens) == (20 + depth, depth)
        assert prompt.to_json()["tokens_per_second"] == 20 / statistics.prompt_seconds
        generation = measured.measure(2 * run + 1, BenchTest(generated_tokens=5, depth_tokens=depth))
        assert generation.statistics.generated_tokens == 5
        assert generation.to_json()["tokens_per_second"] == 4 / generation.statistics.decode_seconds
    assert measured.model.context_length == 128
    measured.model.close()


def test_the_energy_is_that_of_each_token(forms: list[Form], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_module, "EnergyMeter", lambda: SimpleNamespace(joules=lambda: 6.0))
    measured = _measured_with(_RecordingEngine([1, 2, 3]), forms[0], monkeypatch)
    assert measured.measure(0, BenchTest(generated_tokens=3)).to_json()["joules_per_token"] == 2
    measured = _measured_with(_RecordingEngine([1]), forms[0], monkeypatch)
    assert measured.measure(0, BenchTest(prompt_tokens=12)).to_json()["joules_per_token"] == 0.5


def test_a_foreign_gguf_file_is_measured(forms: list[Form]) -> None:
    measured = MeasuredModel(next(forms[1].path.glob("*.gguf")), _OPTIONS)
    assert measured.measure(0, BenchTest(generated_tokens=2)).statistics.generated_tokens == 2
    measured.model.close()


def test_an_error_becomes_an_answer_with_message_and_hint(forms: list[Form]) -> None:
    request = {"command": "load", "path": str(forms[0].path), "context_length": 600, "threads": 1}
    assert answer(Worker().commands, request) == {
        "error": "a context of 600 tokens is more than the model's 512",
        "hint": "measure fewer tokens with -p, -g and -d, or give a smaller context with -c",
    }


def test_a_worker_process_does_not_need_localq_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with WorkerProcess("a form") as worker:
        assert worker.ask("peak_memory")["peak_memory_bytes"] > 1 << 20


def test_a_folder_of_installed_packages_is_not_put_before_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", "/of/the/user")
    assert _environment(tmp_path)["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/of/the/user"
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(tmp_path)])
    assert _environment(tmp_path)["PYTHONPATH"] == "/of/the/user"
    monkeypatch.delenv("PYTHONPATH")
    assert "PYTHONPATH" not in _environment(tmp_path)
