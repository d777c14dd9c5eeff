"""A child process that works on and hears no SIGTERM."""

from __future__ import annotations

import signal


def main(most_seconds: str) -> None:
    """Never return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.alarm(int(most_seconds))
    while True:
        pass
