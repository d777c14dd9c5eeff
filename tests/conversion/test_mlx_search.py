"""Searched scales and biases: MLX's layout and values, never worse than its choice, the same bits from C and numpy."""

from __future__ import annotations

import ctypes
import shlex
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.calibration.importance import ImportanceMatrix, write_importance
from localq.checkpoint.folder import open_checkpoint
from localq.checkpoint.tensors import from_float32, to_float32
from localq.conversion import mlx_search
from localq.conversion.compiled import Compiled
from localq.conversion.convert import convert
from localq.conversion.mlx_search import Searched, by_library, by_numpy, dequantized, searched, searched_piece
from localq.conversion.plan_mlx import plan_mlx
from localq.conversion.quantizer import kinds_of_weights
from localq.recipes import MlxQuantization, parse_recipe
from tests.conversion.compare_quantizers import COMPILER, HAS_COMPILER, WIDTHS, random_importance, widths_here
from tests.tiny_checkpoints import write_checkpoint

mx = pytest.importorskip("mlx.core")

WAYS = [MlxQuantization(bits, size) for bits in (2, 3, 4, 5, 6, 8) for size in (32, 64, 128)]
KINDS = len(kinds_of_weights(np.random.default_rng(0), 1))
PARTS = ("weight", "scales", "biases")

ways = pytest.mark.parametrize("how", WAYS, ids=lambda how: f"{how.bits}bit-g{how.group_size}")


@cache
def compiled(lanes: int) -> Compiled:
    if not HAS_COMPILER:
        pytest.skip("there is no C compiler")
    if lanes not in widths_here():
        pytest.skip(f"this processor has no vectors of {lanes} floats")
    source = Path(mlx_search.__file__).with_suffix(".c")
    library = Path(tempfile.mkdtemp()) / f"mlx_search_{lanes}.so"
    flags = shlex.split("-O2 -ffp-contract=off -fwrapv -Wall -Wextra -Werror -Wno-psabi -shared -fPIC")
    subprocess.run([*COMPILER, *flags, f"-DLANES={lanes}", *WIDTHS[lanes], source, "-o", library], check=True)
    return Compiled(library, lanes, ctypes.CDLL(str(library)))


def weights(seed: int, kind: int, rows: int) -> np.ndarray:
    return kinds_of_weights(np.random.default_rng(seed), rows)[kind]


def in_mlx(rows: np.ndarray) -> object:
    array = mx.array(rows)
    return array.view(mx.bfloat16) if rows.dtype == np.uint16 else array


def values_in_mlx(made: Searched, how: MlxQuantization) -> np.ndarray:
    """By MLX, in float32, where its products and sums of codes are not rounded further."""
    scales, biases = (mx.array(to_float32(part)) for part in (made.scales, made.biases))
    return np.array(mx.dequantize(mx.array(made.weight), scales, biases, group_size=how.group_size, bits=how.bits))


def mlxs_choice(rows: np.ndarray, how: MlxQuantization) -> np.ndarray:
    weight, scales, biases = mx.quantize(in_mlx(rows), group_size=how.group_size, bits=how.bits)
    scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
    return np.array(mx.dequantize(weight, scales, biases, group_size=how.group_size, bits=how.bits))


def errors(rows: np.ndarray, values: np.ndarray, how: MlxQuantization, importance: np.ndarray) -> np.ndarray:
    """The measure that is told in mlx_search.py, for each group."""
    exact = to_float32(rows).astype(np.float64)
    groups = exact.reshape(-1, how.group_size)
    factors = np.tile(importance.astype(np.float64), len(rows)).reshape(groups.shape)
    factors = factors * np.sqrt((groups**2).mean(axis=1, keepdims=True) + groups**2)
    return np.asarray((factors * (values.reshape(groups.shape) - groups) ** 2).sum(axis=1))


def assert_same_bits(first: Searched, second: Searched) -> None:
    for part in PARTS:
        one, other = getattr(first, part), getattr(second, part)
        assert one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes(), part


@ways
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), kind=st.integers(0, KINDS - 1))
def test_mlx_reads_the_values_and_its_own_choice_is_never_better(how: MlxQuantization, seed: int, kind: int) -> None:
    rows = weights(seed, kind, 3)
    importance = random_importance(np.random.default_rng(seed), 512)
    made = searched(rows, how, importance)
    values = dequantized(made, how)
    assert np.isfinite(values).all()
    assert values.tobytes() == values_in_mlx(made, how).tobytes()
    with np.errstate(all="ignore"):
        found, plain = errors(rows, values, how, importance), errors(rows, mlxs_choice(rows, how), how, importance)
    assert not (found > plain * (1 + 1e-5)).any()


@pytest.mark.parametrize("lanes", WIDTHS)
@ways
@settings(max_examples=25, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32 - 1), kind=st.integers(0, KINDS - 1), rows=st.integers(1, 4))
def test_every_vector_width_gives_the_bits_of_numpy(
    lanes: int, how: MlxQuantization, seed: int, kind: int, rows: int
) -> None:
    values, importance = weights(seed, kind, rows), random_importance(np.random.default_rng(seed), 512)
    assert_same_bits(by_library(compiled(lanes), values, how, importance), by_numpy(values, how, importance))


@pytest.mark.parametrize("lanes", WIDTHS)
def test_any_number_of_groups_and_nothing_behind_them(lanes: int) -> None:
    how, values = MlxQuantization(3, 32), weights(1, 0, 3).reshape(-1)
    for count in range(1, 2 * lanes + 2):
        rows, ones = values[: count * 32].reshape(1, -1), np.ones(count * 32, np.float32)
        packed, scales, biases = (np.full(size, 7, np.uint32) for size in (count * 3 + 4, count + 4, count + 4))
        before, *behind = (ctypes.c_void_p(a.ctypes.data) for a in (rows, ones, packed, scales, biases))
        compiled(lanes).library.localq_search(0, 3, 32, before, ctypes.c_int64(1), ctypes.c_int64(count * 32), *behind)
        expected = by_numpy(rows, how, ones)
        for part, array in zip(PARTS, (packed, scales, biases), strict=True):
            found = getattr(expected, part).view(np.uint32)[0]
            assert (array[: len(found)] == found).all() and (array[len(found) :] == 7).all(), count


def test_without_compiled_code_numpy_does_the_work_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    how, importance = MlxQuantization(4), random_importance(np.random.default_rng(2), 512)
    rows = np.concatenate([weights(2, kind, 30) for kind in (0, 4, 6, 16, 18)])
    monkeypatch.setattr(mlx_search, "_compiled", lambda: None)
    assert_same_bits(searched(rows, how, importance), by_numpy(rows, how, importance))


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_error_is_near_the_least_of_20_000_ranges(bits: int) -> None:
    how, generator = MlxQuantization(bits, 32), np.random.default_rng(3)
    rows, importance = weights(3, 0, 2), generator.lognormal(0, 1, 512).astype(np.float32)
    found = errors(rows, dequantized(searched(rows, how, importance), how), how, importance)
    least, top = [], 2**bits - 1
    for number, group in enumerate(rows.reshape(-1, 32).astype(np.float64)):
        low, high = group.min(), group.max()
        start, end = np.meshgrid(np.linspace(low, low / 2, 150), np.linspace(high, high / 2, 150))
        start, scale = start.reshape(-1, 1), (end - start).reshape(-1, 1) / top
        values = scale * np.clip(np.rint((group - start) / scale), 0, top) + start
        factors = importance.reshape(-1, 32)[number % 16] * np.sqrt((group**2).mean() + group**2)
        least.append((factors * (values - group) ** 2).sum(axis=1).min())
    plain = errors(rows, mlxs_choice(rows, how), how, importance)
    assert found.sum() < 1.1 * sum(least) < 0.8 * plain.sum()


UNUSUAL = {
    "zeros": np.zeros(64),
    "negative zeros": np.full(64, -0.0),
    "constant": np.full(64, 0.171875),
    "negative and constant": np.full(64, -3.0),
    "two values": np.resize([0.5, -0.25], 64),
    "one weight": np.eye(1, 64, 5)[0],
    "denormal in bfloat16": np.linspace(-1e-39, 2e-39, 64),
    "smaller than the smallest scale of MLX": np.linspace(-3e-8, 2e-8, 64),
    "large": np.linspace(-5e37, 2.5e38, 64),
    "largest": np.resize([3.3e38, -3.3e38], 64),
    "wide": np.resize([1e30, 1e-30, -1e-30], 64),
    "small beside a large offset": 100 + np.linspace(0, 1, 64),
}


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_rows_are_finite_and_close(name: str, dtype: str) -> None:
    with np.errstate(over="ignore"):
        rows = from_float32(UNUSUAL[name].astype(np.float32)[None], dtype)
    if not np.isfinite(to_float32(rows)).all():
        rows = from_float32(np.clip(UNUSUAL[name], -60000, 60000).astype(np.float32)[None], dtype)
    exact = to_float32(rows).astype(np.float64)
    for how in (MlxQuantization(4, 64), MlxQuantization(8, 32)):
        values = dequantized(searched(rows, how), how)
        assert np.isfinite(values).all()
        if name == "largest" and dtype != "F16":
            continue  # scale x code would be infinite
        step = (exact.max() - exact.min()) / (2**how.bits - 1)
        rounding = np.abs(exact).max() * {"F32": 2.0**-22, "F16": 2.0**-10, "BF16": 2.0**-7}[dtype]
        tiniest = {"F32": 1e-44, "F16": 1.2e-7 * 2**how.bits, "BF16": 1e-40 * 2**how.bits}[dtype]
        assert np.abs(values - exact).max() <= 1.5 * step + rounding + tiniest


@pytest.mark.parametrize(
    "importance",
    [np.zeros(512), np.full(512, 1e-38), np.full(512, 3e38), np.full(512, np.inf), np.full(512, np.nan)],
    ids=lambda values: str(values[0]),
)
def test_importance_without_a_difference_is_as_good_as_none(importance: np.ndarray) -> None:
    rows, how = weights(5, 0, 4), MlxQuantization(4)
    made = dequantized(searched(rows, how, importance.astype(np.float32)), how)
    unweighted = errors(rows, dequantized(searched(rows, how), how), how, np.ones(512))
    plain = errors(rows, mlxs_choice(rows, how), how, np.ones(512))
    found = errors(rows, made, how, np.ones(512))
    assert (found <= plain * 1.000001).all()
    if importance[0] > 0:
        assert np.allclose(found, unweighted, rtol=1e-3)


def test_importance_moves_the_error_to_columns_that_matter_less() -> None:
    rows, how = weights(6, 0, 40), MlxQuantization(3)
    importance = np.where(np.arange(512) % 4 == 0, 100, 1).astype(np.float32)
    differences = [np.square(dequantized(searched(rows, how, factors), how) - rows) for factors in (None, importance)]
    kept, moved = (squares[:, ::4].sum() for squares in differences)
    assert moved < 0.8 * kept
    assert differences[1].sum() > differences[0].sum()


def test_each_expert_has_its_own_importance() -> None:
    how, generator = MlxQuantization(4, 32), np.random.default_rng(7)
    rows = weights(7, 0, 12)  # three experts with four rows
    importance = np.stack([random_importance(generator, 512) for _ in range(3)])
    for start, stop in ((0, 12), (0, 3), (2, 7), (5, 12), (11, 12)):
        made = searched_piece(rows[start:stop], start, (3, 4, 512), how, importance)
        for row in range(start, stop):
            expected = searched(rows[row : row + 1], how, importance[row // 4])
            for part in PARTS:
                assert (getattr(made, part)[row - start] == getattr(expected, part)[0]).all()
    assert_same_bits(
        searched_piece(rows[:4], 0, (3, 4, 512), how, importance.reshape(1, -1)), searched(rows[:4], how, importance[0])
    )
    assert_same_bits(searched_piece(rows[2:4], 2, (3, 4, 512), how, None), searched(rows[2:4], how))


@pytest.mark.parametrize("recipe", ["mlx-4bit-calibrated", "mlx-3bit-g32-calibrated", "mlx-mixed-4-6-calibrated"])
@pytest.mark.parametrize("name", ["llama-3.2", "phi-3.5", "phi-3.5-moe"])
def test_stock_mlx_lm_loads_a_calibrated_folder(name: str, recipe: str, tmp_path: Path) -> None:
    utils = pytest.importorskip("mlx_lm.utils")
    from mlx.utils import tree_flatten

    folder, generator = write_checkpoint(tmp_path / name, name), np.random.default_rng(8)
    checkpoint = open_checkpoint(folder, name)
    sums = {
        layout.gguf_name: np.stack([random_importance(generator, layout.shape[-1]) for _ in range(experts)])
        for layout in checkpoint.layouts
        if len(layout.shape) > 1
        for experts in [layout.shape[0] if len(layout.shape) > 2 else 1]
        if "token_embd" not in layout.gguf_name
    }
    matrix = ImportanceMatrix(sums, {name: np.ones(len(values), np.float32) for name, values in sums.items()})
    write_importance(tmp_path / "importance.gguf", matrix)
    models, imatrix = tmp_path / "models", tmp_path / "importance.gguf"
    artifact = convert(str(folder), [recipe], models_dir=models, imatrix=imatrix)[0].path
    plain = convert(str(folder), [recipe.removesuffix("-calibrated")], models_dir=models)[0].path
    made, expected = (dict(tree_flatten(utils.load_model(path)[0].parameters())) for path in (artifact, plain))
    assert {key: (value.shape, value.dtype) for key, value in made.items()} == {
        key: (value.shape, value.dtype) for key, value in expected.items()
    }
    for tensor in plan_mlx(checkpoint, parse_recipe(recipe)).tensors:
        stem, how = tensor.name.removesuffix(".weight"), tensor.quantization  # type: ignore[union-attr]
        if how is None:
            assert mx.array_equal(made[tensor.name], expected[tensor.name])
            continue
        with checkpoint.weights:
            rows = checkpoint.weights.read_rows(tensor.layout.name, 0, int(np.prod(tensor.layout.shape[:-1])))  # type: ignore[union-attr]
        weights_of = matrix.weights(tensor.layout.gguf_name)  # type: ignore[union-attr]
        own = searched_piece(rows, 0, tensor.layout.shape, how, weights_of)  # type: ignore[union-attr]
        for part in PARTS:
            array = made[f"{stem}.{part}"]
            bits = np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)
            assert (bits.reshape(getattr(own, part).shape) == getattr(own, part)).all(), (tensor.name, part)


def test_a_quantized_product_uses_the_searched_values() -> None:
    how, rows = MlxQuantization(5, 64), weights(9, 0, 48)
    made, inputs = searched(rows, how), np.random.default_rng(9).standard_normal((7, 512)).astype(np.float32)
    parts = (mx.array(getattr(made, part)) for part in PARTS)
    product = mx.quantized_matmul(mx.array(inputs), *parts, transpose=True, group_size=64, bits=5)
    expected = inputs.astype(np.float64) @ dequantized(made, how).astype(np.float64).T
    assert np.abs(np.array(product) - expected).max() < 1e-3
