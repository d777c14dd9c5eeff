"""Finding, listing, replacing and removing artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from localq.disk import exchange
from localq.errors import ModelNotFoundError, StoreError
from localq.recipes import parse_recipe
from localq.reference import parse_reference
from localq.store.layout import MANIFEST_NAME
from localq.store.store import Store
from localq.store.upkeep import remove_leftovers
from tests.store.conftest import Make

Q4 = parse_recipe("gguf-q4_0")
REFERENCES = ["toy-llama", "org/name", "org/name@v1.0", "org/name@refs/pr/7"]


def folder_named(parent: Path, name: str) -> str:
    (parent / name).mkdir(parents=True)
    return str(parent / name)


@pytest.mark.parametrize("text", REFERENCES)
def test_what_was_published_is_found_by_its_reference_and_its_shown_name(store: Store, make: Make, text: str) -> None:
    made = make(text)
    assert store.find(parse_reference(text), Q4) == made
    assert store.require(parse_reference(made.name)) == [made]
    assert made.path.read_bytes() == b"weights"
    assert made.manifest.bits_per_weight == 8 * 7 / 16
    assert made.manifest.bytes == 9


@pytest.mark.parametrize(
    "name",
    [
        "Llama-3.2-1B",
        "my model",
        "_private",
        "-dash",
        "a--b",
        "naïve",
        "名",
        "a:mlx-4bit",
        "x@main",
        "a+b (2)",
        ".hidden",
    ],
)
def test_the_shown_name_of_a_folder_finds_its_artifact_again(
    store: Store, make: Make, tmp_path: Path, name: str
) -> None:
    made = make(folder_named(tmp_path / "checkpoints", name))
    assert made.manifest.model.startswith("local/")
    assert store.require(parse_reference(made.name)) == [made]
    assert store.require(parse_reference(made.manifest.model)) == [made]
    assert store.artifacts() == [made]


def test_forms_of_a_model_are_listed_in_the_order_of_the_recipes(store: Store, make: Make) -> None:
    names = ["mlx-4bit", "mlx-f32", "gguf-f32", "gguf-q4_0"]
    for name in reversed(names):
        make("org/name", name)
    make("toy-phi", "mlx-4bit")
    reference = parse_reference("org/name")
    assert [form.manifest.recipe for form in store.forms(reference)] == names
    assert [form.manifest.recipe for form in store.require(reference)] == names
    assert [form.manifest.recipe for form in store.require(parse_reference("org/name:mlx-f32"))] == ["mlx-f32"]
    assert [artifact.name for artifact in store.artifacts()] == [f"org/name:{name}" for name in names] + [
        "toy-phi:mlx-4bit"
    ]


@pytest.mark.parametrize("text", ["org/name", "org/name:mlx-4bit", "org/name@v1", "toy-llama", "org/other"])
def test_what_was_not_made_is_not_found(store: Store, make: Make, text: str) -> None:
    make("org/name@v2", "gguf-q4_0")
    reference = parse_reference(text)
    assert store.forms(reference) == []
    assert store.find(reference, Q4) is None
    with pytest.raises(ModelNotFoundError, match=text) as caught:
        store.require(reference)
    assert "localq convert" in caught.value.hint


def test_a_models_folder_that_is_not_there_is_empty(store: Store) -> None:
    assert store.artifacts() == store.damaged() == []
    assert store.find(parse_reference("toy-phi"), Q4) is None
    assert not store.folder.exists()


def test_revisions_with_similar_names_do_not_mix(store: Store, make: Make) -> None:
    make("org/name@a/b", content=b"slash")
    assert store.find(parse_reference("org/name@a-b"), Q4) is None
    make("org/name@a-b", content=b"dash")
    found = [store.find(parse_reference(f"org/name@a{sign}b"), Q4) for sign in "/-"]
    assert [artifact.path.read_bytes() for artifact in found if artifact] == [b"slash", b"dash"]
    for artifact in store.artifacts():
        assert store.require(parse_reference(artifact.name)) == [artifact]


def test_two_folders_of_the_same_name_do_not_mix(store: Store, make: Make, tmp_path: Path) -> None:
    first, second = (folder_named(tmp_path / part, "model") for part in ("a", "b"))
    one, two = make(first, content=b"first"), make(second, content=b"second")
    assert one.folder != two.folder
    make(second, "mlx-4bit")
    for text, made in ((first, one), (second, two)):
        assert store.find(parse_reference(text), Q4) == made
        assert made in store.require(parse_reference(made.manifest.model))
    assert len(store.forms(parse_reference(first))) == 1
    assert len(store.forms(parse_reference(second))) == 2


def test_the_second_of_two_folders_is_found_when_the_first_is_gone(store: Store, make: Make, tmp_path: Path) -> None:
    first, second = (folder_named(tmp_path / part, "model") for part in ("a", "b"))
    one, two = make(first), make(second)
    store.remove(one.folder)
    assert store.find(parse_reference(first), Q4) is None
    assert store.find(parse_reference(second), Q4) == two
    assert store.forms(parse_reference(second)) == [two]
    assert make(second, "mlx-4bit").folder.parent == two.folder.parent


def test_the_damage_of_one_folder_does_not_touch_another_of_the_same_name(
    store: Store, make: Make, tmp_path: Path
) -> None:
    first, second = (folder_named(tmp_path / part, "model") for part in ("a", "b"))
    one = make(first)
    one.path.unlink()
    assert store.find(parse_reference(second), Q4) is None
    two = make(second)
    assert two.folder != one.folder
    assert store.damaged() == [one.folder]


def test_force_puts_a_new_artifact_in_place_of_the_old(store: Store, make: Make) -> None:
    make("org/name", content=b"old", revision="1")
    made = make("org/name", content=b"newer", revision="2")
    assert store.artifacts() == [made]
    assert made.path.read_bytes() == b"newer"
    assert sorted(path.name for path in made.folder.parent.iterdir()) == ["gguf-q4_0"]


def test_removing_takes_the_form_and_then_the_folder(store: Store, make: Make) -> None:
    one, two = make("org/name"), make("org/name", "mlx-4bit")
    store.remove(one.folder)
    assert store.artifacts() == [two]
    store.remove(two.folder)
    assert store.artifacts() == []
    assert not two.folder.parent.exists()


def test_removing_what_another_process_removed_does_nothing(store: Store, make: Make) -> None:
    made = make("org/name")
    assert store.remove(made.folder)
    assert not store.remove(made.folder)


@pytest.mark.parametrize("text", [*REFERENCES, "folder"])
@pytest.mark.parametrize("part", ["the folder", "the file"])
def test_a_form_is_found_by_its_path_as_well(store: Store, make: Make, tmp_path: Path, text: str, part: str) -> None:
    made = make(folder_named(tmp_path, text) if text == "folder" else text)
    make("toy-phi")
    reference = parse_reference(str(made.folder if part == "the folder" else made.path))
    assert store.require(reference) == [made]
    assert store.require_folders(reference) == [made.folder]


def test_a_form_is_found_by_its_path_through_a_link(make: Make, store: Store, tmp_path: Path) -> None:
    made = make("toy-phi")
    (tmp_path / "link").symlink_to(store.folder)
    linked = Store(tmp_path / "link")
    for spelling in (store, linked):
        for seen in (store, linked):
            path = seen.folder / made.path.relative_to(store.folder)
            assert [form.path.name for form in spelling.require(parse_reference(path))] == ["model.gguf"]


def test_a_damaged_form_can_be_named_by_its_path(store: Store, make: Make) -> None:
    made = make("org/name", "mlx-4bit")
    made.folder.joinpath("config.json").unlink()
    reference = parse_reference(made.folder)
    assert store.require_folders(reference) == [made.folder]
    with pytest.raises(StoreError, match="config.json is missing"):
        store.require(reference)


def test_a_path_that_is_no_form_of_this_store_is_not_found(store: Store, make: Make, tmp_path: Path) -> None:
    made, other = make("org/name"), Store(tmp_path / "other")
    (made.folder / "stray.gguf").touch()
    (made.folder.with_name("mlx-4bit")).mkdir()
    wrong = [made.folder / "stray.gguf", made.folder.with_name("mlx-4bit"), made.folder.parent]
    for asked, path in [*((store, path) for path in wrong), (other, made.folder), (other, made.path)]:
        for look in (asked.require, asked.require_folders):
            with pytest.raises(ModelNotFoundError):
                look(parse_reference(path))
    with pytest.raises(ModelNotFoundError):
        store.require_folders(parse_reference(f"{made.folder}:mlx-4bit"))


def test_a_file_is_not_taken_for_the_folder_whose_name_it_has(store: Store, make: Make, tmp_path: Path) -> None:
    make(folder_named(tmp_path / "checkpoints", "model.gguf"))
    (tmp_path / "model.gguf").touch()
    with pytest.raises(ModelNotFoundError):
        store.require_folders(parse_reference(tmp_path / "model.gguf"))


@pytest.mark.parametrize("damage", ["missing", "truncated", "longer"])
@pytest.mark.parametrize("text", ["org/name@v1.0", "folder with a space"])
def test_damaged_files_are_named_with_the_command_that_helps(
    store: Store, make: Make, tmp_path: Path, damage: str, text: str
) -> None:
    if text.startswith("folder"):
        text = folder_named(tmp_path, text)
    made = make(text)
    if damage == "missing":
        made.path.unlink()
    else:
        made.path.write_bytes(b"weig" if damage == "truncated" else b"weights and more")
    with pytest.raises(StoreError, match="model.gguf is missing or not 7 bytes long") as caught:
        store.find(parse_reference(text), Q4)
    source = f"'{text}'" if " " in text else text
    assert caught.value.hint == f"make it again: localq convert {source} --to gguf-q4_0 --force"
    assert store.damaged() == [made.folder]
    assert store.artifacts() == store.forms(parse_reference(text)) == []
    assert make(text) == made
    assert store.damaged() == []


BROKEN = {
    "empty": lambda manifest: "",
    "no object": lambda manifest: "[]",
    "text": lambda manifest: '"manifest"',
    "null": lambda manifest: "null",
    "nested without end": lambda manifest: "[" * 100_000,
    "a version that never was": lambda manifest: json.dumps({**manifest, "format_version": 0}),
    "a version that is no number": lambda manifest: json.dumps({**manifest, "format_version": "2"}),
    "no checksum": lambda manifest: json.dumps({k: v for k, v in manifest.items() if k != "checksum"}),
    "another checksum": lambda manifest: json.dumps({**manifest, "checksum": "0" * 64}),
    "no format version": lambda manifest: json.dumps({k: v for k, v in manifest.items() if k != "format_version"}),
    "a key less": lambda manifest: json.dumps({k: v for k, v in manifest.items() if k != "revision"}),
    "an unknown recipe": lambda manifest: json.dumps({**manifest, "recipe": "gguf-q4"}),
    "a recipe that is no text": lambda manifest: json.dumps({**manifest, "recipe": 4}),
    "no parameters": lambda manifest: json.dumps({**manifest, "parameters": 0}),
    "parameters as text": lambda manifest: json.dumps({**manifest, "parameters": "16"}),
    "files that are none": lambda manifest: json.dumps({**manifest, "files": [1]}),
    "files as text": lambda manifest: json.dumps({**manifest, "files": "abc"}),
    "a file without a size": lambda manifest: json.dumps({**manifest, "files": [{"name": "model.gguf"}]}),
    "a size that is no number": lambda manifest: json.dumps(
        {**manifest, "files": [{"name": "model.gguf", "bytes": None, "sha256": ""}]}
    ),
    "a main file elsewhere": lambda manifest: json.dumps({**manifest, "main_file": "../../../secret.gguf"}),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_a_broken_manifest_is_named_with_what_helps(store: Store, make: Make, broken: str) -> None:
    made = make("org/name")
    file = made.folder / MANIFEST_NAME
    file.write_text(BROKEN[broken](json.loads(file.read_text())))
    with pytest.raises(StoreError, match=MANIFEST_NAME) as caught:
        store.find(parse_reference("org/name"), Q4)
    assert "convert" in caught.value.hint
    assert store.damaged() == [made.folder]
    assert store.artifacts() == []
    assert make("org/name") == made


def first_version(file: Path) -> dict[str, object]:
    """A manifest as localq wrote it before it had a checksum."""
    stated = json.loads(file.read_text())
    return {**{key: value for key, value in stated.items() if key not in ("checksum", "imported")}, "format_version": 1}


def test_an_older_manifest_is_read_and_may_say_more(store: Store, make: Make) -> None:
    made = make("org/name")
    file = made.folder / MANIFEST_NAME
    file.write_text(json.dumps({**first_version(file), "colour": "blue"}))
    assert store.find(parse_reference("org/name"), Q4) == made


def test_a_newer_manifest_is_refused_by_name_and_its_artifact_stays(store: Store, make: Make) -> None:
    made = make("org/name")
    file = made.folder / MANIFEST_NAME
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 3}))
    with pytest.raises(StoreError, match="newer localq: version 3 .* up to 2") as caught:
        store.find(parse_reference("org/name"), Q4)
    assert caught.value.hint == "update localq"
    assert store.damaged() == [made.folder]
    assert remove_leftovers(store, lost=True) == []


def test_every_changed_byte_of_a_manifest_is_seen(store: Store, make: Make) -> None:
    made = make("org/name")
    file = made.folder / MANIFEST_NAME
    text = file.read_bytes()
    for place in range(len(text)):
        changed = bytearray(text)
        changed[place] ^= 1 << place % 8
        file.write_bytes(changed)
        assert store.damaged() == [made.folder], changed
        file.write_bytes(text[:place])
        assert store.damaged() == [made.folder], place
    file.write_bytes(text)
    assert store.artifacts() == [made]


@pytest.mark.parametrize("other", ["org/name:gguf-q8_0", "org/other:gguf-q4_0"])
def test_artifacts_with_exchanged_folders_are_damaged(store: Store, make: Make, other: str) -> None:
    model, _, recipe = other.partition(":")
    first, second = make("org/name").folder, make(model, recipe).folder
    assert exchange(first, second)
    assert set(store.damaged()) == {first, second}
    with pytest.raises(StoreError, match="holds another artifact: " + other):
        store.find(parse_reference("org/name"), Q4)


def test_other_folders_and_files_are_left_out(store: Store, make: Make) -> None:
    made = make("org/name")
    (store.folder / "README.md").touch()
    (store.folder / "someones--model" / "weights").mkdir(parents=True)
    (made.folder.parent / "gguf-q8_0").mkdir()
    (made.folder.parent / "mlx-4bit").touch()
    assert store.artifacts() == [made]
    assert store.damaged() == []
    assert store.find(parse_reference("org/name"), parse_recipe("gguf-q8_0")) is None
