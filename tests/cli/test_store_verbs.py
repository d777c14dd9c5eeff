"""ls, verify, prune, rm, import and export as a user sees them: artifacts damaged, lost, or not used for long."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from localq.conversion.convert import convert
from localq.store.manifest import Artifact
from localq.store.store import Store

DAY = 86_400


def localq(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), prog_name="localq")


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCALQ_MODELS", str(tmp_path / "models"))
    return tmp_path / "models"


@pytest.fixture
def made(models: Path) -> list[Artifact]:
    return convert("toy-llama", ["gguf-q8_0", "gguf-q4_0", "mlx-4bit"])


def used(artifact: Artifact, days_ago: float) -> None:
    moment = time.time() - days_ago * DAY
    os.utime(artifact.folder / "localq.json", (moment, moment))


def test_opening_a_model_is_its_last_use_and_ls_shows_it(made: list[Artifact]) -> None:
    for artifact in made:
        used(artifact, 40)
    assert localq("generate", "toy-llama:gguf-q8_0", "Hello", "-n", "1").exit_code == 0
    times = {record["recipe"]: record["last_used"][:10] for record in json.loads(localq("ls", "--json").stdout)}
    today = f"{made[0].last_used:%Y-%m-%d}"
    assert times["gguf-q8_0"] == today and times["gguf-q4_0"] != today
    assert f"{made[0].last_used:%Y-%m-%d %H:%M}" in localq("ls").stdout
    made[0].folder.joinpath("localq.json").unlink()
    made[0].touch()  # what can't be noted is no error


def test_prune_deletes_what_was_not_used_for_long_only_when_asked(made: list[Artifact], models: Path) -> None:
    for days, artifact in zip((40, 20, 1), made, strict=True):
        used(artifact, days)
    assert localq("prune").stderr == f"nothing to delete in {models}\n"
    dry = localq("prune", "--older-than", "30d", "--dry-run").stdout
    assert dry.startswith("would remove toy-llama:gguf-q8_0, 1.44 MB, last used 20") and dry.count("\n") == 1
    assert len(Store().artifacts()) == 3
    assert localq("prune", "--older-than", "999999w").stdout == ""  # before the calendar begins
    (record,) = json.loads(localq("prune", "--older-than", "30d", "--json").stdout)
    assert (record["model"], record["recipe"], record["path"]) == ("toy-llama", "gguf-q8_0", str(made[0].folder))
    assert localq("prune", "--keep-bytes", "1MB").stdout.startswith("removed toy-llama:gguf-q4_0, ")
    assert [artifact.name for artifact in Store().artifacts()] == ["toy-llama:mlx-4bit"]
    assert localq("prune", "--keep-bytes", "800 kB").stdout == ""
    assert "removed" in localq("prune", "--keep-bytes", "0").stdout and Store().artifacts() == []


@pytest.mark.parametrize(
    "arguments", [("--older-than", "30"), ("--older-than", "d"), ("--keep-bytes", "20 apples"), ("--keep-bytes", "-1")]
)
def test_prune_refuses_what_is_no_time_or_size(made: list[Artifact], arguments: tuple[str, str]) -> None:
    result = localq("prune", *arguments)
    assert result.exit_code == 1 and f"{arguments[0]} is {arguments[1]!r}" in result.stderr
    assert len(Store().artifacts()) == 3


def test_prune_puts_an_artifact_back_and_says_so(made: list[Artifact]) -> None:
    away = made[0].folder.with_name(".gguf-q8_0.replaced")
    made[0].folder.rename(away)
    assert localq("prune", "--dry-run").stdout.startswith(f"would put back {away}, 1.44 MB: a whole artifact")
    assert localq("prune").stdout.startswith(f"put back {away}")
    assert made[0].path.exists()


def test_a_form_without_manifest_is_told_and_can_be_deleted(made: list[Artifact]) -> None:
    folder = made[0].folder
    (folder / "localq.json").unlink()
    assert f"warning: {folder} has lost its localq.json" in localq("ls").stderr
    verified = localq("verify")
    assert verified.exit_code == 1 and f"damaged: {folder} has lost its localq.json" in verified.stderr
    assert localq("prune", "--dry-run").stdout.startswith(f"would remove {folder}, ")
    assert localq("rm", "toy-llama:gguf-q8_0").stdout.startswith("removed toy-llama:gguf-q8_0, 1.4")
    assert not folder.exists()


def test_rm_of_a_whole_model_takes_its_calibration_too(made: list[Artifact], models: Path) -> None:
    calibration = models / "toy-llama" / "calibration"
    calibration.mkdir()
    (calibration / "calibration.json").touch()
    assert localq("rm", "toy-llama:mlx-4bit").exit_code == 0 and calibration.exists()
    assert localq("rm", "toy-llama", "--yes").exit_code == 0
    assert not (models / "toy-llama").exists()


def test_rm_beside_another_rm_is_no_error(made: list[Artifact], monkeypatch: pytest.MonkeyPatch) -> None:
    remove = Store.remove
    monkeypatch.setattr(Store, "remove", lambda store, folder: remove(store, folder) and remove(store, folder))
    result = localq("rm", "toy-llama:mlx-4bit")
    assert result.exit_code == 0 and result.stderr == "nothing is left to delete: another localq was quicker\n"


def test_verify_deep_records_and_compares(made: list[Artifact]) -> None:
    assert localq("verify", "--deep").stdout.count("unchanged; logits recorded, to compare with the next time") == 3
    assert localq("verify", "--deep").stdout.count("unchanged; logits as recorded") == 3
    file = made[1].folder / "localq-probe.json"
    record = json.loads(file.read_text())
    file.write_text(json.dumps({**record, "logits": [-value for value in record["logits"]]}))
    result = localq("verify", "--deep", "--json")
    records = json.loads(result.stdout)
    assert result.exit_code == 1 and "do not give what they gave" in result.stderr
    assert [record["probe"] for record in records if record["recipe"] == "gguf-q4_0"] == ["differs"]
    assert set(records[0]) == {"model", "recipe", "bytes", "changed", "probe", "probe_difference"}


def test_import_and_export_say_what_they_did(made: list[Artifact], tmp_path: Path) -> None:
    exported = localq("export", "toy-llama:gguf-q8_0", tmp_path / "out.gguf")
    assert exported.stdout.startswith("toy-llama:gguf-q8_0, 1.4") and f": {tmp_path / 'out.gguf'}\n" in exported.stdout
    record = json.loads(localq("import", tmp_path / "out.gguf", "--name", "org/x", "--json").stdout)
    assert (record["model"], record["recipe"]) == ("org/x", "gguf-q8_0") and Path(record["path"]).is_file()
    assert record["how"] in ("reflink", "hard link", "copy")
    assert "org/x:gguf-q8_0" in localq("ls").stdout
    assert localq("generate", "org/x:gguf-q8_0", "Hello", "-n", "1").exit_code == 0
    several = localq("export", "toy-llama", tmp_path)
    assert several.exit_code == 1 and "name one of them: toy-llama:mlx-4bit, toy-llama:" in several.stderr
