"""GGUF files that would end or block the process that opens them; llama.cpp itself is the judge, in a child process."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import localq
from localq.errors import CheckpointError, EngineError, ModelFileError
from localq.gguf_file import read_model_header, require_openable
from localq.trial import gguf, verdicts
from localq.trial.process import Trial
from tests.foreign_forms import write_gguf
from tests.torture.gguf_bytes import ARRAY, STRING, GgufBytes, Value, read

U32, F32, U64 = 4, 6, 10


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that localq did not make."""
    return write_gguf(tmp_path_factory.mktemp("sound") / "sound.gguf", "llama")


@pytest.fixture
def trials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """What is tried, in a cache folder of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(verdicts, "_this_process", {})
    tried: list[Path] = []
    run = Trial.run
    monkeypatch.setattr(Trial, "run", lambda trial: (tried.append(trial.path), run(trial))[1])
    return tried


def _tokens(parts: GgufBytes, number: int, token: bytes) -> GgufBytes:
    tokens = list(parts.values["tokenizer.ggml.tokens"].content)
    tokens[number] = token
    return parts.changed(tokenizer__ggml__tokens=Value(ARRAY, tokens, STRING))


CHANGES: dict[str, tuple[Callable[[GgufBytes], GgufBytes], str]] = {
    "no layers": (lambda parts: parts.changed(llama__block_count=Value(U32, 0)), "llama.block_count is 0"),
    "layers": (lambda parts: parts.changed(llama__block_count=Value(U32, 513)), "llama.block_count is 513"),
    "experts": (lambda parts: parts.changed(llama__expert_count=Value(U32, 4)), "llama.expert_count is 4"),
    "used": (lambda parts: parts.changed(llama__expert_used_count=Value(U32, 2)), "llama.expert_used_count is 2"),
    "groups": (lambda parts: parts.changed(llama__expert_group_count=Value(U32, 2)), "llama.expert_group_count is 2"),
    "nextn": (lambda parts: parts.changed(llama__nextn_predict_layers=Value(U32, 9)), "nextn_predict_layers is 9"),
    "negative": (
        lambda parts: parts.changed(llama__attention__layer_norm_rms_epsilon=Value(F32, -1.0)),
        "layer_norm_rms_epsilon is -1.0",
    ),
    "NaN": (
        lambda parts: parts.changed(llama__attention__layer_norm_rms_epsilon=Value(F32, math.nan)),
        "layer_norm_rms_epsilon is nan",
    ),
    "scaling": (
        lambda parts: parts.changed(llama__rope__scaling__type=Value(STRING, b"bog\x1b[2Jus")),
        r"llama.rope.scaling.type is bog\\x1b",
    ),
    "heads": (
        lambda parts: parts.changed(llama__attention__head_count_kv=Value(ARRAY, [2, 0], U32)),
        "head_count_kv is 0 in layer 1",
    ),
    "a duplicate": (lambda parts: _tokens(parts, 20, b"!"), "token 20 is '!' as token"),
    "a zero": (lambda parts: _tokens(parts, 20, b"!\0x"), "token 20 is '!' as token .* up to a zero byte"),
    "alignment": (lambda parts: parts.changed(general__alignment=Value(U32, 2)), "general.alignment is 2"),
    "a vocabulary of another kind": (
        lambda parts: parts.changed(tokenizer__ggml__model=Value(STRING, b"llama")),
        "tokenizer.ggml.model is llama, and there are no tokenizer.ggml.scores",
    ),
}
"""Changes on which llama.cpp 0.3.36 ends the process, and what localq says of the header."""


@pytest.mark.parametrize(("change", "said"), CHANGES.values(), ids=CHANGES)
def test_a_header_that_ends_the_process_is_refused_by_name_and_value(
    sound: Path, tmp_path: Path, trials: list[Path], change: Callable[[GgufBytes], GgufBytes], said: str
) -> None:
    file = tmp_path / "changed.gguf"
    file.write_bytes(change(read(sound)).to_bytes())
    with pytest.raises(ModelFileError, match=said):
        localq.load(file)
    assert trials == []


@pytest.mark.parametrize("name", ["no layers", "NaN", "a duplicate", "heads"])
def test_what_ends_the_child_process_is_told_in_one_line_and_kept(
    sound: Path, tmp_path: Path, trials: list[Path], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "check_header", lambda file: None)
    file = tmp_path / "changed.gguf"
    file.write_bytes(CHANGES[name][0](read(sound)).to_bytes())
    for _ in range(2):
        with pytest.raises(
            ModelFileError, match=r"llama.cpp ends the process with SIGABRT: \S+\.c\w*:\d+: GGML_ASSERT"
        ):
            localq.load(file)
        verdicts._this_process.clear()
    assert trials == [file]


@pytest.mark.parametrize(
    "key", ["llama.rope.dimension_count", "llama.attention.key_length", "llama.attention.value_length"]
)
@pytest.mark.parametrize("value", [0, 7, 1 << 20])
def test_sizes_of_heads_that_can_not_be_are_refused(sound: Path, tmp_path: Path, key: str, value: int) -> None:
    file = tmp_path / "changed.gguf"
    file.write_bytes(read(sound).changed(**{key.replace(".", "__"): Value(U32, value)}).to_bytes())
    with pytest.raises((ModelFileError, EngineError, CheckpointError)):
        localq.load(file)


def test_a_good_file_is_tried_once_and_again_when_its_bytes_change(
    sound: Path, tmp_path: Path, trials: list[Path]
) -> None:
    file = tmp_path / "good.gguf"
    shutil.copy(sound, file)
    for _ in range(2):
        with localq.load(file) as model:
            model.generate("Hello", raw=True, max_tokens=2)
        verdicts._this_process.clear()  # as in another process
    assert trials == [file]
    file.write_bytes(read(sound).changed(general__name=Value(STRING, b"other")).to_bytes())
    localq.load(file).close()
    assert trials == [file, file]


def test_an_artifact_of_localq_is_not_tried_until_its_bytes_change(tmp_path: Path, trials: list[Path]) -> None:
    (artifact,) = localq.convert("toy-llama", ["gguf-q8_0"], models_dir=tmp_path)
    localq.load(artifact).close()
    assert trials == []
    data = bytearray(artifact.path.read_bytes())
    position = data.index(b"llama.block_count") + len(b"llama.block_count") + 4
    data[position] ^= 1 << 7  # 130 layers
    artifact.path.write_bytes(data)
    with pytest.raises((EngineError, ModelFileError)):
        localq.load(artifact)
    assert trials == [artifact.path]


def test_all_parts_of_a_split_file_are_tried_together(tmp_path: Path, trials: list[Path]) -> None:
    first = write_gguf(tmp_path / "split.gguf", "llama", tensors_per_part=8)
    read_model_header(first)
    assert trials == [first]
    verdicts._this_process.clear()
    second = next(file for file in sorted(tmp_path.glob("*.gguf")) if file != first)
    second.write_bytes(second.read_bytes() + b" ")
    read_model_header(first)
    assert trials == [first, first]


def test_a_child_that_does_not_come_to_an_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.trial.process._LEAST_SECONDS", 1)
    trial = Trial(tmp_path / "slow.gguf", "llama.cpp", "tests.trial.deaf", [], 0)
    with pytest.raises(
        ModelFileError, match=r"slow\.gguf can't be opened: llama\.cpp does not come to an end within 1 s"
    ):
        trial.run()


def test_a_child_that_fails_in_another_way_is_no_verdict(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="could not be tried: .*nonesuch"):
        Trial(tmp_path / "x.gguf", "llama.cpp", "localq.trial.nonesuch", [], 0).run()


def test_nothing_is_kept_where_the_cache_folder_can_not_be_written(
    sound: Path, tmp_path: Path, trials: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    require_openable(sound)
    verdicts._this_process.clear()
    require_openable(sound)
    assert trials == [sound, sound]


@pytest.mark.parametrize("count", [100_001, 2**40, 2**64 - 1])
def test_absurd_counts_are_refused_before_anything_is_read(tmp_path: Path, count: int) -> None:
    file = tmp_path / "many.gguf"
    file.write_bytes(b"GGUF\x03\0\0\0" + count.to_bytes(8, "little") + bytes(100))
    with pytest.raises(ModelFileError, match=f"{count:,} tensors"):
        localq.load(file)
