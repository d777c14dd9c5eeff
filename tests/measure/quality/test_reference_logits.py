"""Rows kept in 16 bits and what is exact of them give the divergences that exact rows give."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import EngineError
from localq.measure.quality.divergence import compare_rows
from localq.measure.quality.reference_logits import MOST_EXACT_TOKENS, ReferenceFile, pack_rows, row_type
from tests.contracts.replies import kl_divergence

SHAPES = ("flat", "normal", "peaked", "two peaks", "heavy tails", "power law", "one far below", "all but equal")


def rows_of(shape: str, vocabulary_size: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    noise = random.standard_normal((3, vocabulary_size))
    places = np.argsort(random.random((3, vocabulary_size)), axis=1)
    made = {
        "flat": 0.01 * noise,
        "normal": 3 * noise,
        "peaked": noise + 30 * (places == 5),
        "two peaks": noise + 20 * (places < 2),
        "heavy tails": random.standard_t(2, noise.shape),
        "power law": -np.log(1 + places),
        "one far below": noise - 90 * (places == 7),
        "all but equal": 1e-6 * noise,
    }[shape]
    return (made + 50 * random.standard_normal()).astype(np.float32)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.sampled_from(SHAPES),
    vocabulary_size=st.sampled_from([2, 700, MOST_EXACT_TOKENS, MOST_EXACT_TOKENS + 1, 3000, 20_000]),
    noise=st.sampled_from([0.0, 1e-6, 1e-3, 0.05, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_divergence_from_packed_rows_is_the_exact_one(
    shape: str, vocabulary_size: int, noise: float, seed: int
) -> None:
    logits = rows_of(shape, vocabulary_size, seed)
    other = (logits + noise * np.random.default_rng(seed + 1).standard_normal(logits.shape)).astype(np.float32)
    found = compare_rows(pack_rows(logits), other, np.zeros(3, dtype=np.intp)).kl_divergence
    exact = kl_divergence(logits, other)
    limit = 1e-12 if vocabulary_size <= MOST_EXACT_TOKENS else 2e-7
    np.testing.assert_array_less(np.abs(found - exact), limit + 1e-5 * np.abs(exact))


def test_small_divergences_are_right_in_the_mean() -> None:
    logits = (3 * np.random.default_rng(1).standard_normal((200, 5000))).astype(np.float32)
    other = (logits + 1e-4 * np.random.default_rng(2).standard_normal(logits.shape)).astype(np.float32)
    found = compare_rows(pack_rows(logits), other, np.zeros(200, dtype=np.intp)).kl_divergence
    assert abs(found.mean() - kl_divergence(logits, other).mean()) < 1e-9


def test_a_row_takes_two_bytes_a_token_and_eight_kilobytes() -> None:
    for vocabulary_size in (32_000, 128_256, 200_064):
        assert row_type(vocabulary_size).itemsize == 2 * vocabulary_size + 8 * MOST_EXACT_TOKENS + 24
    # A small vocabulary is kept as it is.
    assert row_type(512).itemsize == 8 * 512 + 24


def test_the_largest_logits_are_kept_as_they_are() -> None:
    logits = rows_of("normal", 5000, seed=3)
    rows = pack_rows(logits)
    for row, packed in zip(logits, rows, strict=True):
        assert sorted(packed["logits"].tolist()) == np.sort(row)[-MOST_EXACT_TOKENS:].tolist()
        assert np.array_equal(row[packed["ids"]], packed["logits"])
        assert np.all(np.diff(packed["ids"].astype(int)) > 0)
        assert packed["likeliest"] == row.argmax()


def test_rows_come_out_of_the_file_as_they_went_in(tmp_path: Path) -> None:
    rows = pack_rows(rows_of("normal", 2000, seed=4))
    with (tmp_path / "rows").open("w+b") as stream:
        written = ReferenceFile(stream.fileno(), 2000)
        written.write(5, rows)
        written.write(2, rows[:1])
        read = ReferenceFile(stream.fileno(), 2000)
        assert read.read(5, 3).tobytes() == rows.tobytes()
        assert read.read(6, 1).tobytes() == rows[1:2].tobytes()
        assert read.read(2, 1).tobytes() == rows[:1].tobytes()
        assert os.fstat(stream.fileno()).st_size == 8 * rows.itemsize


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("vocabulary_size", [700, 3000])
def test_logits_that_are_no_numbers_are_refused(value: float, vocabulary_size: int) -> None:
    logits = rows_of("normal", vocabulary_size, seed=5)
    rows = pack_rows(logits)
    logits[1, 7] = value
    with pytest.raises(EngineError, match="not all finite"), np.errstate(invalid="ignore"):
        pack_rows(logits)
    with pytest.raises(EngineError, match="not all finite"), np.errstate(invalid="ignore"):
        compare_rows(rows, logits, np.zeros(3, dtype=np.intp))
