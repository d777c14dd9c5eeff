"""A quick part of the long tests; the numbers in README.md are of the long ones."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests.torture.headers", "--count", "14", "--flips", "14", "--jobs", "2"],
        ["tests.torture.folders", "--count", "14", "--most-seconds", "60"],
    ],
    ids=["headers", "folders"],
)
def test_nothing_ends_or_blocks_the_process_that_asks(arguments: list[str], tmp_path: Path) -> None:
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}
    found = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert found.returncode == 0, found.stdout + found.stderr
