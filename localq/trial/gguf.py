"""Whether llama.cpp can open a GGUF file without ending the process: tried once, in another process.

llama.cpp ends its process on some damaged files. One that localq writes is never tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from localq.disk import reason
from localq.errors import CheckpointError, ModelFileError
from localq.trial import verdicts
from localq.trial.gguf_header import check_header
from localq.trial.process import HINT, Trial

_LIBRARY = "llama_cpp"


def require_openable(parts: Sequence[Path]) -> None:
    """Raise ModelFileError for a file, given with all its parts, that would end or block the process.

    Whatever else is wrong with it is found where it is opened. Raises CheckpointError for what is no regular file.
    """

    def tried() -> str:
        for part in parts:
            check_header(part)
        file_bytes = sum(part.stat().st_size for part in parts)
        return Trial(parts[0], "llama.cpp", "localq.trial.gguf_child", [*map(str, parts)], file_bytes).run()

    try:
        found = verdicts.verdict(_LIBRARY, parts, tried)
    except OSError as error:
        raise CheckpointError(f"{parts[0]} can't be read: {reason(error)}", HINT) from error
    if found != verdicts.GOOD:
        raise ModelFileError(f"{parts[0]} can't be opened: llama.cpp ends the process with {found}", HINT)


def trust(file: Path) -> None:
    """Note that localq wrote a file, which need not be tried: if its header, which is partly a stranger's, is sound."""
    with suppress(ModelFileError, OSError):
        check_header(file)
        verdicts.trust(_LIBRARY, [file])
