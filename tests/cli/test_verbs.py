"""What people type at any verb: names, aliases, Tab, --json at errors, questions before data is deleted."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq.cli.main import VERBS, app
from localq.conversion.plan import plan_recipe
from localq.measure.shapes import _checkpoint as random_checkpoint
from localq.measure.shapes import shape_config
from localq.recipes import DEFAULT_RECIPES, RECIPES

TOY, QUESTION, ANSWER = "toy-llama:gguf-q4_k_m", "What is the capital of France?", "The capital of France is Paris."
LOCALQ = [sys.executable, "-m", "localq"]


def localq(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, prog_name="localq")


def data(*arguments: str) -> Any:
    result = localq(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def two_models(tmp_path: Path) -> Path:
    """A models folder with two formats of one toy and one of the other."""
    folder = tmp_path / "models"
    for toy, recipes in (("toy-phi", ("q8_0", "q4_0")), ("toy-llama", ("q8_0",))):
        names = [word for recipe in recipes for word in ("--to", recipe)]
        assert localq("convert", toy, *names, "--models-dir", str(folder)).exit_code == 0
    return folder


# --- names ---


def test_formats_have_their_short_names_everywhere(tmp_path: Path) -> None:
    models = ("--models-dir", str(tmp_path))
    made = data("convert", "toy-llama", "--to", "Q8_0", "--to", "gguf", "--to", "gguf-q8_0", *models)
    assert [item["recipe"] for item in made] == ["gguf-q8_0", "gguf-q4_k_m"]
    assert [item["recipe"] for item in data("show", "toy-llama:q8_0", *models)] == ["gguf-q8_0"]
    assert data("generate", "toy-llama:GGUF", QUESTION, *models)["recipe"] == "gguf-q4_k_m"
    assert localq("rm", "toy-llama:q8_0", *models).stdout.startswith("removed toy-llama:gguf-q8_0")


def test_the_chat_understands_short_names_too() -> None:
    lines = f"{QUESTION}\n/format q8_0\n/format bf16\n/format q8\n/model toy-lama\n"
    result = localq("chat", TOY, "--no-save", stdin=lines)
    assert "(toy-llama:gguf-q8_0," in result.stderr
    assert "did you mean toy-llama?" in result.stderr
    assert "did you mean mlx-bf16 or gguf-bf16?" in result.stderr
    assert "unknown format 'q8'" in result.stderr and "gguf-q8_0" in result.stderr
    compared = localq("chat", TOY, "--no-save", stdin=f"{QUESTION}\n/compare q4_k_m q8_0\n\n")
    assert compared.stderr.count("--- gguf-q4_k_m ---") == compared.stderr.count("--- gguf-q8_0 ---") == 1
    assert compared.stdout == f"{ANSWER}\n" * 3


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("toy-lama", "toy-llama"),
        ("phi-4-mini", "microsoft/Phi-4-mini-instruct"),
        ("Phi-4-mini-instruct", "microsoft/Phi-4-mini-instruct"),
        ("microsoft/Phi-4-mini-instuct", "microsoft/Phi-4-mini-instruct"),
        ("metallama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
    ],
)
def test_a_misspelt_model_is_answered_with_the_nearest_that_is_here(
    name: str, nearest: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, cache = tmp_path / "models", tmp_path / "hub"
    (models / "microsoft--Phi-4-mini-instruct" / "gguf-q8_0").mkdir(parents=True)
    (cache / "models--meta-llama--Llama-3.2-1B").mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read from the environment at import alone
    result = localq("generate", name, "hi", "--models-dir", str(models))
    assert (result.exit_code, result.stdout) == (1, "")
    assert f"hint: did you mean {nearest}" in result.stderr


def test_a_name_that_is_near_to_nothing_gets_no_suggestion() -> None:
    assert "did you mean" not in localq("generate", "zzz", "hi").stderr


@pytest.mark.parametrize(("typed", "nearest"), [("convrt", "convert"), ("generte", "generate"), ("evall", "eval")])
def test_a_misspelt_verb_is_answered_with_the_nearest(typed: str, nearest: str) -> None:
    result = localq(typed, "toy-phi")
    assert result.exit_code == 2 and f"Did you mean '{nearest}'?" in result.stderr


@pytest.mark.parametrize("typed", ["rmm", "rn", "r", "remove", "prun", "prunes", "delete"])
def test_a_verb_that_deletes_is_never_suggested(typed: str, two_models: Path) -> None:
    result = localq(typed, "toy-phi", "--models-dir", str(two_models))
    assert result.exit_code == 2
    assert "'rm'" not in result.stderr and "'prune'" not in result.stderr
    assert len(data("ls", "--models-dir", str(two_models))) == 3


def test_list_is_ls(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    assert data("list", *models) == data("ls", *models)


def test_run_is_generate_with_a_prompt_or_piped_text_and_else_chat() -> None:
    assert localq("run", TOY, QUESTION).stdout == ANSWER + "\n"
    assert localq("run", TOY, stdin=f"{QUESTION}\n").stdout == ANSWER + "\n"
    chatted = localq("run", TOY, "--no-save", stdin=f"{QUESTION}\n/exit\n")  # an option of chat alone
    assert chatted.stdout == ANSWER + "\n" and "/help lists the commands" in chatted.stderr
    assert "localq chat" in localq("run", "--help").stdout
    assert localq("run", TOY, "one", "two").exit_code == 2


def test_run_in_a_terminal_is_chat() -> None:
    import pexpect

    child = pexpect.spawn(sys.executable, ["-m", "localq", "run", TOY, "--no-save"], timeout=60, encoding="utf-8")
    child.expect("/help lists the commands")
    child.expect(">>>")
    child.send("/exit\r")
    child.expect(pexpect.EOF)


# --- recipes ---


def test_recipes_lists_every_format_with_the_bits_that_it_takes(tmp_path: Path) -> None:
    listed = {item["recipe"]: item for item in data("recipes")}
    available = {name for name, item in listed.items() if item["is_available"]}
    assert available == set(RECIPES)
    assert {name for name, item in listed.items() if item["is_default"]} == set(DEFAULT_RECIPES)
    assert all(item["needs_calibration"] for name, item in listed.items() if name not in available)
    checkpoint = random_checkpoint("shape", shape_config("llama-3.1-8b"), tmp_path)
    for name, recipe in RECIPES.items():
        bits = 8 * plan_recipe(checkpoint, recipe).weight_bytes / checkpoint.parameters
        assert math.isclose(listed[name]["bits_per_weight"], bits, abs_tol=0.006), name


def test_recipes_fits_80_columns_and_names_every_format_once() -> None:
    lines = localq("recipes").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    names = [line.split()[0] for line in lines if line.startswith(("mlx-", "gguf-"))]
    assert sorted(names) == sorted(item["recipe"] for item in data("recipes"))


# --- rm, prune ---


def test_rm_of_a_whole_model_needs_yes_where_nobody_can_answer(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    refused = localq("rm", "toy-phi", *models)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "2 artifacts" in refused.stderr and "--yes" in refused.stderr and "--dry-run" in refused.stderr
    assert len(data("ls", *models)) == 3
    assert localq("rm", "toy-phi", "-y", *models).stdout.count("removed toy-phi:") == 2
    assert [item["model"] for item in data("ls", *models)] == ["toy-llama"]


def test_rm_of_one_format_asks_nothing_also_by_its_path(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    (one,) = [item for item in data("ls", *models) if item["recipe"] == "gguf-q4_0"]
    assert localq("rm", one["path"], *models).exit_code == 0
    assert localq("rm", "toy-phi:gguf-q8_0", *models).exit_code == 0
    assert [item["model"] for item in data("ls", *models)] == ["toy-llama"]


def test_a_dry_run_of_rm_names_bytes_and_deletes_nothing(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    would = localq("rm", "toy-phi", "--dry-run", *models)
    assert would.stdout.count("would remove toy-phi:gguf-") == 2 and "in all" in would.stdout
    planned = data("rm", "toy-phi", "--dry-run", *models)
    assert len(data("ls", *models)) == 3
    assert planned == data("rm", "toy-phi", "--yes", *models)


@pytest.mark.parametrize(("answer", "left"), [("y\r", 1), ("n\r", 3), ("\r", 3), ("\x04", 3)])
def test_rm_asks_in_a_terminal(answer: str, left: int, two_models: Path) -> None:
    import pexpect

    models = ("--models-dir", str(two_models))
    child = pexpect.spawn(sys.executable, ["-m", "localq", "rm", "toy-phi", *models], timeout=60, encoding="utf-8")
    child.expect("will remove toy-phi:gguf-q4_0, .*will remove toy-phi:gguf-q8_0, .*delete 2 artifacts, .*MB.*y/N. ")
    child.send(answer)
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == (0 if left == 1 else 1)
    assert len(data("ls", *models)) == left


def test_a_dry_run_of_prune_names_bytes_and_deletes_nothing(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    leftover = two_models / "toy-phi" / ".gguf-q5_0.partial"
    leftover.mkdir()
    (leftover / "weights").write_bytes(bytes(1234))
    assert localq("prune", "--dry-run", *models).stdout == f"would remove {leftover}, 1.23 kB\n"
    assert data("prune", "--dry-run", *models) == [{"path": str(leftover), "bytes": 1234}]
    assert leftover.is_dir()
    assert localq("prune", *models).stdout == f"removed {leftover}, 1.23 kB\n"
    assert not leftover.exists()


# --- stdin of generate ---


def shell(script: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a script in which `ask` generates one token as JSON."""
    ask = f'ask() {{ {sys.executable} -m localq generate {TOY} -n 1 --json "$@"; }}\n'
    ran = subprocess.run(["bash", "-c", ask + script], input=stdin, capture_output=True, text=True, check=False)
    assert "Traceback" not in ran.stderr
    return ran


def prompt_ids(text: str) -> list[int]:
    return data("generate", TOY, text, "-n", "1", "--no-stdin")["prompt_token_ids"]  # type: ignore[no-any-return]


def asked(ran: subprocess.CompletedProcess[str]) -> list[list[int]]:
    """The prompts of all calls."""
    assert ran.returncode == 0, ran.stderr
    decoder, text, found = json.JSONDecoder(), ran.stdout.strip(), []
    while text:
        value, end = decoder.raw_decode(text)
        found.append(value["prompt_token_ids"])
        text = text[end:].strip()
    return found


def test_a_dash_reads_the_prompt_from_stdin(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    assert asked(shell("ask -", "two\n")) == [prompt_ids("two")]
    assert asked(shell(f"ask - -f {tmp_path}/a.txt", "two\n")) == [prompt_ids("one\n\ntwo")]


def test_piped_text_and_a_whole_file_go_before_a_prompt(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n")
    expected = [prompt_ids("one\n\ntwo")]
    assert asked(shell("echo one | ask two")) == expected
    assert asked(shell(f"ask two < {tmp_path}/a.txt")) == expected
    assert asked(shell("summarise() { ask two; }; echo one | summarise")) == expected


def test_a_loop_over_a_file_keeps_its_lines(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\nthree\n")
    expected = [prompt_ids(word) for word in ("one", "two", "three")]
    assert asked(shell(f'while read -r line; do ask "$line"; done < {tmp_path}/a.txt')) == expected


@pytest.mark.parametrize("how", ["--no-stdin", "< /dev/null"])
def test_a_loop_over_a_pipe_keeps_its_lines_where_stdin_is_not_read(how: str) -> None:
    ran = shell(f'printf "one\\ntwo\\n" | while read -r line; do ask "$line" {how}; done')
    assert asked(ran) == [prompt_ids("one"), prompt_ids("two")]


def test_a_loop_over_a_pipe_gives_its_lines_to_the_first_prompt_as_documented() -> None:
    ran = shell('printf "one\\ntwo\\n" | while read -r line; do ask "$line"; done')
    assert asked(ran) == [prompt_ids("two\n\none")]


@pytest.mark.parametrize("script", ["ask < /dev/null", "ask - < /dev/null", "echo ' ' | ask", "ask '  ' < /dev/null"])
def test_a_blank_prompt_is_refused(script: str) -> None:
    ran = shell(script)
    assert ran.returncode == 1
    assert json.loads(ran.stderr)["error"] == "the prompt is blank"


# --- errors with --json, exit codes ---


def failure(*arguments: str) -> tuple[int, dict[str, Any]]:
    result = localq(*arguments)
    assert result.stdout == ""
    return result.exit_code, json.loads(result.stderr.splitlines()[-1])


def test_an_error_is_a_json_object_with_json() -> None:
    code, error = failure("show", "toy-llama:gguf-q4km", "--json")
    assert code == error["code"] == 1
    assert error["error"] == "unknown format 'gguf-q4km'" and "gguf-q4_k_m" in error["hint"]
    assert set(error) == {"error", "hint", "code"}


@pytest.mark.parametrize("arguments", [["show"], ["ls", "--wrong"], ["generate", "toy-phi", "hi", "-n", "x"], ["sho"]])
def test_wrong_usage_is_a_json_object_with_json(arguments: list[str]) -> None:
    code, error = failure(*arguments, "--json")
    assert code == error["code"] == 2
    assert error["error"] and error["hint"]
    plain = localq(*arguments)
    assert plain.exit_code == 2 and "Error: " in plain.stderr and "{" not in plain.stderr


def test_an_unexpected_error_is_a_json_object_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("localq.model.load", broken)
    code, error = failure("generate", TOY, "hi", "--json", "--no-stdin")
    assert code == 1 and "ZeroDivisionError: a bug" in error["error"]


def test_json_behind_two_dashes_is_a_prompt() -> None:
    result = localq("generate", "nonsense", "--", "--json")
    assert result.exit_code == 1 and result.stderr.startswith("error: ")


def test_a_damaged_artifact_is_an_error_of_verify(two_models: Path) -> None:
    models = ("--models-dir", str(two_models))
    path = Path(data("show", "toy-phi:q8_0", *models)[0]["path"])
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    result = localq("verify", "toy-phi", "--json", *models)
    assert result.exit_code == 1
    assert [bool(item["changed"]) for item in json.loads(result.stdout)] == [False, True]
    assert json.loads(result.stderr.splitlines()[-1])["code"] == 1


# --- completion ---


def completed(*words: str, **environment: str) -> list[str]:
    """What bash is offered for the last word; bash ends words at colons."""
    given = {"_LOCALQ_COMPLETE": "complete_bash", "COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    ran = subprocess.run(
        LOCALQ, env={**os.environ, **given, **environment}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stderr) == (0, "")
    return ran.stdout.split()


def test_bash_completes_verbs_models_formats_and_shapes(two_models: Path) -> None:
    here = {"LOCALQ_MODELS": str(two_models), "HF_HUB_CACHE": str(two_models / "none")}
    (two_models / "org--name").mkdir()
    assert completed("localq", "") == list(VERBS)
    assert completed("localq", "con") == ["convert"]
    assert completed("localq", "chat", "", **here) == ["toy-llama", "toy-phi", "org/name"]
    assert completed("localq", "run", "toy-p", **here) == ["toy-phi"]
    assert completed("localq", "generate", "toy-phi", ":", "gguf-q8", **here) == ["gguf-q8_0"]
    assert completed("localq", "generate", "toy-phi", ":", "q4_k", **here) == ["q4_k_s", "q4_k_m"]
    assert sorted(completed("localq", "generate", "toy-phi", ":", **here)) == sorted(RECIPES)
    assert completed("localq", "rm", "toy-phi", ":", **here) == ["gguf-q4_0", "gguf-q8_0"]
    assert completed("localq", "convert", "toy-phi", "--to", "mlx-mx", **here) == ["mlx-mxfp4", "mlx-mxfp8"]
    assert completed("localq", "bench", "--shape", "phi-4", **here) == ["phi-4", "phi-4-mini"]
    assert completed("localq", "chat", "toy-phi", ":", "mlx-4bit", "--pl", **here) == ["--plain"]
    assert completed("localq", "chat", "READ", **here) == []  # the shell offers files then


def test_zsh_completes_whole_references() -> None:
    given = {"_LOCALQ_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": "localq chat toy-phi:gguf-q8"}
    ran = subprocess.run(LOCALQ, env={**os.environ, **given}, capture_output=True, text=True, check=True)
    assert r'"toy-phi\\:gguf-q8_0"' in ran.stdout


def test_the_completion_script_works_in_a_real_bash(two_models: Path) -> None:
    import pexpect

    program = two_models.parent / "localq"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m localq "$@"\n')
    program.chmod(0o755)
    folders = f"{program.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": folders, "TERM": "dumb", "LOCALQ_MODELS": str(two_models)}
    child = pexpect.spawn("bash", ["--norc", "--noprofile", "-i"], env=environment, encoding="utf-8", timeout=60)
    child.sendline("source <(localq --show-completion); echo rea''dy")
    child.expect("\nready")
    child.send("localq rm toy-phi:gguf-q8\t")
    child.expect("toy-phi:gguf-q8_0 ")
    child.close(force=True)


@pytest.mark.parametrize("arguments", [["--help"], ["ls"], ["recipes"], ["show", "toy-phi"]])
def test_verbs_that_answer_at_once_load_no_other_verb_and_no_pydantic(arguments: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['localq', *{arguments!r}]\nfrom localq.cli.main import main\ntry: main()\n"
        "except SystemExit: print('\\n', *[name for name in sys.modules])"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.splitlines()[-1].split())
    verbs = {name for name in loaded if name.removeprefix("localq.cli.") in VERBS}
    assert verbs <= {f"localq.cli.{arguments[0]}"}
    assert "typer" in loaded and "pydantic" not in loaded
