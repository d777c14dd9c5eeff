"""The commands as their users run them: exit status, stdout and stderr."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from tests.cli.test_wrong_input import assert_fails, localq
from tests.tiny_checkpoints import write_checkpoint

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
FORMS = ["toy-llama:mlx-4bit", "toy-llama:gguf-q4_k_m", "toy-phi:mlx-4bit", "toy-phi:gguf-q4_k_m"]


def data(result: Result) -> Any:
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_answers_a_question_right(form: str) -> None:
    result = localq("generate", form, QUESTION)
    assert result.exit_code == 0
    assert result.stdout == ANSWER + "\n"


def test_convert_makes_both_default_forms_and_finds_them_again(tmp_path: Path) -> None:
    first = data(localq("convert", "toy-llama", "--models-dir", str(tmp_path), "--json"))
    assert [item["recipe"] for item in first] == ["mlx-4bit", "gguf-q4_k_m"]
    assert [item["reused"] for item in first] == [False, False]
    keys = {"model", "recipe", "path", "bytes", "parameters", "bits_per_weight", "seconds", "reused", "fallbacks"}
    keys |= {"predicted_kl_divergence", "predictions"}
    assert all(set(item) == keys for item in first)
    assert Path(first[0]["path"]).is_dir() and first[1]["path"].endswith(".gguf")
    result = localq("convert", "toy-llama", "--models-dir", str(tmp_path), "--json")
    assert [item["reused"] for item in data(result)] == [True, True]
    assert result.stderr.count("is there already") == 2
    forced = data(
        localq("convert", "toy-llama", "--to", "mlx-4bit", "--force", "--models-dir", str(tmp_path), "--json")
    )
    assert not forced[0]["reused"]


def test_dry_run_tells_sizes_and_writes_nothing(tmp_path: Path) -> None:
    result = localq("convert", "toy-phi", "--to", "gguf-q8_0", "--dry-run", "--models-dir", str(tmp_path / "m"))
    assert result.exit_code == 0
    assert "gguf-q8_0" in result.stdout
    assert not (tmp_path / "m").exists()


def test_ls_show_and_rm_tell_of_what_is_there(tmp_path: Path) -> None:
    models = ("--models-dir", str(tmp_path))
    localq("convert", "toy-phi", "--to", "gguf-q8_0", "--to", "mlx-8bit", *models)
    (first, second) = data(localq("ls", "--json", *models))
    assert set(first) == {"model", "recipe", "path", "bytes", "bits_per_weight", "revision", "created", "last_used"}
    assert {first["recipe"], second["recipe"]} == {"gguf-q8_0", "mlx-8bit"}
    assert "toy-phi:gguf-q8_0" in localq("ls", *models).stdout
    (shown,) = data(localq("show", "toy-phi:gguf-q8_0", "--json", *models))
    assert shown["files"][0]["bytes"] == Path(shown["path"]).stat().st_size
    assert "removed toy-phi:gguf-q8_0" in localq("rm", "toy-phi:gguf-q8_0", *models).stdout
    assert [item["recipe"] for item in data(localq("ls", "--json", *models))] == ["mlx-8bit"]
    localq("rm", "toy-phi", "--yes", *models)
    assert data(localq("ls", "--json", *models)) == []
    assert_fails(localq("rm", "toy-phi", *models), "toy-phi", "localq ls")


def test_damaged_form_is_told_of_and_can_be_removed(tmp_path: Path) -> None:
    models = ("--models-dir", str(tmp_path))
    (made,) = data(localq("convert", "toy-llama", "--to", "gguf-q8_0", "--json", *models))
    Path(made["path"]).write_bytes(b"short")
    listed = localq("ls", *models)
    assert listed.stdout == "" and "damaged" in listed.stderr
    assert_fails(localq("generate", "toy-llama:gguf-q8_0", QUESTION, *models), "--force")
    assert "removed toy-llama:gguf-q8_0" in localq("rm", "toy-llama:gguf-q8_0", *models).stdout
    assert not list(tmp_path.glob("toy-llama*"))


def test_generate_json_has_the_keys_of_the_contract() -> None:
    record = data(localq("generate", "toy-phi:gguf-q4_k_m", QUESTION, "--json"))
    assert set(record) == {
        *("model", "recipe", "text", "finish_reason", "prompt_token_ids", "generated_token_ids", "prompt_tokens"),
        *("cached_prompt_tokens", "generated_tokens", "prompt_seconds", "decode_seconds", "peak_memory_bytes"),
        *("time_to_first_token_seconds", "prompt_tokens_per_second", "generated_tokens_per_second", "load_seconds"),
    }
    assert record["finish_reason"] == "stop"
    assert record["prompt_tokens"] == len(record["prompt_token_ids"])
    assert record["generated_tokens"] == len(record["generated_token_ids"])
    assert record["peak_memory_bytes"] > 10_000_000


@pytest.mark.parametrize("form", ["mlx-4bit", "gguf-q4_k_m"])
def test_logprobs_are_told_of_every_token(form: str) -> None:
    record = data(localq("generate", f"toy-llama:{form}", QUESTION, "--json", "--logprobs", "2"))
    assert [token["token_id"] for token in record["logprobs"]] == record["generated_token_ids"]
    assert "".join(token["text"] for token in record["logprobs"]).strip() == ANSWER
    for token in record["logprobs"]:
        assert len(token["top"]) == 2
        # The default is greedy.
        assert token["top"][0] == {key: token[key] for key in ("token_id", "text", "logprob")}


@pytest.mark.parametrize("form", ["mlx-4bit", "gguf-q4_k_m"])
@pytest.mark.parametrize("spelling", ["{}=-inf", "{}-inf", "{}-500", "{}=-1e2"])
def test_a_bias_bans_a_token(form: str, spelling: str) -> None:
    ask = ("generate", f"toy-llama:{form}", QUESTION, "--json", "-n", "3")
    first = data(localq(*ask))["generated_token_ids"][0]
    assert first not in data(localq(*ask, "--logit-bias", spelling.format(first)))["generated_token_ids"]


def test_penalties_change_a_reply() -> None:
    ask = ("generate", "toy-llama:gguf-q4_k_m", QUESTION)
    for flag in ("--presence-penalty", "--frequency-penalty"):
        assert localq(*ask, flag, "0").stdout == ANSWER + "\n" != localq(*ask, flag, "50").stdout


@pytest.mark.parametrize("form", ["mlx-4bit", "gguf-q4_k_m"])
def test_a_prompt_is_kept_on_disk_and_taken_up_by_a_later_run(form: str, tmp_path: Path) -> None:
    file = tmp_path / "prompt.cache"
    ask = ("generate", f"toy-llama:{form}", QUESTION, "--json", "--prompt-cache", str(file))
    first, second = data(localq(*ask)), data(localq(*ask))
    assert first["cached_prompt_tokens"] == 0
    assert second["cached_prompt_tokens"] == second["prompt_tokens"] - 1
    assert first["text"] == second["text"] == ANSWER
    other = "toy-llama:gguf-q8_0" if form.startswith("gguf") else "toy-phi:mlx-4bit"
    kept = file.read_bytes()
    assert_fails(localq("generate", other, QUESTION, "--prompt-cache", str(file)), str(file), "another")
    file.write_bytes(kept[:-1])
    assert_fails(localq(*ask), str(file), "damaged")
    file.write_text("mine")
    assert_fails(localq(*ask), str(file), "not a prompt cache")
    assert file.read_text() == "mine"


def test_a_gguf_file_named_itself_keeps_its_prompt_until_it_changes(tmp_path: Path) -> None:
    (made,) = data(localq("convert", "toy-llama", "--to", "gguf-q4_k_m", "--json"))
    model, file = tmp_path / "model.gguf", tmp_path / "prompt.cache"
    shutil.copy(made["path"], model)
    ask = ("generate", str(model), QUESTION, "--json", "--prompt-cache", str(file))
    assert [data(localq(*ask))["cached_prompt_tokens"] > 0 for _ in range(2)] == [False, True]
    os.utime(model, (1, 1))
    assert_fails(localq(*ask), str(file), "another model")


def test_keys_and_values_may_be_kept_smaller(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "heads-of-64", "llama-3")
    for form in ("mlx-4bit", "gguf-q8_0"):
        ask = ("generate", f"{folder}:{form}", "hi", "--json", "-n", "4", "--logprobs", "0")
        full, small = (data(localq(*ask, *more))["logprobs"] for more in ((), ("--kv-cache-type", "q8_0")))
        assert full[0]["logprob"] != small[0]["logprob"]
        assert full[0]["logprob"] == pytest.approx(small[0]["logprob"], abs=0.05)


@pytest.mark.parametrize("toy", ["toy-llama", "toy-phi"])
def test_both_formats_see_the_same_prompt_tokens(toy: str) -> None:
    records = [data(localq("generate", f"{toy}:{form}", QUESTION, "--json")) for form in ("mlx-4bit", "gguf-q4_k_m")]
    assert records[0]["prompt_token_ids"] == records[1]["prompt_token_ids"]
    assert records[0]["text"] == records[1]["text"] == ANSWER


def test_max_tokens_cuts_and_says_so() -> None:
    record = data(localq("generate", "toy-llama:gguf-q4_k_m", QUESTION, "-n", "2", "--json"))
    assert record["finish_reason"] == "length"
    assert record["generated_tokens"] == 2


def test_stop_string_ends_the_reply_and_is_not_shown() -> None:
    result = localq("generate", "toy-llama:mlx-4bit", QUESTION, "--stop", "France", "--stop", "nowhere")
    assert result.stdout == "The capital of \n"


def test_piped_text_goes_before_the_prompt() -> None:
    ids = [
        data(localq("generate", "toy-llama:gguf-q4_k_m", "--json", "-n", "1", *argument, stdin=stdin))[
            "prompt_token_ids"
        ]
        for argument, stdin in ((["b"], "a\n"), ([], "a\n\nb"), (["a\n\nb"], ""))
    ]
    assert ids[0] == ids[1] == ids[2]


def test_raw_continues_plain_text_and_knows_no_system_message() -> None:
    raw = data(localq("generate", "toy-phi:gguf-q4_k_m", "Once", "--raw", "-n", "3", "--json"))
    chat = data(localq("generate", "toy-phi:gguf-q4_k_m", "Once", "-n", "3", "--json"))
    assert raw["prompt_tokens"] < chat["prompt_tokens"]
    assert_fails(localq("generate", "toy-phi:gguf-q4_k_m", "Once", "--raw", "--system", "x"), "--system", "--raw")


def test_files_go_between_piped_text_and_the_prompt(tmp_path: Path) -> None:
    for name, text in (("a.txt", "one\n"), ("b.txt", "two\n\n")):
        (tmp_path / name).write_text(text)
    files = ("-f", str(tmp_path / "a.txt"), "-f", str(tmp_path / "b.txt"))
    command = ("generate", "toy-llama:gguf-q4_k_m", "-n", "1", "--json")
    asked = data(localq(*command, *files, "three", stdin="zero\n"))["prompt_token_ids"]
    assert asked == data(localq(*command, "zero\n\none\n\ntwo\n\nthree"))["prompt_token_ids"]
    alone = data(localq(*command, "--raw", "-f", str(tmp_path / "a.txt")))["prompt_token_ids"]
    assert alone == data(localq(*command, "--raw", "one\n"))["prompt_token_ids"]


def test_checkpoint_folder_is_found_again_by_the_name_that_ls_shows(tmp_path: Path) -> None:
    models = ("--models-dir", str(tmp_path / "models"))
    folder = write_checkpoint(tmp_path / "my-model", "phi-4")
    localq("convert", str(folder), "--to", "gguf-q8_0", *models)
    (listed,) = data(localq("ls", "--json", *models))
    assert listed["model"] == "local/my-model"
    result = localq("generate", "local/my-model:gguf-q8_0", "hi", "-n", "1", *models)
    assert result.exit_code == 0, result.stderr


def test_gguf_file_and_mlx_folder_can_be_named_themselves() -> None:
    made = data(localq("convert", "toy-llama", "--json"))
    for item in made:
        result = localq("generate", item["path"], QUESTION)
        assert result.stdout == ANSWER + "\n", result.stderr


def test_ctrl_c_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("localq.conversion.convert.make_forms", interrupted)
    assert localq("convert", "toy-llama").exit_code == 130


def test_reader_that_has_enough_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    command = f"{sys.executable} -m localq ls --json | head -c 1"
    for _ in range(3):
        ran = subprocess.run(command, shell=True, capture_output=True, check=True)
        assert ran.stderr == b""


def test_reader_that_has_enough_of_an_answer_ends_it() -> None:
    localq("convert", "toy-llama", "--to", "gguf-q4_k_m")
    command = f"{sys.executable} -m localq generate toy-llama:gguf-q4_k_m Once --raw -n 200 | head -c 1"
    ran = subprocess.run(command, shell=True, capture_output=True, check=True, stdin=subprocess.DEVNULL, timeout=60)
    assert (len(ran.stdout), ran.stderr) == (1, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["recipes"], b"error: can't write to standard output: No space left on device\n"),
        (
            ["ls", "--json"],
            b'{"error": "can\'t write to standard output: No space left on device", "hint": "", "code": 1}\n',
        ),
        (
            ["generate", "toy-llama:gguf-q4_k_m", "Once", "-n", "2"],
            b"error: can't write to standard output: No space left on device\n",
        ),
    ],
)
def test_a_full_disk_behind_stdout_is_an_error_in_one_line(arguments: list[str], said: bytes) -> None:
    with Path("/dev/full").open("wb") as full:
        command = [sys.executable, "-m", "localq", *arguments]
        ran = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    assert (ran.returncode, ran.stderr) == (1, said)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="this system has no SIGHUP")
def test_a_closed_terminal_is_ignored_where_the_caller_says_so() -> None:
    """As `nohup` does."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from localq.cli.main import main\n"
        "try: main(['--version'])\n"
        "finally: print(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN, callable(signal.getsignal(signal.SIGTERM)))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "True True"


def test_raw_text_reaches_the_model_with_its_last_line_end() -> None:
    arguments = ("generate", "toy-llama:gguf-q4_k_m", "--raw", "-n", "1", "--json")
    with_end, without = (data(localq(*arguments, stdin=text))["prompt_token_ids"] for text in ("Once\n", "Once"))
    assert with_end[: len(without)] == without and len(with_end) > len(without)


def test_demo_converts_asks_and_compares_in_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    from localq.demo.questions import read_questions

    questions = read_questions()[:3]
    monkeypatch.setattr("localq.demo.questions.read_questions", lambda: questions)
    result = localq("demo")
    assert result.exit_code == 0
    table = result.stdout.splitlines()[-4:]
    assert [f"{line.split()[0]}:{line.split()[1]}" for line in table] == FORMS
    assert all(line.endswith(" 3/3") for line in table)
    assert result.stdout.count(ANSWER) == 4
    assert max(map(len, result.stdout.splitlines())) <= 80
