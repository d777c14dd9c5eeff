"""Artifacts of other programs in the models folder, and artifacts of localq given to other programs."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gguf
import pytest

import localq
import localq.copying
from localq.conversion.convert import convert
from localq.errors import LocalqError, ModelReferenceError, OptionError, StoreError
from localq.importing import import_form
from localq.measure.forms import context_limits, find_forms
from localq.reference import parse_reference
from localq.store.exporting import export_artifact
from localq.store.foreign import examine
from localq.store.manifest import Artifact
from localq.store.store import Store
from localq.store.upkeep import changed_files
from tests.foreign_forms import write_gguf, write_mlx

QUESTION = "What is the capital of France?"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "models")


@pytest.fixture(scope="module")
def toys(models_dir: Path) -> dict[str, Artifact]:
    made = convert("toy-llama", ["gguf-q8_0", "mlx-4bit"], models_dir=models_dir)
    return {artifact.manifest.recipe: artifact for artifact in made}


def everything(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if ".locks" not in str(path))


def test_a_gguf_file_is_taken_in_under_its_name_and_opened_by_it(
    store: Store, toys: dict[str, Artifact], tmp_path: Path
) -> None:
    file = shutil.copyfile(toys["gguf-q8_0"].path, tmp_path / "My model.gguf")
    made = import_form(file, models_dir=store.folder).artifact
    assert made.name == "local/My-model:gguf-q8_0"
    assert store.artifacts() == [made] and changed_files(made, lambda done, total: None) == []
    own = toys["gguf-q8_0"].manifest
    assert (made.manifest.parameters, made.manifest.weight_bytes) == (own.parameters, own.weight_bytes)
    assert made.manifest.source == str(file) and made.manifest.imported
    file.unlink()
    (form,) = find_forms([made.name], store.folder)
    assert context_limits(form).default > 0 and form.bits_per_weight == made.manifest.bits_per_weight
    with localq.load(made.name, models_dir=store.folder) as model, localq.load(toys["gguf-q8_0"].path) as same:
        assert (model.name, model.recipe_name) == ("local/My-model", "gguf-q8_0")
        assert str(model.generate(QUESTION, max_tokens=9)) == str(same.generate(QUESTION, max_tokens=9))


def test_another_format_of_an_imported_model_is_not_made(store: Store, toys: dict[str, Artifact]) -> None:
    import_form(toys["gguf-q8_0"].path, name="mine", models_dir=store.folder)
    with pytest.raises(LocalqError, match="local/mine was imported") as caught:
        localq.load("local/mine:gguf-q4_0", models_dir=store.folder)
    assert caught.value.hint == "what is here: local/mine:gguf-q8_0"


@pytest.mark.parametrize("name", ["mine", "org/mine", "org/mine@v1"])
def test_a_folder_that_mlx_lm_wrote_is_taken_in_under_a_given_name(store: Store, tmp_path: Path, name: str) -> None:
    folder = write_mlx(tmp_path / "qwen", "qwen2", 8)
    (folder / ".cache").mkdir()
    made = import_form(folder, name=name, models_dir=store.folder).artifact
    assert made.name == (name if "/" in name else f"local/{name}") + ":mlx-8bit"
    assert store.require(parse_reference(made.name)) == [made]
    with localq.load(made.name, models_dir=store.folder) as model:
        assert len(model.generate("Hello", max_tokens=3).generated_token_ids) == 3


@pytest.mark.parametrize(("bits", "recipe"), [(4, "mlx-4bit"), (3, "mlx-3bit"), (None, "mlx-bf16")])
def test_the_format_of_a_folder_is_what_its_files_state(tmp_path: Path, bits: int | None, recipe: str) -> None:
    folder = write_mlx(tmp_path / "qwen", "qwen2", bits)
    found = examine(parse_reference(folder))
    whole = examine(parse_reference(write_mlx(tmp_path / "whole", "qwen2", None)))
    assert found.recipe.name == recipe
    assert found.parameters == whole.parameters


def test_a_file_of_several_parts_is_taken_in_whole(store: Store, tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "split.gguf", "qwen2", {"general.file_type": 0}, tensors_per_part=8)
    made = import_form(first, models_dir=store.folder).artifact
    assert made.name == "local/split:gguf-f32" and len(made.manifest.files) > 1
    with localq.load(made.name, models_dir=store.folder) as model:
        assert model.tokenize("Hello")


def test_a_file_type_that_localq_does_not_know_is_named_by_the_user(store: Store, tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "odd.gguf", "llama", {"general.file_type": 999})
    with pytest.raises(OptionError, match="file type 999") as caught:
        import_form(file, models_dir=store.folder)
    assert "--as gguf-q4_k_m" in caught.value.hint
    with pytest.raises(OptionError, match="can't be mlx-4bit"):
        import_form(file, as_recipe="mlx-4bit", models_dir=store.folder)
    assert import_form(file, as_recipe="gguf-f32", models_dir=store.folder).artifact.manifest.recipe == "gguf-f32"
    without = write_gguf(tmp_path / "without.gguf", "llama")
    assert import_form(without, models_dir=store.folder).artifact.manifest.recipe == "gguf-f32"


def test_an_artifact_of_another_models_folder_keeps_its_manifest(
    store: Store, toys: dict[str, Artifact], tmp_path: Path
) -> None:
    for artifact in toys.values():
        made = import_form(artifact.folder, name="org/toy", models_dir=store.folder).artifact
        assert made.manifest.files == artifact.manifest.files and not made.manifest.imported
    damaged = shutil.copytree(toys["mlx-4bit"].folder, tmp_path / "damaged")
    data = bytearray((damaged / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (damaged / "model.safetensors").write_bytes(data)
    with pytest.raises(StoreError, match="is damaged"):
        import_form(damaged, name="org/other", models_dir=store.folder)
    assert len(store.artifacts()) == 2 and not (store.folder / "org--other").exists()


def test_what_is_there_is_replaced_only_by_force(store: Store, toys: dict[str, Artifact], tmp_path: Path) -> None:
    file = toys["gguf-q8_0"].path
    first = import_form(file, name="org/toy", models_dir=store.folder).artifact
    with pytest.raises(StoreError, match="is there already") as caught:
        import_form(file, name="org/toy", models_dir=store.folder)
    assert "--force" in caught.value.hint and "--name" in caught.value.hint
    other = import_form(
        write_gguf(tmp_path / "o.gguf", "llama"), name="org/toy", as_recipe="q8_0", force=True, models_dir=store.folder
    ).artifact
    assert store.artifacts() == [other] and other.manifest.files != first.manifest.files


def test_an_import_does_not_mix_with_a_converted_model(store: Store, toys: dict[str, Artifact]) -> None:
    reference = parse_reference("toy-llama")
    shutil.copytree(toys["mlx-4bit"].folder, store.folder / "local--toy" / "mlx-4bit")
    shutil.copytree(toys["mlx-4bit"].folder, store.place(reference, toys["mlx-4bit"].recipe))
    made = import_form(toys["mlx-4bit"].folder, name="org/toy", models_dir=store.folder)
    with pytest.raises(StoreError, match="localq made from toy-llama"):
        import_form(toys["gguf-q8_0"].path, name=made.artifact.manifest.model, models_dir=store.folder)


@pytest.mark.parametrize("name", ["", "a b", "../up", "a/b/c", "a--b/c", "-x", "org/", "a/b@c@d"])
def test_a_name_that_no_reference_can_have_is_refused(store: Store, toys: dict[str, Artifact], name: str) -> None:
    if name:
        with pytest.raises(ModelReferenceError, match="can't be the name"):
            import_form(toys["gguf-q8_0"].path, name=name, models_dir=store.folder)
    assert not store.folder.exists()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "a.gguf"])
def test_a_pipe_is_not_opened(store: Store, tmp_path: Path, name: str) -> None:
    folder = write_mlx(tmp_path / "qwen", "qwen2", 8)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(LocalqError, match=name):
        import_form(folder / name if name.endswith("gguf") else folder, models_dir=store.folder)


def test_what_can_not_be_imported_is_named_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(write_gguf(tmp_path / "whole.gguf", "llama").read_bytes()[:50_000])
    checkpoint = Path(localq.__file__).parent / "demo" / "toy-phi"
    (tmp_path / "empty").mkdir()
    for source in (tmp_path / "cut.gguf", checkpoint, tmp_path / "empty", tmp_path / "absent"):
        with pytest.raises(LocalqError) as caught:
            import_form(source, models_dir=store.folder)
        assert str(source) in caught.value.message
    assert not store.folder.exists()


@pytest.fixture(params=["copy", "hard link"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(localq.copying, "_reflink", lambda source, target: False)
    if request.param == "copy":
        monkeypatch.setattr(localq.copying, "_link", lambda source, target: False)
    return request.param


def test_only_a_copy_needs_room(
    store: Store, toys: dict[str, Artifact], tmp_path: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = shutil.copyfile(toys["gguf-q8_0"].path, tmp_path / "in.gguf")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    if way == "copy":
        with pytest.raises(StoreError, match="0 MB free"):
            import_form(file, models_dir=store.folder)
        assert not list(store.folder.glob("*/*.gguf")) and store.artifacts() == []
    else:
        assert import_form(file, models_dir=store.folder).how == way


def test_an_import_says_how_and_an_export_is_never_the_same_file(
    store: Store, toys: dict[str, Artifact], tmp_path: Path, way: str
) -> None:
    file = shutil.copyfile(toys["gguf-q8_0"].path, tmp_path / "in.gguf")
    link = tmp_path / "link.gguf"
    link.symlink_to(file)
    imported = import_form(link, name="org/toy", models_dir=store.folder)
    assert imported.how == way
    assert imported.artifact.path.samefile(file) == (way == "hard link") and not imported.artifact.path.is_symlink()
    exported = export_artifact(imported.artifact, tmp_path / "out.gguf")
    assert exported.how == "copy" and not exported.path.samefile(imported.artifact.path)


@pytest.mark.parametrize("recipe", ["gguf-q8_0", "mlx-4bit"])
def test_an_exported_form_is_plain_and_runs(toys: dict[str, Artifact], tmp_path: Path, recipe: str) -> None:
    artifact = toys[recipe]
    target = tmp_path / ("out.gguf" if recipe.startswith("gguf") else "out")
    assert export_artifact(artifact, target).path == target
    assert everything(tmp_path) == sorted(
        ["out.gguf"] if target.is_file() else ["out", *(record.name for record in artifact.manifest.files)]
    )
    with localq.load(target) as model, localq.load(artifact.folder) as same:
        assert str(model.generate(QUESTION, max_tokens=9)) == str(same.generate(QUESTION, max_tokens=9))
    if target.is_file():
        assert gguf.GGUFReader(target).get_field("tokenizer.chat_template") is not None
    else:
        from mlx_lm import load

        load(str(target))


def test_an_export_goes_into_a_folder_and_replaces_only_by_force(toys: dict[str, Artifact], tmp_path: Path) -> None:
    file = export_artifact(toys["gguf-q8_0"], tmp_path).path
    assert file == tmp_path / "toy-llama-Q8_0.gguf"
    file.write_text("mine")
    folder = export_artifact(toys["mlx-4bit"], tmp_path / "mlx").path
    (folder / "config.json").write_text("{}")
    for artifact, target in ((toys["gguf-q8_0"], tmp_path), (toys["mlx-4bit"], folder)):
        with pytest.raises(OptionError, match="is there already") as caught:
            export_artifact(artifact, target)
        assert "--force" in caught.value.hint
        exported = export_artifact(artifact, target, force=True).path
        assert localq.load(exported).close() is None
    assert not [name for name in everything(tmp_path) if name.startswith(".")]


def test_an_export_replaces_no_folder_of_something_else(toys: dict[str, Artifact], tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.png").touch()
    with pytest.raises(OptionError, match="is not an MLX folder"):
        export_artifact(toys["mlx-4bit"], tmp_path / "photos", force=True)
    for target in (tmp_path / "absent" / "out.gguf", tmp_path / "out.bin"):
        with pytest.raises(OptionError, match="there is no folder"):
            export_artifact(toys["gguf-q8_0"], target)
    assert everything(tmp_path) == ["one.png", "photos"]


@pytest.mark.parametrize("recipe", ["gguf-q8_0", "mlx-4bit"])
@pytest.mark.parametrize("force", [False, True])
def test_a_full_disk_leaves_nothing_of_an_export(
    toys: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str, force: bool
) -> None:
    target = tmp_path / ("out.gguf" if recipe.startswith("gguf") else "out")
    if force:
        export_artifact(toys[recipe], target)
    before = everything(tmp_path)

    def full(source: Path, copy: Path) -> None:
        copy.write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(localq.copying, "_reflink", lambda source, target: False)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(LocalqError, match=f"can't write {target}: No space left"):
        export_artifact(toys[recipe], target, force=force)
    assert everything(tmp_path) == before
    if force:
        assert localq.load(target).close() is None
