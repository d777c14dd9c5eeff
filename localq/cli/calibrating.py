"""What `localq calibrate` shows while it measures: a bar with the time left on a terminal, single lines elsewhere."""

from __future__ import annotations

from localq.calibrating.calibrate import CalibrationListener
from localq.cli.output import say
from localq.cli.progress import ByteBar, TerminalListener

_PARTS = {
    "text": "letting the model write text of its own",
    "columns": "measuring the importance of the columns",
    "tensors": "measuring the sensitivity of the tensors",
    "types": "measuring the errors of the types",
}


class TerminalCalibrationListener(TerminalListener, CalibrationListener):
    """Prints on stderr what a calibration does."""

    def __init__(self, bar: ByteBar, steps: ByteBar) -> None:
        """`bar` is for a conversion, `steps` for what comes after."""
        super().__init__(bar, tell_reused=False)
        self._steps = steps

    def on_calibration(self, part: str, done_tokens: int, total_tokens: int) -> None:
        """How far it is."""
        self._bar.close()
        self._begin(part, _PARTS[part])
        self._steps.update("calibrating", done_tokens, total_tokens)

    def on_resumed(self, done_tokens: int, total_tokens: int) -> None:
        """It goes on."""
        say(f"going on where it was stopped: {done_tokens / total_tokens:.0%} is measured")
