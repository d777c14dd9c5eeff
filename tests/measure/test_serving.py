from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from localq.errors import OptionError
from localq.measure.serving import answer

_CHECKOUT = Path(__file__).parents[2]
_WORKER = """
import os
from localq.errors import OptionError
from localq.measure.serving import serve

def fail(what):
    raise OptionError(f"no {what}", "take another")

def shout():
    os.write(1, b"a library writes this")
    return {}

serve({"double": lambda number: {"number": 2 * number}, "fail": fail, "shout": shout})
"""


def fail(what: str) -> dict[str, Any]:
    raise OptionError(f"no {what}", "take another")


def test_a_request_gets_the_answer_of_its_command() -> None:
    commands = {"double": lambda number: {"number": 2 * number}, "fail": fail}
    assert answer(commands, {"command": "double", "number": 4}) == {"number": 8}
    assert answer(commands, {"command": "fail", "what": "luck"}) == {"error": "no luck", "hint": "take another"}
    with pytest.raises(KeyError, match="nothing"):
        answer(commands, {"command": "nothing"})


def test_answers_are_lines_that_no_library_disturbs() -> None:
    requests = [{"command": "double", "number": 4}, {"command": "shout"}, {"command": "fail", "what": "luck"}]
    ran = subprocess.run(
        [sys.executable, "-c", _WORKER],
        input="".join(json.dumps(request) + "\n" for request in requests),
        capture_output=True,
        text=True,
        check=True,
        cwd=_CHECKOUT,
    )
    assert [json.loads(line) for line in ran.stdout.splitlines()] == [
        {"number": 8},
        {},
        {"error": "no luck", "hint": "take another"},
    ]
    assert ran.stderr == "a library writes this"
