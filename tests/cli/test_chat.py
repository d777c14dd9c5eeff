"""`localq chat` through pipes: what it answers, keeps and says; exit status, stdout and stderr."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from localq import convert
from localq.cli.main import app
from localq.transcript import conversations_folder, list_records

QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."
ITALY, ROME = "What is the capital of Italy?", "The capital of Italy is Rome."
TOY = "toy-llama:gguf-q4_k_m"


@pytest.fixture(autouse=True)
def _data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def chat(*arguments: str, lines: str = "") -> Result:
    result = CliRunner().invoke(app, ["chat", *arguments], input=lines)
    assert "Traceback" not in result.stderr
    return result


def events() -> list[dict[str, Any]]:
    (file,) = conversations_folder().glob("*.jsonl")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_chat_remembers_clears_and_leaves() -> None:
    lines = f"/help\n{QUESTION}\n{ITALY}\n/stats\n/clear\n/what\n{QUESTION}\n/exit\nnever asked\n"
    result = chat(TOY, lines=lines)
    assert result.exit_code == 0
    assert result.stdout == f"{ANSWER}\n{ROME}\n{ANSWER}\n"
    assert "/clear" in result.stderr and "from the cache" in result.stderr
    assert "there is no command /what" in result.stderr


def test_chat_takes_back_and_repeats_the_last_question() -> None:
    result = chat(TOY, lines=f"/retry\n/undo\n{QUESTION}\n/retry\n/stats\n/undo\n/retry\n{ITALY}\n/stats\n")
    assert result.exit_code == 0
    assert result.stdout == f"{ANSWER}\n{ANSWER}\n{ROME}\n"
    assert f"(removed: {QUESTION})" in result.stderr and "temperature 0" in result.stderr
    again, alone = re.findall(r"(\d+) prompt tokens", result.stderr)
    assert int(again) == int(alone)  # nothing of the question that was taken back
    assert f"({int(again) - 1} from the cache)" in result.stderr


def test_chat_ends_with_its_input() -> None:
    result = chat("toy-phi:mlx-4bit", lines=QUESTION + "\n")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")


def test_a_question_that_is_too_long_is_told_and_the_chat_goes_on() -> None:
    result = chat("toy-phi:gguf-q4_k_m", lines=f"{'word ' * 300}\n{QUESTION}\n")
    assert result.exit_code == 0
    assert "context holds 256" in result.stderr and "ask a shorter question" in result.stderr
    assert result.stdout == ANSWER + "\n"


def test_a_message_of_several_lines_stands_between_quotes() -> None:
    result = chat(TOY, lines=f'"""What is the capital\nof France?"""\n"""\n{ITALY}\n"""\n')
    assert result.exit_code == 0
    questions = [event["messages"][0]["content"] for event in events() if event["type"] == "turn"]
    assert questions == ["What is the capital\nof France?", ITALY]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("/sytem", ["no command /sytem", "did you mean /system?"]),
        ("/set temp", ["/set temp has no value"]),
        ("/set tmp 1", ["no option 'tmp'", "did you mean temp?"]),
        ("/set temp hot", ["temp is 'hot'; expected a number"]),
        ("/set top-p 7", ["top_p is 7.0"]),
        ("/set max-tokens 1.5", ["expected a whole number"]),
        ("/format gguf-q8_00", ["unknown format 'gguf-q8_00'", "did you mean gguf-q8_0"]),
        ("/format", ["/format needs a format"]),
        ("/continue", ["no question yet"]),
        ("/compare", ["no question yet"]),
        ("/copy", ["no reply to copy"]),
        ("/read /does/not/exist", ["can't read /does/not/exist: No such file"]),
        ("/load nothing", ["no conversation begins with 'nothing'"]),
        ("/model toy-lama", ["toy-lama", "did you mean toy-llama?"]),
        ("/clear all", ["/clear takes no value"]),
        ("/save /does/not/exist/talk.md", ["can't write /does/not/exist/talk.md"]),
    ],
)
def test_a_wrong_command_is_named_and_costs_nothing(line: str, words: list[str]) -> None:
    result = chat(TOY, lines=f"{line}\n{QUESTION}\n")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    for word in words:
        assert word in result.stderr


def test_commands_tell_what_is_set_and_where_things_are(tmp_path: Path) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("some notes")
    lines = f"/set temp 0.5\n/set\n/system Be brief.\n/system\n/show\n/read {notes}\n{QUESTION}\n/tokens\n/model\n"
    result = chat(TOY, "--seed", "1", lines=lines)
    assert result.exit_code == 0
    for words in ("temp               0.5  *", "seed               1  *", "\nBe brief.\n", "1,024 tokens", TOY):
        assert words in result.stderr
    assert re.search(r"\d+ of 1,024 tokens of the context are used", result.stderr)
    (turn,) = (event for event in events() if event["type"] == "turn")
    assert turn["messages"][0]["content"] == f"some notes\n\n{QUESTION}"
    assert turn["options"] == {"temperature": 0.5, "seed": 1}


def test_a_conversation_goes_on_another_day(tmp_path: Path) -> None:
    chat(TOY, "--system", "Be brief.", lines=f"{QUESTION}\n")
    (record,) = list_records()
    assert (record.model, record.format, record.system) == ("toy-llama", "gguf-q4_k_m", "Be brief.")
    listed = chat("--list")
    assert record.id in listed.stdout and QUESTION in listed.stdout and TOY in listed.stdout
    resumed = chat("--resume", lines=f"{ITALY}\n/save {tmp_path / 'talk.md'}\n")
    assert resumed.stdout == ROME + "\n"
    text = (tmp_path / "talk.md").read_text(encoding="utf-8")
    assert text.index(QUESTION) < text.index(ANSWER) < text.index(ITALY) < text.index(ROME)
    again = chat("toy-llama:mlx-4bit", "--resume", record.id[:12], lines="/undo\n/undo\n/undo\n")
    assert again.stderr.count("(removed:") == 2
    assert [event["type"] for event in events()] == ["conversation", "turn", "turn", "undo", "undo"]


def test_nothing_is_kept_where_that_is_not_wanted() -> None:
    chat(TOY, "--no-save", lines=f"{QUESTION}\n")
    assert not conversations_folder().exists()
    result = chat("--list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "no conversation is kept" in result.stderr
    assert chat("--resume").exit_code == 1


def test_the_format_changes_in_mid_chat_and_the_question_is_asked_again() -> None:
    result = chat(TOY, lines=f"{QUESTION}\n/format mlx\n/retry\n{ITALY}\n")
    assert result.stdout == f"{ANSWER}\n{ANSWER}\n{ROME}\n"
    formats = [event.get("format") for event in events()]
    assert formats == ["gguf-q4_k_m", "gguf-q4_k_m", None, "mlx-4bit", "mlx-4bit"]


def test_two_formats_answer_and_one_reply_is_kept() -> None:
    result = chat(TOY, lines=f"{QUESTION}\n/compare\n2\n/show\n")
    assert result.stdout == f"{ANSWER}\n" * 3
    assert "--- gguf-q4_k_m ---" in result.stderr and "--- mlx-4bit ---" in result.stderr
    assert result.stderr.count("t/s") == 4
    assert [event["type"] for event in events()] == ["conversation", "turn", "undo", "turn"]
    assert events()[-1]["format"] == "mlx-4bit"
    assert "format    mlx-4bit" in result.stderr


def test_a_comparison_that_keeps_nothing_changes_nothing() -> None:
    chat(TOY, lines=f"{QUESTION}\n/compare gguf-q8_0\n\n")
    assert [event["type"] for event in events()] == ["conversation", "turn"]


def test_a_reply_that_was_cut_goes_on() -> None:
    result = chat(TOY, "-n", "3", lines=f"{QUESTION}\n/continue\n/set max-tokens 100\n/continue\n/continue\n")
    assert result.stdout.replace("\n", "") == ANSWER
    assert result.stderr.count("/continue goes on") == 2
    assert "the last reply is complete" in result.stderr
    assert events()[-1]["messages"][1]["content"] == ANSWER


def test_raw_text_goes_on_without_a_template() -> None:
    result = chat(TOY, "--raw", "-n", "4", lines="The capital of\n")
    assert result.exit_code == 0 and result.stdout.strip()
    assert chat(TOY, "--raw", "--system", "x").exit_code == 1


def test_files_and_stop_strings_and_statistics(tmp_path: Path) -> None:
    file = tmp_path / "question.txt"
    file.write_text("Please answer.")
    result = chat(TOY, "-f", str(file), "--stop", "France", "--stats", lines=f"{QUESTION}\n")
    assert "generated at" in result.stderr
    assert "France" not in result.stdout
    assert events()[1]["messages"][0]["content"].startswith("Please answer.\n\n")
    missing = chat(TOY, "-f", str(tmp_path / "none"))
    assert missing.exit_code == 1 and "can't read" in missing.stderr


def test_the_prompt_cache_is_kept_for_the_next_chat(tmp_path: Path) -> None:
    file = tmp_path / "cache"
    chat(TOY, "--prompt-cache", str(file), lines=f"{QUESTION}\n")
    result = chat(TOY, "--prompt-cache", str(file), "--stats", lines=f"{QUESTION}\n")
    assert "from the cache" in result.stderr


def test_no_model_is_named() -> None:
    result = chat(lines=QUESTION)
    assert result.exit_code == 1 and "no model was given" in result.stderr
    result = chat("toy-lama", lines=QUESTION)
    assert result.exit_code == 1 and "toy-lama" in result.stderr


def gguf_file() -> str:
    return str(convert("toy-llama", ["gguf-q4_k_m"])[0].path.resolve())


def test_a_chat_with_a_file_goes_on_after_a_wrong_format_and_on_another_day(tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere.gguf"
    shutil.copyfile(gguf_file(), copy)
    result = chat(str(copy), lines=f"/format mlx\n/model toy-lama\n{QUESTION}\n")
    assert (result.exit_code, result.stdout) == (0, ANSWER + "\n")
    assert result.stderr.count("error: ") == 2
    resumed = chat("--resume", lines=f"{ITALY}\n/model {TOY}\n{QUESTION}\n")
    assert (resumed.exit_code, resumed.stdout) == (0, f"{ROME}\n{ANSWER}\n")
    copy.unlink()
    assert chat("--resume", lines=f"{ITALY}\n").stdout == ROME + "\n"


def test_a_comparison_that_keeps_the_earlier_reply_keeps_its_format() -> None:
    result = chat(TOY, lines=f"{QUESTION}\n/compare gguf-q8_0\n\n/show\n")
    assert "format    gguf-q4_k_m" in result.stderr


def test_a_long_system_message_is_no_file_name() -> None:
    result = chat(TOY, lines=f"/system {'Be brief. ' * 60}\n{QUESTION}\n")
    assert result.exit_code == 0 and "(system message set)" in result.stderr


def test_raw_text_goes_on_after_it_was_resumed() -> None:
    chat(TOY, "--raw", "-n", "4", lines="The capital of\n")
    resumed = chat("--resume", "--raw", "-n", "4", lines=" and\n/show\n")
    assert resumed.exit_code == 0 and "template  none (raw text)" in resumed.stderr
