"""Wrong input to any verb: an error in one line that names it, with what helps, and never a traceback."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import app
from tests.tiny_checkpoints import write_checkpoint

QUESTION = "What is the capital of France?"


def localq(*arguments: str, stdin: str | bytes = "") -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin)


def assert_fails(result: Result, *words: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: " in result.stderr or json.loads(result.stderr.splitlines()[-1])["code"] == 1
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "toy-llama:gguf-q4_k_n", "hi"], ["gguf-q4_k_n", "gguf-q4_k_m"]),
        (["generate", "./nowhere", "hi"], ["./nowhere", "localq ls"]),
        (["generate", "nonsense", "hi"], ["nonsense", "toy-llama"]),
        (["generate", "toy-llama:gguf-q4_k_m"], ["blank", "localq generate"]),
        (["generate", "toy-llama:gguf-q4_k_m", ""], ["blank", "localq generate"]),
        (["generate", "toy-llama:gguf-q4_k_m", " \t\n"], ["blank", "localq generate"]),
        (["generate", "toy-llama:gguf-q4_k_m", "-"], ["blank", "localq generate"]),
        (["generate", "toy-llama:gguf-q4_k_m", "--no-stdin"], ["there is no prompt", "localq generate"]),
        (["generate", "toy-llama:gguf-q4_k_m", "-", "--no-stdin"], ["--no-stdin", "-"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--temp", "-1"], ["temperature", "-1"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--temp", "nan"], ["temperature", "nan"]),
        *(
            (["generate", "toy-llama:gguf-q4_k_m", "hi", "--logit-bias", bias], ["--logit-bias", bias, "15043=-inf"])
            for bias in ("5", "5:1", "five=1", "5=", "5=x", "=1", "-1=3", "5 =1")
        ),
        (
            ["generate", "toy-llama:gguf-q4_k_m", "hi", "--logit-bias", "9" * 5000 + "=1"],
            ["--logit-bias", "15043=-inf"],
        ),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--logit-bias", "99999=1"], ["logit_bias", "99999", "512"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--logit-bias", "9=inf"], ["logit_bias", "-inf"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--logprobs", "2"], ["--logprobs", "--json"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--logprobs", "-2", "--json"], ["logprobs", "-2"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--kv-cache-type", "q5_1"], ["kv_cache_type", "q5_1", "q8_0"]),
        (["generate", "toy-llama:mlx-4bit", "hi", "--flash-attention"], ["flash_attention", "--flash-attention"]),
        (["generate", "toy-llama:mlx-4bit", "hi", "--batch-tokens", "513"], ["batch_tokens", "513", "512"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "-c", "999999"], ["999999", "--context-length"]),
        (["generate", "toy-phi:gguf-q4_k_m", "word " * 400], ["tokens", "256", "--context-length"]),
        (["convert", "toy-llama", "--to", "q4km"], ["q4km", "gguf-q4_k_m", "localq recipes"]),
        (["convert", "toy-llama", "--to", "bf16"], ["mlx-bf16 or gguf-bf16"]),
        (["generate", "toy-lama", "hi"], ["toy-lama", "did you mean toy-llama?"]),
        (["show", "toy-phy"], ["did you mean toy-phi?"]),
        (["convert", "toy-llama:mlx-4bit"], ["--to mlx-4bit"]),
        (["pull", "toy-llama"], ["toy-llama", "org/name"]),
        (["show", "toy-llama:gguf-q5_k_m"], ["toy-llama:gguf-q5_k_m", "localq convert"]),
        (["bench", "toy-llama", "--json", "--csv"], ["--json", "--csv"]),
        (["convert", "toy-llama", "--to", "gguf-99bpw"], ["gguf-99bpw", "1.5 to 16", "gguf-16bpw"]),
        (["convert", "toy-llama", "--to", "mlx-4bit,q8_0"], ["mlx-4bit,q8_0", "one format at a time"]),
        (["convert", "toy-llama:"], ["unknown format '': it is empty"]),
        (["generate", "toy-llama:gguf-q4_k_m", "hi", "--stop", ""], ["stop", "none of them empty"]),
        (["verify", ""], ["'' names no model"]),
        (["chat", ""], ["'' names no model"]),
        (["import", __file__], ["not a .gguf file", "a folder or a .gguf file"]),
        (["serve", "--keep-alive", "-2"], ["--keep-alive is -2", "-1"]),
        (["serve", "--keep-alive", "nan"], ["--keep-alive is nan"]),
    ],
)
def test_bad_input_is_named_with_what_helps(arguments: list[str], words: list[str]) -> None:
    assert_fails(localq(*arguments), *words)


def test_model_without_chat_template_needs_raw_and_is_refused_before_it_is_converted(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "base", "llama-3")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    models = ("--models-dir", str(tmp_path / "models"))
    for name in (f"{folder}:gguf-q8_0", str(folder)):
        assert_fails(localq("generate", name, "hi", *models), "base has no chat template", "--raw")
        assert_fails(localq("chat", name, *models), "base has no chat template", "--raw")
    assert not (tmp_path / "models").exists()
    form = f"{folder}:gguf-q8_0"
    assert localq("generate", form, "hi", "--raw", "-n", "1", *models).exit_code == 0
    assert_fails(localq("generate", form, "hi", *models), "base has no chat template", "--raw")  # also when it is there


@pytest.mark.parametrize("arguments", [["ls"], ["show", "toy-phi"], ["rm", "toy-phi"], ["verify"], ["prune"]])
def test_a_chosen_models_folder_that_does_not_exist_is_an_error(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = str(tmp_path / "absent")
    assert_fails(localq(*arguments, "--models-dir", absent), f"there is no folder {absent}", "localq convert")
    assert_fails(localq(*arguments, "--models-dir", absent, "--json"), f"there is no folder {absent}")
    monkeypatch.setenv("LOCALQ_MODELS", absent)
    assert_fails(localq(*arguments), f"there is no folder {absent}", "LOCALQ_MODELS")
    assert not Path(absent).exists()


def test_models_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert_fails(localq("convert", "toy-llama", "--models-dir", str(blocked)), str(blocked), "--models-dir")


def test_disk_without_room_is_found_out_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9 - 1000, 1000))
    assert_fails(localq("convert", "toy-llama", "--models-dir", str(tmp_path)), "free", "localq rm")
    assert not list(tmp_path.glob("toy-llama/*"))


def test_a_prompt_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    form = "toy-llama:gguf-q4_k_m"
    assert_fails(localq("generate", form, "-f", str(tmp_path / "no.txt")), "no.txt")
    assert_fails(localq("generate", form, "-f", str(tmp_path)), str(tmp_path))
    (tmp_path / "picture").write_bytes(b"\xff\xd8")
    assert_fails(localq("generate", form, "-f", str(tmp_path / "picture")), "picture", "UTF-8")


def test_text_that_is_not_utf_8_is_refused() -> None:
    assert_fails(localq("generate", "toy-llama:gguf-q4_k_m", stdin=b"\xff\xfe"), "UTF-8")


def test_unexpected_errors_are_one_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("localq.model.load", broken)
    assert_fails(localq("generate", "toy-llama", "hi"), "ZeroDivisionError", "LOCALQ_DEBUG")
    monkeypatch.setenv("LOCALQ_DEBUG", "1")
    assert "Traceback" in localq("generate", "toy-llama", "hi").stderr


def test_a_chat_without_a_line_to_answer_tells_what_is_wrong_with_its_model(tmp_path: Path) -> None:
    (tmp_path / "bad.gguf").write_text("garbage")
    result = localq("chat", str(tmp_path / "bad.gguf"))
    assert result.exit_code == 1 and "bad.gguf is damaged, or not a GGUF file" in result.stderr


def test_an_artifact_is_not_imported_under_an_empty_name(tmp_path: Path) -> None:
    models = ("--models-dir", str(tmp_path / "models"))
    assert localq("convert", "toy-llama", "--to", "gguf-q8_0").exit_code == 0
    assert localq("export", "toy-llama:gguf-q8_0", str(tmp_path / "a.gguf")).exit_code == 0
    assert_fails(localq("import", str(tmp_path / "a.gguf"), "--name", "", *models), "name of a model")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate"], "Missing argument 'REF'"),
        (["nonsense"], "No such command 'nonsense'"),
        (["generate", "--nonsense"], "No such option: --nonsense"),
        (["generate", "toy-llama", "hi", "--temp", "hot"], "'hot' is not a number"),
        (["generate", "toy-llama", "hi", "-n", "1.5"], "'1.5' is not a whole number"),
        (["serve", "--port", ""], "'' is not a whole number"),
    ],
)
def test_usage_errors_exit_with_2(arguments: list[str], words: str) -> None:
    result = localq(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    assert words in " ".join(result.stderr.split())
