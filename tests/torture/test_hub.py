"""A quick part of the pulls from a hub that breaks, lies and throttles."""

from __future__ import annotations

from pathlib import Path

from tests.torture.hub import run


def test_a_pull_ends_with_right_bytes_or_an_error_that_names_the_file(tmp_path: Path) -> None:
    result = run(10, 5, tmp_path)
    assert result.wrong == []
    assert result.ends["right bytes"] and result.ends["error"] and result.ends["interrupted"]
