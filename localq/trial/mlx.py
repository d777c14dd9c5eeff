"""Whether MLX can build the network of a folder without ending the process: tried once, in another process.

MLX divides by zero for some sizes in config.json. No weights are read: it checks shapes before it computes. A folder
that localq writes is never tried.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from localq.disk import reason
from localq.errors import CheckpointError, ModelFileError
from localq.regular_files import is_there
from localq.trial import verdicts
from localq.trial.process import HINT, Trial

_LIBRARY = "mlx_lm"


def require_openable(folder: Path) -> None:
    """Raise ModelFileError for an MLX folder that would end or block the process.

    Whatever else is wrong with it is found where it is opened. Raises CheckpointError for what is no regular file.
    """

    def tried() -> str:
        return Trial(folder, "MLX", "localq.trial.mlx_child", [str(folder)], file_bytes=0).run()

    if not is_there(folder / "config.json"):
        return
    try:
        found = verdicts.verdict(_LIBRARY, _files(folder), tried)
    except OSError as error:
        raise CheckpointError(f"{folder} can't be read: {error.filename}: {reason(error)}", HINT) from error
    if found != verdicts.GOOD:
        raise ModelFileError(f"{folder} can't be opened: MLX ends the process with {found}", HINT)


def trust(folder: Path) -> None:
    """Note that localq wrote a folder, which need not be tried. Does nothing where that can't be noted."""
    with suppress(OSError):
        verdicts.trust(_LIBRARY, _files(folder))


def _files(folder: Path) -> list[Path]:
    """What the network and its shapes follow from."""
    return [folder / "config.json", *sorted(folder.glob("model*.safetensors"))]
