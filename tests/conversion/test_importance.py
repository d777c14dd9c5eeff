"""Conversion with an importance matrix, against llama.cpp's own quantizer with the same one."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from localq.calibration.calibration import write_calibration
from localq.calibration.importance import ImportanceMatrix, importance_digest, write_importance
from localq.conversion.convert import convert, dry_run, make_forms
from localq.conversion.plan import Request
from localq.errors import CalibrationError, OptionError
from localq.gguf_file import read_header
from localq.recipes import RECIPES, GgufRecipe, exact_recipe
from tests.conversion.llama_quantize import quantize
from tests.gguf_file import tensor_data
from tests.made_up_calibration import write_made_up_calibration
from tests.tiny_checkpoints import CONFIGS, write_checkpoint

PLAIN = [recipe for recipe in RECIPES.values() if isinstance(recipe, GgufRecipe) and not recipe.calibrated]
NEEDING = [recipe for recipe in RECIPES.values() if isinstance(recipe, GgufRecipe) and recipe.calibrated]
CALIBRATED = [found for recipe in PLAIN if isinstance(found := exact_recipe(f"{recipe.name}-calibrated"), GgufRecipe)]
BY_TYPE = {recipe.file_type: recipe for recipe in (*NEEDING, *CALIBRATED)}
NOT_MEASURED = ("token_embd.weight", "output.weight")  # by llama-imatrix, unless it is asked to


def matrix_of(source: Path, without: Collection[str] = ()) -> ImportanceMatrix:
    """Some importance for each matrix of a GGUF file; where there are experts, one of them got no token."""
    import gguf

    generator = np.random.default_rng(7)
    sums, counts = {}, {}
    for tensor in gguf.GGUFReader(source).tensors:
        columns, *others = map(int, tensor.shape)
        if others and tensor.name not in without:
            experts = others[1] if len(others) > 1 else 1
            sums[tensor.name] = generator.lognormal(3, 2, (experts, columns)).astype(np.float32)
            counts[tensor.name] = generator.integers(1, 500, experts).astype(np.float32)
            counts[tensor.name][1:2] = 0
    return ImportanceMatrix(sums, counts, ("wiki.train.raw", "other.txt"), 12, 512)


def expected(source: Path, recipe: GgufRecipe, matrix: ImportanceMatrix) -> str | dict[str, tuple[str, bytes]]:
    """What `llama-quantize --imatrix` makes: tensors, or why it refuses."""
    target = source.with_name("expected.gguf")
    weights = {name: found for name in matrix.sums if (found := matrix.weights(name)) is not None}
    return quantize(source, target, recipe.file_type_number, weights) or tensor_data(target)


class Model:
    """A tiny checkpoint, and the unquantized file that llama-quantize is given."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder = write_checkpoint(folder / name, name)
        self.models = folder / "models"
        self.source = convert(self.folder, "gguf-bf16", models_dir=folder / "source")[0].path
        self.file = folder / "imatrix.gguf"

    def write(self, matrix: ImportanceMatrix) -> ImportanceMatrix:
        write_importance(self.file, matrix)
        return matrix

    def request(self, *recipes: str, force: bool = False) -> Request:
        return Request(self.folder, recipes, self.models, force, imatrix=self.file)


@pytest.fixture
def llama(tmp_path: Path) -> Model:
    return Model(tmp_path, "llama-3")


def test_nine_types_need_a_matrix_and_the_others_that_use_one_have_a_calibrated_format() -> None:
    assert {recipe.file_type for recipe in NEEDING} == {
        *("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ3_XXS", "IQ3_XS", "Q2_K_S"),
    }
    assert all(recipe.needs_importance for recipe in NEEDING)
    assert not any(recipe.needs_importance for recipe in PLAIN)
    assert len(CALIBRATED) == 17


@pytest.mark.parametrize(
    ("name", "recipes", "without"),
    [
        ("llama-3", [*NEEDING, *CALIBRATED], NOT_MEASURED),
        (
            "llama-3.2",
            [r for r in CALIBRATED if "4" in r.name],
            (),
        ),  # the embedding is the output layer too, and has an entry
        ("phi-3.5-moe", [RECIPES["gguf-iq2_xxs"], *(r for r in CALIBRATED if "k_m" in r.name)], NOT_MEASURED),
        ("phi-2", [RECIPES["gguf-iq3_xs"], *(r for r in CALIBRATED if "k_s" in r.name)], ()),  # rows fit no K-quant
    ],
)
def test_every_file_type_equals_what_llama_quantize_makes_with_the_matrix(
    name: str, recipes: list[GgufRecipe], without: tuple[str, ...], tmp_path: Path
) -> None:
    model = Model(tmp_path, name)
    matrix = model.write(matrix_of(model.source, without))
    made = convert(model.folder, recipes, models_dir=model.models, imatrix=model.file)
    for artifact, recipe in zip(made, recipes, strict=True):
        tensors = tensor_data(artifact.path)
        assert tensors == expected(model.source, recipe, matrix), recipe.name
        (planned,) = dry_run(model.request(recipe.name, force=True))
        assert planned.weight_bytes == artifact.manifest.weight_bytes


def test_types_without_a_calibrated_format_are_those_that_a_matrix_does_not_change(llama: Model) -> None:
    matrix = matrix_of(llama.source, NOT_MEASURED)
    unused = {recipe.name for recipe in PLAIN} - {recipe.name.removesuffix("-calibrated") for recipe in CALIBRATED}
    assert len(unused) == 9
    for made in convert(llama.folder, sorted(unused - {"gguf-bf16"}), models_dir=llama.models):
        assert isinstance(made.recipe, GgufRecipe)
        assert tensor_data(made.path) == expected(llama.source, made.recipe, matrix), made.name


def test_a_plain_format_beside_a_calibrated_one_is_made_without_the_matrix(llama: Model) -> None:
    llama.write(matrix_of(llama.source))
    (alone,) = convert(llama.folder, "gguf-q4_k_m", models_dir=llama.models / "alone")
    plain, calibrated = (form.artifact for form in make_forms(llama.request("gguf-q4_k_m", "q4_k_m-calibrated")))
    assert tensor_data(plain.path) == tensor_data(alone.path) != tensor_data(calibrated.path)
    assert plain.manifest.importance is None and "quantize.imatrix.file" not in read_header(plain.path).metadata


def test_the_file_and_the_manifest_say_which_matrix_it_was(llama: Model) -> None:
    matrix = llama.write(matrix_of(llama.source))
    (made,) = (form.artifact for form in make_forms(llama.request("gguf-iq3_xxs")))
    metadata = read_header(made.path).metadata
    assert {key: value for key, value in metadata.items() if key.startswith("quantize.")} == {
        "quantize.imatrix.file": "imatrix.gguf",
        "quantize.imatrix.dataset": "wiki.train.raw",
        "quantize.imatrix.entries_count": len(matrix.sums),
        "quantize.imatrix.chunks_count": 12,
    }
    record = made.manifest.importance
    assert record is not None and not record.is_calibration
    assert (record.file, record.sha256) == ("imatrix.gguf", importance_digest(llama.file))
    assert record.datasets == matrix.datasets
    assert (record.entries, record.chunk_count) == (len(matrix.sums), 12)


def test_another_matrix_makes_the_format_again_and_the_same_does_not(llama: Model) -> None:
    matrix = llama.write(matrix_of(llama.source))
    request = llama.request("gguf-iq3_xxs", "gguf-q4_k_m")
    assert [form.reused for form in make_forms(request)] == [False, False]
    assert [form.reused for form in make_forms(request)] == [True, True]
    assert [form.reused for form in make_forms(replace(request, imatrix=None))] == [True, True]
    llama.write(replace(matrix, chunk_count=13))
    assert [form.reused for form in make_forms(request)] == [False, True]


@pytest.mark.parametrize("recipe", [*NEEDING, CALIBRATED[0]], ids=lambda recipe: recipe.name)
def test_a_matrix_without_a_tensor_is_refused_where_llama_quantize_refuses_it(recipe: GgufRecipe, llama: Model) -> None:
    for missing in ("blk.0.attn_q.weight", "blk.1.ffn_down.weight"):
        matrix = llama.write(matrix_of(llama.source, (*NOT_MEASURED, missing)))
        theirs = expected(llama.source, recipe, matrix)
        if isinstance(theirs, str):
            assert f"Missing importance matrix for tensor {missing}" in theirs
            with pytest.raises(CalibrationError, match=f"imatrix.gguf has nothing for {missing}"):
                dry_run(llama.request(recipe.name))
        else:
            (made,) = make_forms(llama.request(recipe.name, force=True))
            assert tensor_data(made.artifact.path) == theirs


@pytest.mark.parametrize("name", ["blk.0.attn_q.weight", "token_embd.weight"])
def test_a_matrix_of_another_size_is_refused_except_for_the_embedding(name: str, llama: Model) -> None:
    matrix = matrix_of(llama.source)
    llama.write(replace(matrix, sums={**matrix.sums, name: np.ones((1, 128), np.float32)}))
    matrix = replace(matrix, sums={**matrix.sums, name: np.ones((1, 128), np.float32)})
    theirs = expected(llama.source, CALIBRATED[0], matrix)
    if isinstance(theirs, str):
        assert "imatrix size 128 is different from tensor size 256" in theirs
        with pytest.raises(CalibrationError, match=f"another model: for {name} it has 128 values"):
            make_forms(llama.request(CALIBRATED[0].name))
    else:
        assert name == "token_embd.weight"
        (made,) = make_forms(llama.request(CALIBRATED[0].name))
        assert tensor_data(made.artifact.path) == theirs


def test_an_mlx_format_refuses_a_matrix_of_another_model(llama: Model) -> None:
    pytest.importorskip("mlx.core")
    matrix = matrix_of(llama.source)
    llama.write(replace(matrix, sums={**matrix.sums, "blk.0.attn_q.weight": np.ones((1, 128), np.float32)}))
    with pytest.raises(CalibrationError, match="of another model"):
        dry_run(llama.request("mlx-4bit-calibrated"))


def test_a_format_is_made_again_after_another_calibration(llama: Model) -> None:
    calibration = write_made_up_calibration(llama.folder, llama.models)
    matrix = matrix_of(llama.source)
    request = replace(llama.request("gguf-iq3_xxs", "gguf-q4_k_m"), imatrix=None)
    makes = []
    for chunk_count in (1, 1, 2):
        write_calibration(calibration.folder, calibration, replace(matrix, chunk_count=chunk_count))
        forms = make_forms(request)
        makes.append([form.reused for form in forms])
    assert makes == [[False, False], [True, True], [False, True]]
    record = forms[0].artifact.manifest.importance
    assert record is not None and record.is_calibration and record.file == "importance.gguf"
    assert tensor_data(forms[0].artifact.path) == expected(llama.source, BY_TYPE["IQ3_XXS"], matrix)


@pytest.mark.parametrize(
    ("recipes", "match"),
    [
        (["gguf-q4_k_m", "mlx-4bit"], "only for calibrated formats, and not for gguf-q4_k_m, mlx-4bit"),
        (["gguf-iq3_xxs", "gguf-4.5bpw"], "gguf-4.5bpw takes its importance matrix from the model's calibration"),
    ],
)
def test_a_matrix_that_would_not_be_used_is_refused(recipes: list[str], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        Request("toy-llama", recipes, imatrix="imatrix.gguf").parse()


@pytest.mark.parametrize("name", ["gguf-iq2_xxs", "gguf-q4_k_m-calibrated"])
def test_without_a_matrix_the_command_that_measures_one_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=f"{name} can't be made: toy-llama was not calibrated") as caught:
        convert("toy-llama", name, models_dir=tmp_path)
    assert "localq calibrate toy-llama" in caught.value.hint and "--imatrix" in caught.value.hint
    assert not list(tmp_path.rglob("*.gguf"))


def test_a_matrix_of_experts_is_cut_where_the_pieces_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localq.checkpoint.tensors.PIECE_ELEMENTS", 1 << 14)  # 64 rows: an expert is several pieces
    monkeypatch.setitem(CONFIGS, "moe", {**CONFIGS["phi-3.5-moe"], "intermediate_size": 352, "num_hidden_layers": 1})
    model = Model(tmp_path, "moe")
    matrix = model.write(matrix_of(model.source))
    (made,) = make_forms(model.request("gguf-iq4_nl-calibrated"))
    assert tensor_data(made.artifact.path) == expected(model.source, BY_TYPE["IQ4_NL"], matrix)
