"""Every way to name a model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localq.errors import LocalqError, ModelNotFoundError, ModelReferenceError, UnknownRecipeError
from localq.recipes import RECIPES
from localq.reference import BUILT_IN_NAMES, ForeignForm, ModelReference, parse_reference


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("text", "name", "revision", "recipe"),
    [
        ("org/name", "org/name", None, None),
        ("meta-llama/Llama-3.2-1B-Instruct", "meta-llama/Llama-3.2-1B-Instruct", None, None),
        ("org/name@v1.0", "org/name", "v1.0", None),
        ("org/name@refs/pr/3", "org/name", "refs/pr/3", None),
        ("org/name:mlx-4bit", "org/name", None, "mlx-4bit"),
        ("org/name:GGUF-Q4_K_M", "org/name", None, "gguf-q4_k_m"),
        ("org/name:gguf-iq2_xxs", "org/name", None, "gguf-iq2_xxs"),
        ("org/name:gguf-q4_k_m-calibrated", "org/name", None, "gguf-q4_k_m-calibrated"),
        ("org/name:gguf-4.5bpw", "org/name", None, "gguf-4.5bpw"),
        ("org/name@main:gguf-f16", "org/name", "main", "gguf-f16"),
        ("org/name:Q4_K_M", "org/name", None, "gguf-q4_k_m"),
        ("org/name@main:mlx", "org/name", "main", "mlx-4bit"),
        ("0x/a_b.c-d", "0x/a_b.c-d", None, None),
    ],
)
def test_repositories(text: str, name: str, revision: str | None, recipe: str | None) -> None:
    reference = parse_reference(text)
    assert (reference.kind, reference.name, reference.revision, reference.path) == ("repo", name, revision, None)
    assert (reference.recipe and reference.recipe.name) == recipe


@pytest.mark.parametrize("name", ["gguf-iq2_bn", "gguf-Q4_K_XL", "gguf-q4km", "gguf-ud-q2_k_xl", "gguf-name-v1.5"])
def test_a_repository_may_have_forms_that_are_no_recipes(name: str) -> None:
    reference = parse_reference(f"org/name@v1:{name}")
    assert (reference.name, reference.revision, reference.recipe) == ("org/name", "v1", ForeignForm(name.lower()))
    assert parse_reference(str(reference)) == reference
    assert reference.without_recipe() == parse_reference("org/name@v1")


@pytest.mark.parametrize(
    "text", ["toy-phi:gguf-iq2_bn", "local/name:gguf-iq2_bn", "here/it:gguf-iq2_bn", "org/a:mlx-x"]
)
def test_what_is_no_repository_has_forms_by_recipe_alone(empty_folder: Path, text: str) -> None:
    (empty_folder / "here" / "it").mkdir(parents=True)
    with pytest.raises(UnknownRecipeError):
        parse_reference(text)


@pytest.mark.parametrize("name", BUILT_IN_NAMES)
def test_toys_are_built_in_with_or_without_a_recipe(name: str) -> None:
    reference = parse_reference(name)
    assert (reference.kind, reference.name, reference.recipe) == ("built-in", name, None)
    assert reference.path is not None and reference.path.is_absolute()
    assert parse_reference(f"{name}:gguf-q8_0").without_recipe() == reference


def test_a_toys_name_means_the_toy_even_where_a_folder_has_it(empty_folder: Path) -> None:
    (empty_folder / "toy-phi").mkdir()
    assert parse_reference("toy-phi").kind == "built-in"
    assert parse_reference("./toy-phi").kind == "folder"


@pytest.mark.parametrize("text", ["folder", "./folder", "folder/", "../{here}/folder", "~/folder", "{absolute}/folder"])
def test_folders_in_every_spelling(empty_folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("HOME", str(empty_folder))
    folder = empty_folder / "folder"
    folder.mkdir()
    written = text.format(here=empty_folder.name, absolute=empty_folder)
    assert parse_reference(written) == ModelReference("folder", "folder", folder.resolve())
    assert parse_reference(f"{written}:mlx-8bit").recipe is RECIPES["mlx-8bit"]


def test_an_existing_folder_wins_over_a_repository(empty_folder: Path) -> None:
    assert parse_reference("org/name").kind == "repo"
    (empty_folder / "org" / "name").mkdir(parents=True)
    assert parse_reference("org/name").kind == "folder"
    assert parse_reference("org/name:mlx-4bit").kind == "folder"


@pytest.mark.parametrize("name", ["a:b", "a:mlx-4bit", "a:b:c"])
def test_a_colon_may_be_part_of_a_path(empty_folder: Path, name: str) -> None:
    folder = empty_folder / "in" / name
    folder.mkdir(parents=True)
    for text in (str(folder), f"in/{name}"):
        assert parse_reference(text) == ModelReference("folder", name, folder.resolve())
        assert parse_reference(f"{text}:gguf-q4_0").recipe is RECIPES["gguf-q4_0"]
        assert parse_reference(f"{text}:gguf-q4_0").path == folder.resolve()


def test_a_folder_below_one_with_a_colon_is_found(empty_folder: Path) -> None:
    (empty_folder / "a:b" / "c").mkdir(parents=True)
    assert parse_reference("a:b/c").name == "c"
    with pytest.raises(LocalqError):
        parse_reference("a:b/absent")


def test_a_gguf_file_is_a_form_already(empty_folder: Path) -> None:
    file = empty_folder / "model.gguf"
    file.touch()
    assert parse_reference("model.gguf") == ModelReference("gguf", "model.gguf", file.resolve())
    with pytest.raises(ModelReferenceError, match="mlx-4bit") as caught:
        parse_reference("model.gguf:mlx-4bit")
    assert caught.value.hint


def test_a_gguf_file_of_the_hugging_face_cache_is_a_link_and_keeps_its_name(empty_folder: Path) -> None:
    (empty_folder / "blobs").mkdir()
    (empty_folder / "blobs" / "0123abcd").touch()
    (empty_folder / "snapshots").mkdir()
    (empty_folder / "snapshots" / "model.gguf").symlink_to("../blobs/0123abcd")
    reference = parse_reference("snapshots/model.gguf")
    assert (reference.kind, reference.name) == ("gguf", "model.gguf")
    assert parse_reference(str(reference)) == reference


def test_a_file_of_another_kind_is_refused_by_name(empty_folder: Path) -> None:
    (empty_folder / "model.safetensors").touch()
    with pytest.raises(ModelReferenceError, match="model.safetensors is a file") as caught:
        parse_reference("model.safetensors")
    assert "folder" in caught.value.hint


@pytest.mark.parametrize(
    "text", ["./absent", "/absent/folder", "~/absent", "../absent", "absent.gguf", "a/b.gguf", "./a:mlx-4bit"]
)
def test_a_path_with_nothing_there_is_not_taken_for_a_repository(text: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no folder or file") as caught:
        parse_reference(text)
    assert "localq ls" in caught.value.hint


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        ":",
        ":mlx-4bit",
        "name",
        "Toy-Llama",
        "org/",
        "org/name/more",
        "org/name@",
        "org/name@a@b",
        "org name/x",
        "-org/name",
        "https://huggingface.co/org/name",
        "org/na\0me",
        "~nobody-of-that-name/x",
        "x" * 5000,
        "org/" + "x" * 5000 + "/y",
    ],
    ids=lambda text: repr(text[:32]),
)
def test_what_names_no_model_is_refused_with_advice(text: str) -> None:
    with pytest.raises((ModelReferenceError, ModelNotFoundError, UnknownRecipeError)) as caught:
        parse_reference(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("org/name:mlx-4bits", "mlx-4bit"),
        ("org/name:q4km", "gguf-q4_k_m"),
        ("org/name:4bits", "mlx-4bit"),
        ("org/name:bf16", "mlx-bf16"),
        ("toy-phi:gguf-q4km", "gguf-q4_k_m"),
        ("./absent:gguf-q8", "gguf-q8_0"),
    ],
)
def test_a_misspelt_recipe_is_refused_with_the_nearest(text: str, nearest: str) -> None:
    with pytest.raises(UnknownRecipeError) as caught:
        parse_reference(text)
    assert nearest in caught.value.nearest
    assert nearest in caught.value.hint
    assert repr(text.rpartition(":")[2]) in caught.value.message


@pytest.mark.parametrize(
    "text", ["toy-phi", "toy-phi:mlx-4bit", "org/name@v1:gguf-f16", "folder", "folder:mlx-4bit", "f.gguf"]
)
def test_a_reference_is_read_again_from_what_it_is_shown_as(empty_folder: Path, text: str) -> None:
    (empty_folder / "folder").mkdir()
    (empty_folder / "f.gguf").touch()
    reference = parse_reference(text)
    assert parse_reference(str(reference)) == reference


def test_a_path_object_names_a_folder_or_a_file_and_nothing_else(empty_folder: Path) -> None:
    (empty_folder / "toy-phi").mkdir()
    assert parse_reference(Path("toy-phi")) == parse_reference("./toy-phi")
    assert parse_reference(Path("toy-phi:mlx-4bit")) == parse_reference("./toy-phi:mlx-4bit")
    for absent in ("org/name", "toy-llama"):
        with pytest.raises(ModelNotFoundError, match=f"no folder or file {absent}"):
            parse_reference(Path(absent))


@settings(max_examples=200)
@given(st.text(alphabet="ab/.:@~-_ \0é", max_size=12))
def test_any_text_is_a_reference_or_an_error_of_localq(text: str) -> None:
    try:
        reference = parse_reference(text)
    except LocalqError as error:
        assert error.message and error.hint
    else:
        assert parse_reference(str(reference)) == reference
