"""localq's own quantizer against ggml: the same bytes, or ggml does the work."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.conversion import ggml, quantizer
from localq.conversion.convert import ConversionListener, convert
from localq.conversion.quantizer import Kernels, OtherBytesFound, Quantizer, kinds_of_weights
from localq.errors import OptionError
from tests.conversion.compare_quantizers import (
    HAS_COMPILER,
    TYPES,
    WIDTHS,
    compiled,
    differing_blocks,
    random_bits,
    random_importance,
    widths_here,
)
from tests.tiny_checkpoints import write_checkpoint

needs_compiler = pytest.mark.skipif(not HAS_COMPILER, reason="there is no C compiler, so localq has no kernels either")
Q4_K, Q6_K = ggml.type_number("q4_K"), ggml.type_number("q6_K")
KINDS = len(kinds_of_weights(np.random.default_rng(0), 1)) + 1


def kernels_of(lanes: int) -> Kernels:
    if lanes not in widths_here():
        pytest.skip(f"this processor has no vectors of {lanes} floats")
    return compiled(lanes)


def weights(seed: int, kind: int, rows: int) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return [*kinds_of_weights(generator, rows), random_bits(generator, rows)][kind]


@needs_compiler
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("lanes", WIDTHS)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), kind=st.integers(0, KINDS - 1), rows=st.integers(1, 9))
def test_every_type_and_width_gives_ggmls_bytes(
    lanes: int, name: str, weighted: bool, seed: int, kind: int, rows: int
) -> None:
    importance = random_importance(np.random.default_rng(seed), 512) if weighted else None
    assert differing_blocks(kernels_of(lanes), ggml.type_number(name), weights(seed, kind, rows), importance) == 0


@needs_compiler
@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("lanes", WIDTHS)
def test_any_number_of_blocks_and_nothing_behind_them(lanes: int, name: str) -> None:
    kernels, number = kernels_of(lanes), ggml.type_number(name)
    block, values = ggml.block_weights(number), weights(1, 0, 40)
    for count in range(1, 2 * lanes + 2):
        rows = values.reshape(-1)[: count * block].reshape(1, -1)
        size = ggml.row_bytes(number, rows.shape[1])
        behind = np.full(size + 64, 0xA5, dtype=np.uint8)
        kernels.library.localq_quantize(
            number, 0, rows.ctypes.data, behind.ctypes.data, *rows.shape, None, ggml.quantize_chunk_address()
        )
        assert (behind[:size] == ggml.quantize_rows(number, rows)[0]).all(), count
        assert (behind[size:] == 0xA5).all(), count


@needs_compiler
def test_rows_that_are_no_multiple_of_256_weights() -> None:
    for columns in (32, 96, 544):
        rows = weights(2, 0, 300).reshape(-1)[: 100 * columns].reshape(100, columns)
        for name in ("q8_0", "iq4_nl"):
            for importance in (None, random_importance(np.random.default_rng(3), columns)):
                assert differing_blocks(compiled(4), ggml.type_number(name), rows, importance) == 0


@needs_compiler
@pytest.mark.parametrize("lanes", WIDTHS)
def test_one_unusual_block_does_not_change_its_neighbours(lanes: int) -> None:
    kernels = kernels_of(lanes)
    for value in (np.inf, -np.inf, np.nan, 1e30, 1e-40):
        for name in TYPES:
            for position in range(0, 17 * 256, 256):  # each lane of the widest vectors, and a second vector
                rows = weights(4, 0, 16).reshape(1, -1).copy()
                rows[0, position : position + 32] = value
                assert differing_blocks(kernels, ggml.type_number(name), rows, None) == 0


@needs_compiler
def test_types_without_a_kernel_are_left_to_ggml() -> None:
    rows = weights(5, 0, 2)
    for name in ("q4_0", "q5_1", "f16", "iq3_s"):
        assert compiled(4).quantize(ggml.type_number(name), rows) is None
        assert not quantizer.gives_ggmls_bytes(compiled(4), ggml.type_number(name))


class WrongAt:
    """Kernels whose bytes are wrong in the blocks `is_wrong` chooses by number of the call and of the block."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, is_wrong: Any) -> None:
        right = Kernels.quantize
        self.calls = 0

        def wrong(kernels: Kernels, type_number: int, rows: np.ndarray, importance: Any = None) -> np.ndarray | None:
            result = right(kernels, type_number, rows, importance)
            assert result is not None
            blocks = result.reshape(rows.size // ggml.block_weights(type_number), -1)
            for number, block in enumerate(blocks):
                block[-1] ^= is_wrong(self.calls, number)
            self.calls += 1
            return result

        monkeypatch.setattr(Kernels, "quantize", wrong)


@pytest.fixture(autouse=True)
def cache_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Kernels that nothing is known of yet."""
    file = tmp_path / "cache" / "quantizer.json"
    monkeypatch.setattr(quantizer, "_verdict_file", lambda: file)
    monkeypatch.setattr(quantizer, "_in_this_process", {})
    monkeypatch.delenv("LOCALQ_QUANTIZER", raising=False)
    return file


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Kernels:
    if not HAS_COMPILER:
        pytest.skip("there is no C compiler, so localq has no kernels either")
    widest = compiled(widths_here()[-1])
    monkeypatch.setattr(quantizer, "widest_kernels", lambda: widest)
    return widest


def make(folder: Path, models: Path, recipe: str = "gguf-q4_k_m") -> tuple[bytes, dict[str, Any], list[str]]:
    """The file, the manifest, and the caveats that were told."""
    caveats: list[str] = []

    class Listener(ConversionListener):
        def on_caveat(self, caveat: str) -> None:
            caveats.append(caveat)

    artifact = convert(str(folder), [recipe], models_dir=models, listener=Listener())[0]
    return artifact.path.read_bytes(), json.loads((artifact.folder / "localq.json").read_text()), caveats


def test_a_conversion_has_the_same_bytes_whoever_quantizes(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype in ("BF16", "F16", "F32"):
        folder = write_checkpoint(tmp_path / dtype / "model", "llama-3", dtype=dtype)
        own, manifest, caveats = make(folder, tmp_path / dtype / "own")
        assert manifest["quantizer"] == f"localq ({kernels.name})" and caveats == []
        with monkeypatch.context() as switch:
            switch.setenv("LOCALQ_QUANTIZER", "ggml")
            of_ggml, manifest, _ = make(folder, tmp_path / dtype / "ggml")
        assert manifest["quantizer"] == "ggml"
        assert own == of_ggml


def test_without_compiled_kernels_ggml_does_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer, "widest_kernels", lambda: None)
    assert quantizer.describe_quantizer() == "ggml: localq's faster kernels were not compiled"
    rows = weights(6, 0, 3)
    assert (Quantizer([Q4_K]).quantize(Q4_K, rows) == ggml.quantize_rows(Q4_K, rows)).all()
    assert make(write_checkpoint(tmp_path / "model", "llama-3"), tmp_path)[1]["quantizer"] == "ggml"


def test_the_switch_takes_ggml_or_nothing(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    assert quantizer.describe_quantizer().startswith(f"localq ({kernels.name})")
    monkeypatch.setenv("LOCALQ_QUANTIZER", "ggml")
    assert quantizer.describe_quantizer() == "ggml, because LOCALQ_QUANTIZER says so"
    assert Quantizer([Q4_K]).name == "ggml"
    monkeypatch.setenv("LOCALQ_QUANTIZER", "fast")
    with pytest.raises(OptionError, match="LOCALQ_QUANTIZER is 'fast'"):
        Quantizer([Q4_K])


def test_kernels_that_are_wrong_are_refused_before_their_first_use(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch
) -> None:
    WrongAt(monkeypatch, lambda call, block: call == 30 and block == 11)
    assert Quantizer([Q4_K]).name == "ggml"
    rows = weights(7, 0, 3)
    assert (Quantizer([Q4_K]).quantize(Q4_K, rows) == ggml.quantize_rows(Q4_K, rows)).all()


def test_only_the_types_that_are_wrong_are_refused(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as wrong:
        WrongAt(wrong, lambda call, block: call == 0)
        assert Quantizer([Q4_K]).name == "ggml"
    assert Quantizer([Q4_K, Q6_K]).name == f"localq ({kernels.name})"
    assert Quantizer([Q4_K]).name == "ggml"  # what was found stays true


def test_kernels_that_go_wrong_later_are_found_and_the_conversion_is_made_again(
    kernels: Kernels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_file: Path
) -> None:
    folder = write_checkpoint(tmp_path / "model", "llama-3")
    right = make(folder, tmp_path / "right")[0]
    WrongAt(monkeypatch, lambda call, block: call >= 3)
    repaired, manifest, caveats = make(folder, tmp_path / "repaired")
    assert repaired == right
    assert manifest["quantizer"] == "ggml"
    assert len(caveats) == 1 and "made again by ggml" in caveats[0]
    assert list(json.loads(cache_file.read_text()).values()) == [None]
    for known in ({}, quantizer._in_this_process):  # in a later process, and in this one
        monkeypatch.setattr(quantizer, "_in_this_process", dict(known))
        assert quantizer.describe_quantizer() == "ggml: localq's faster kernels do not give its bytes here"
        assert make(folder, tmp_path / f"again{len(known)}")[2] == []


def test_samples_reach_every_block_over_time(kernels: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """A single wrong block in a matrix of 5 x 12 blocks is found within the pieces of a small model."""
    rows = np.tile(weights(8, 0, 5), (1, 6))
    for wrong in (0, 7, 31, 59):
        used = Quantizer([Q4_K])
        with monkeypatch.context() as patch:
            WrongAt(patch, lambda call, block, wrong=wrong: block == wrong)
            with pytest.raises(OtherBytesFound):
                for _ in range(60):
                    used.quantize(Q4_K, rows)
        monkeypatch.setattr(quantizer, "_in_this_process", {})
        quantizer._verdict_file().unlink()


def test_kernels_are_compared_once_for_each_build(
    kernels: Kernels, monkeypatch: pytest.MonkeyPatch, cache_file: Path
) -> None:
    compared = []
    monkeypatch.setattr(quantizer, "gives_ggmls_bytes", lambda kernels, number: compared.append(number) or True)
    Quantizer([Q4_K, Q6_K])
    Quantizer([Q4_K])
    monkeypatch.setattr(quantizer, "_in_this_process", {})  # another process
    Quantizer([Q6_K])
    assert sorted(compared) == [Q4_K, Q6_K]
    monkeypatch.setattr(quantizer, "_identity", lambda kernels: "another build")
    Quantizer([Q6_K])
    assert sorted(compared) == [Q4_K, Q6_K, Q6_K]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": 1}'])
def test_a_damaged_cache_file_is_as_good_as_none(kernels: Kernels, content: str, cache_file: Path) -> None:
    cache_file.parent.mkdir()
    cache_file.write_text(content)
    assert Quantizer([Q6_K]).name == f"localq ({kernels.name})"


def test_a_cache_folder_that_cannot_be_written_does_not_matter(kernels: Kernels, cache_file: Path) -> None:
    cache_file.parent.write_text("a file where the folder should be")
    assert Quantizer([Q6_K]).name == f"localq ({kernels.name})"
    assert Quantizer([Q6_K]).name == f"localq ({kernels.name})"


def test_importance_reaches_the_kernels_and_the_samples(kernels: Kernels) -> None:
    used, rows = Quantizer([Q4_K, Q6_K]), weights(9, 0, 7)
    importance = random_importance(np.random.default_rng(9), 512)
    for number in (Q4_K, Q6_K):
        weighted = used.quantize(number, rows, importance)
        assert (weighted == ggml.quantize_rows(number, rows, importance)).all()
        assert (weighted != used.quantize(number, rows)).any()


def test_threads_do_not_disturb_each_other(kernels: Kernels) -> None:
    used = Quantizer([Q4_K])
    pieces = [weights(seed, seed % 9, 30) for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda rows: used.quantize(Q4_K, rows), pieces))
    for rows, result in zip(pieces, made, strict=True):
        assert (result == ggml.quantize_rows(Q4_K, rows)).all()
