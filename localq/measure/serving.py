"""The loop of a worker process: a request per line on standard input, an answer per line on standard output.

Both are JSON objects; `localq.measure.process` is the other end. The loop ends when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

from localq.errors import LocalqError

Commands = Mapping[str, Callable[..., dict[str, Any]]]
"""What a worker can be asked for, by name: functions of a request's arguments that give the answer."""


def answer(commands: Commands, request: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to one request; for an error of localq its `error` and `hint`."""
    arguments = dict(request)
    command = commands[arguments.pop("command")]
    try:
        return command(**arguments)
    except LocalqError as error:
        return {"error": error.message, "hint": error.hint}


def serve(commands: Commands) -> None:
    """Answer until the input ends."""
    # Whatever a library writes to standard output goes to standard error: the answers' way is theirs alone.
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin:
            answers.write(json.dumps(answer(commands, json.loads(line))) + "\n")
            answers.flush()
