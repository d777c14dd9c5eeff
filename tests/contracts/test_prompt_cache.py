"""Saved states: the same kind of engine loads them, any other refuses them, and damage is found."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from localq.engines import llamacpp, mlx
from localq.engines.base import Engine, EngineState
from localq.engines.prompt_cache import load_prompt_cache, save_prompt_cache, weights_fingerprint
from localq.errors import EngineError, LocalqError, OptionError
from localq.options import GenerationOptions, LoadOptions
from tests.contracts.replies import PROMPT, all_logits, long_prompt
from tests.contracts.test_engine import EngineMaker
from tests.scripted_engine import ScriptedEngine

GREEDY = GenerationOptions(max_tokens=8)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "prompt.cache"


def test_another_engine_loads_a_prompt_from_a_file(make_engine: EngineMaker, file: Path) -> None:
    first = make_engine(64)
    first.prefill(PROMPT)
    reply = list(first.generate(GREEDY))
    save_prompt_cache(first, file, "weights")
    second = make_engine(64)
    load_prompt_cache(second, file, "weights")
    assert second.prefill(PROMPT) == len(PROMPT) - 1
    assert list(second.generate(GREEDY)) == reply


def test_a_restored_state_gives_the_same_as_a_computed_one(computing_engine: Engine) -> None:
    prompt = long_prompt(300)
    computing_engine.prefill(prompt[:-1])
    state = computing_engine.state()
    computing_engine.prefill(prompt)
    expected = computing_engine.logits()
    all_logits(computing_engine, [3, 2, 1])
    computing_engine.restore(state)
    assert computing_engine.prefill(prompt) == len(prompt) - 1
    assert np.array_equal(computing_engine.logits(), expected)
    # It can also be shortened: another prompt uses a part of it.
    assert computing_engine.prefill([*prompt[:100], 7, 7]) == 100


def test_a_state_has_no_logits(make_engine: EngineMaker) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    state = engine.state()
    with pytest.raises(EngineError, match="no prompt"):
        engine.logits()
    engine.prefill(PROMPT)
    engine.restore(state)
    with pytest.raises(EngineError, match="no prompt"):
        engine.logits()


def test_an_engine_that_has_computed_nothing_saves_no_tokens(make_engine: EngineMaker, file: Path) -> None:
    save_prompt_cache(make_engine(64), file, "weights")
    engine = make_engine(64)
    load_prompt_cache(engine, file, "weights")
    assert engine.prefill(PROMPT) == 0


def test_a_saved_file_replaces_the_one_before_and_leaves_no_other_file(make_engine: EngineMaker, file: Path) -> None:
    file.write_text("something else")
    engine = make_engine(64)
    engine.prefill(PROMPT)
    save_prompt_cache(engine, file, "weights")
    load_prompt_cache(engine, file, "weights")
    assert list(file.parent.iterdir()) == [file]


def test_another_model_is_refused_before_anything_is_read(make_engine: EngineMaker, file: Path) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    save_prompt_cache(engine, file, "these weights")
    with pytest.raises(OptionError, match=f"{file}.*another model") as caught:
        load_prompt_cache(engine, file, "those weights")
    assert "--prompt-cache" in caught.value.hint
    assert engine.prefill(PROMPT) == len(PROMPT) - 1


def test_an_engine_of_another_kind_is_refused(both_engines: tuple[Engine, Engine], file: Path) -> None:
    for engine, other in (both_engines, both_engines[::-1]):
        engine.prefill(PROMPT)
        save_prompt_cache(engine, file, "weights")
        with pytest.raises(OptionError, match="was made with"):
            load_prompt_cache(other, file, "weights")


@pytest.mark.parametrize("name", ["llamacpp", "mlx"])
def test_the_other_factors_of_longrope_are_refused(tiny_longrope: Any, name: str, file: Path) -> None:
    short, long = tiny_longrope.open(name, 256), tiny_longrope.open(name, 512)
    short.prefill(PROMPT)
    save_prompt_cache(short, file, "weights")
    with pytest.raises(OptionError, match="long_context"):
        load_prompt_cache(long, file, "weights")
    for engine in (short, long):
        engine.close()


@pytest.mark.parametrize("name", ["llamacpp", "mlx"])
def test_a_longer_context_with_the_same_factors_loads_it(tiny_longrope: Any, name: str, file: Path) -> None:
    first, second = tiny_longrope.open(name, 300), tiny_longrope.open(name, 600)
    first.prefill(PROMPT)
    save_prompt_cache(first, file, "weights")
    load_prompt_cache(second, file, "weights")
    assert second.prefill([*PROMPT, 1]) == len(PROMPT)
    for engine in (first, second):
        engine.close()


def test_another_type_of_keys_and_values_is_refused(tiny_llama: Any, file: Path) -> None:
    engine = tiny_llama.open("llamacpp", 64)
    engine.prefill(PROMPT)
    save_prompt_cache(engine, file, "weights")
    text = file.read_bytes().replace(b'"kv_cache_type": "f32"', b'"kv_cache_type": "f16"')
    file.write_bytes(text)
    with pytest.raises(OptionError, match="f16.*f32"):
        load_prompt_cache(engine, file, "weights")
    engine.close()


def test_more_tokens_than_the_context_holds_are_refused_with_both_numbers(make_engine: EngineMaker, file: Path) -> None:
    engine = make_engine(64)
    engine.prefill(long_prompt(50))
    save_prompt_cache(engine, file, "weights")
    with pytest.raises(OptionError, match="50 tokens; the context holds 40"):
        load_prompt_cache(make_engine(40), file, "weights")


def test_a_file_that_does_not_exist_or_cannot_be_written_is_named(make_engine: EngineMaker, tmp_path: Path) -> None:
    missing = tmp_path / "nowhere" / "prompt.cache"
    engine = make_engine(64)
    with pytest.raises(EngineError, match=f"{missing}.*No such file"):
        load_prompt_cache(engine, missing, "weights")
    with pytest.raises(EngineError, match=f"{missing}.*No such file"):
        save_prompt_cache(engine, missing, "weights")
    with pytest.raises(EngineError, match=f"{tmp_path}.*directory"):
        load_prompt_cache(engine, tmp_path, "weights")


@pytest.mark.parametrize("content", [b"", b"localq", b"GGUF" + bytes(100), b"localq prompt cache 2\n" + bytes(100)])
def test_a_file_of_another_kind_is_refused(make_engine: EngineMaker, file: Path, content: bytes) -> None:
    file.write_bytes(content)
    with pytest.raises(EngineError, match=f"{file} is not a prompt cache"):
        load_prompt_cache(make_engine(64), file, "weights")


def test_every_damage_is_found(make_engine: EngineMaker, file: Path) -> None:
    engine = make_engine(64)
    engine.prefill(PROMPT)
    save_prompt_cache(engine, file, "weights")
    whole = file.read_bytes()
    chance = random.Random(1)
    positions = [*range(60), *(chance.randrange(len(whole)) for _ in range(60)), len(whole) - 1]
    damaged = [whole[:position] for position in positions] + [whole + b"x"]
    damaged += [whole[:position] + bytes([whole[position] ^ 64]) + whole[position + 1 :] for position in positions]
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(LocalqError):
            load_prompt_cache(engine, file, "weights")
    assert engine.prefill(PROMPT) == len(PROMPT) - 1


@pytest.mark.parametrize(
    "header",
    [
        {},
        [],
        {"tokens": [1], "shapes": [[2**39, 2**39]]},
        {"tokens": [-1], "shapes": []},
        {"tokens": [1.5], "shapes": []},
        {"tokens": [True], "shapes": []},
        {"tokens": 5, "shapes": []},
        {"tokens": [], "shapes": [5]},
        {"tokens": [], "shapes": [[-1, -8]]},
    ],
)
def test_a_header_with_wrong_types_is_damage(file: Path, header: object) -> None:
    text = json.dumps(header).encode()
    file.write_bytes(b"localq prompt cache 1\n" + len(text).to_bytes(8, "little") + text + bytes(32))
    with pytest.raises(EngineError, match="damaged"):
        load_prompt_cache(ScriptedEngine([[1]]), file, "weights")


def test_a_header_of_a_huge_length_is_not_read(file: Path) -> None:
    file.write_bytes(b"localq prompt cache 1\n" + b"\xff" * 8 + bytes(100))
    with pytest.raises(EngineError, match="damaged"):
        load_prompt_cache(ScriptedEngine([[1]]), file, "weights")


def test_arrays_that_do_not_fit_leave_an_engine_empty_and_usable(computing_engine: Engine) -> None:
    computing_engine.prefill(PROMPT)
    good = computing_engine.state()
    computing_engine.prefill(PROMPT)
    reply = list(computing_engine.generate(GREEDY))
    bad = [
        EngineState(good.tokens, ()),
        EngineState(good.tokens, good.arrays[:-1]),
        EngineState(good.tokens, (np.zeros(7, dtype=np.uint8),) * len(good.arrays)),
        EngineState((*good.tokens, 5), good.arrays),
        EngineState((*good.tokens[:-1], 10**9), good.arrays),
    ]
    for state in bad:
        with pytest.raises(EngineError):
            computing_engine.restore(state)
        computing_engine.restore(good)
        computing_engine.prefill(PROMPT)
        assert list(computing_engine.generate(GREEDY)) == reply
    with pytest.raises(EngineError):
        computing_engine.restore(bad[1])
    assert computing_engine.prefill(PROMPT) == 0


@pytest.mark.parametrize("kv_cache_type", ["q8_0", "q4_0"])
def test_quantized_keys_and_values_are_saved_too(heads_of_64: dict[str, Path], kv_cache_type: Any) -> None:
    prompt = long_prompt(300)
    for open_engine, form in ((llamacpp.open_engine, "gguf"), (mlx.open_engine, "mlx")):
        engine = open_engine(heads_of_64[form], LoadOptions(kv_cache_type=kv_cache_type), 512)
        engine.prefill(prompt[:-1])
        state = engine.state()
        engine.prefill(prompt)
        expected = engine.logits()
        all_logits(engine, [1])
        engine.restore(state)
        assert engine.prefill(prompt) == len(prompt) - 1
        assert np.array_equal(engine.logits(), expected)
        assert engine.state_settings["kv_cache_type"] == kv_cache_type
        engine.close()


def test_weights_are_identified_by_names_sizes_and_times(tmp_path: Path) -> None:
    config, weights, other = (tmp_path / name for name in ("config.json", "model.safetensors", "notes.txt"))
    for path in (config, weights, other):
        path.write_text("1")
    before = [weights_fingerprint(path) for path in (tmp_path, weights)]
    other.write_text("22")
    assert [weights_fingerprint(path) for path in (tmp_path, weights)] == before
    os.utime(weights, (1, 1))
    changed = [weights_fingerprint(path) for path in (tmp_path, weights)]
    weights.write_text("22")
    os.utime(weights, (1, 1))
    grown = [weights_fingerprint(path) for path in (tmp_path, weights)]
    assert len({*before, *changed, *grown}) == 6
    with pytest.raises(EngineError, match=r"nowhere\.gguf"):
        weights_fingerprint(tmp_path / "nowhere.gguf")


def test_every_part_of_a_split_file_counts(tmp_path: Path) -> None:
    parts = [tmp_path / f"big-0000{number}-of-00002.gguf" for number in (1, 2)]
    for part in parts:
        part.write_text("1")
    before = weights_fingerprint(parts[0])
    parts[1].write_text("22")
    assert weights_fingerprint(parts[0]) != before
