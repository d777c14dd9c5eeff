"""`--help` in a terminal of 80 columns: complete sentences, and names of arguments as manuals write them."""

from __future__ import annotations

import re

import pytest
from typer.testing import CliRunner

from localq.cli.main import VERBS as SENTENCES
from localq.cli.main import app, load_verb

VERBS = sorted(SENTENCES)
WORD = r"[A-Z][A-Z@:\[\]]*"
ARGUMENT = rf"(?:{WORD}(?:\.\.\.)?|\[{WORD}(?:\.\.\.)?\])"


def help_of(*verb: str) -> str:
    result = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "80"}, prog_name="localq")
    assert result.exit_code == 0, result.output
    return result.stdout


def without_spaces(text: str) -> str:
    return "".join(text.split())


@pytest.mark.parametrize("verb", [[], *([verb] for verb in VERBS)], ids=" ".join)
def test_help_fits_80_columns_and_cuts_no_sentence(verb: list[str]) -> None:
    text = help_of(*verb)
    assert max(map(len, text.splitlines())) <= 80
    # Three dots after a name in capitals say that it may be repeated; anywhere else they stand for missing words.
    assert re.findall(r".*(?<![A-Z\]])\.\.\..*", text) == []


def test_the_list_of_verbs_has_a_sentence_for_each() -> None:
    commands = help_of().partition("Commands:\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(line.split()[0] for line in commands) == VERBS
    assert [line for line in commands if not re.fullmatch(r"  [a-z]+ +[A-Z].*\.", line)] == []


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_has_the_first_sentence_of_each_verb(verb: str) -> None:
    assert load_verb(verb).get_short_help_str(limit=80) == SENTENCES[verb]


@pytest.mark.parametrize("verb", VERBS)
def test_the_usage_line_names_arguments_as_manuals_do(verb: str) -> None:
    usage = help_of(verb).partition("\n\n")[0]
    assert re.fullmatch(rf"Usage: localq {verb} \[OPTIONS\](?: {ARGUMENT})*", usage), usage


@pytest.mark.parametrize("verb", VERBS)
def test_every_argument_and_option_is_explained(verb: str) -> None:
    command = load_verb(verb)
    text = without_spaces(help_of(verb))  # a line may end at a hyphen
    for parameter in command.params:
        assert parameter.help and parameter.help.endswith("."), parameter.name
        assert without_spaces(parameter.help) in text, parameter.name
        if not getattr(parameter, "is_flag", False):
            assert re.fullmatch(r"[A-Z][A-Z@:=,\[\]]*|\[ID\]", parameter.metavar or ""), parameter.name
