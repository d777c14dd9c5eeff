"""Ctrl-C while a verb starts and ends: status 130, and never a traceback."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MODULE, _, FUNCTION = PROJECT["scripts"]["localq"].partition(":")

COMMANDS = {
    "python -m localq": "import runpy; runpy.run_module('localq', run_name='__main__', alter_sys=True)",
    "localq": f"from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())",
}

INTERRUPTS = """
import atexit, os, signal, sys

def interrupt():
    os.kill(os.getpid(), signal.SIGINT)

class CountsImports:
    left = int(sys.argv.pop(1))
    def find_spec(self, name, path=None, target=None):
        CountsImports.left -= name == "localq.cli" or "localq.cli" in sys.modules
        if CountsImports.left == 0:
            CountsImports.left = -1
            interrupt()

if CountsImports.left:
    sys.meta_path.insert(0, CountsImports())
else:
    atexit.register(interrupt)
"""


@pytest.mark.parametrize("arguments", [["--help"], ["ls", "--json"]], ids=" ".join)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("when", ["at its 1st import", *(f"at its {n}th import" for n in (20, 50, 80)), "at its end"])
def test_ctrl_c_while_a_verb_starts_or_ends_shows_no_traceback(when: str, command: str, arguments: list[str]) -> None:
    number = "".join(filter(str.isdecimal, when)) or "0"
    program = [sys.executable, "-c", INTERRUPTS + COMMANDS[command], number, *arguments]
    ran = subprocess.run(program, capture_output=True, text=True, check=False, timeout=60)
    assert (ran.returncode, ran.stderr.strip()) == (130, "")
