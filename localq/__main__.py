"""The commands `localq` and `python -m localq`: Ctrl-C ends them without a traceback from their first imports on."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Run a verb. While it starts and while it ends, Ctrl-C ends the process at once: there is nothing to clean up."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _exit)  # an exception during an import can get lost or become another one

    from localq.cli.main import main as run_verb

    run_verb()


def _exit(_number: int, _frame: object) -> None:
    os._exit(130)


if __name__ == "__main__":
    main()
