"""Every error that localq raises on purpose.

    LocalqError                     message (what failed, with the value) and hint (what helps)
      ModelReferenceError           a model reference that can't be read
      OptionError                   an option value out of range (also a ValueError)
      UnknownRecipeError            no such format, or several; carries the nearest names
      ModelNotFoundError            nothing under that name: no folder, no file, no repository
      DownloadError                 the hub refused, or could not be reached
      CheckpointError               a checkpoint folder with a fault: missing, truncated, inconsistent
        UnsupportedModelError       an architecture that localq does not convert
      ConversionError               a conversion that could not be finished
      CalibrationError              calibration that is missing, damaged, or of another model
      StoreError                    the models folder: can't be written, no room, damaged artifact
      BackendUnavailableError       the platform has no engine for this format
      ChatTemplateError             no chat template, or one that can't be rendered
      PromptTooLongError            prompt_tokens and context_length attached
      UnsupportedOptionError        an option that this engine does not have
      EngineError                   the engine failed while loading or generating
        NotEnoughMemoryError        a model that does not fit in the free memory
      ModelFileError                a file that would end or block the process that opens it

Foreign errors are translated where the foreign library is called, with `raise ... from`. They are shown
in one place, `localq.cli.main`: message and hint on stderr, exit 1. What a message quotes may come from a stranger's
file: control characters in it are escaped here, and `shown` cuts a name.
"""

from __future__ import annotations

import re

_MOST_NAME_CHARACTERS, _MOST_CHARACTERS = 80, 4000
_NOT_SHOWN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, except tab and newline: a terminal obeys them. Those that turn the order of text round, too."""

_NO_CHARACTER = re.compile("[\ud800-\udfff]")
"""Halves of characters, which can't be written as UTF-8."""


def shown(text: object, most_characters: int = _MOST_NAME_CHARACTERS) -> str:
    """A name or text from a file for people: escaped, and cut in the middle where it is longer."""
    found = _escaped(str(text)).replace("\n", "\\n")
    return _cut(_NO_CHARACTER.sub(lambda match: ascii(match[0])[1:-1], found), most_characters)


def _escaped(text: str) -> str:
    return _NOT_SHOWN.sub(lambda match: ascii(match[0])[1:-1], text)


def _cut(text: str, most_characters: int) -> str:
    if len(text) <= most_characters:
        return text
    half = most_characters // 2
    return f"{text[:half]}... ({len(text):,} characters) ...{text[-half:]}"


class LocalqError(Exception):
    """What failed, with the value (`message`), and what the user can do about it (`hint`, may be empty).

    `missing_model` is the name of a model where the failure is that there is none of that name; else empty.
    """

    def __init__(self, message: str, hint: str = "", *, missing_model: str = "") -> None:
        message = _cut(_escaped(message), _MOST_CHARACTERS)
        super().__init__(message)
        self.message = message
        self.hint = _cut(_escaped(hint), _MOST_CHARACTERS)
        self.missing_model = missing_model


class ModelReferenceError(LocalqError):
    """A model reference that can't be read."""


class OptionError(LocalqError, ValueError):
    """An option value out of its range."""


class UnknownRecipeError(LocalqError, ValueError):
    """No format of that name, or several that it can mean."""

    def __init__(self, name: str, nearest: list[str], message: str) -> None:
        self.name = name
        self.nearest = nearest
        meant = f"did you mean {' or '.join(nearest)}? " if nearest else ""
        super().__init__(message, f"{meant}`localq recipes` lists all formats")


class ModelNotFoundError(LocalqError):
    """Nothing under that name: no folder, no file, no repository."""


class DownloadError(LocalqError):
    """The hub refused a download, or could not be reached."""


class CheckpointError(LocalqError):
    """A checkpoint folder with a fault; the message names the file or tensor."""


class UnsupportedModelError(CheckpointError):
    """An architecture that localq does not convert."""


class ConversionError(LocalqError):
    """A conversion that could not be finished."""


class CalibrationError(LocalqError):
    """Calibration of a model (an importance matrix, for one) that is missing, damaged, or of another model."""


class StoreError(LocalqError):
    """The models folder can't be used: not writable, no room, or a damaged artifact."""


class BackendUnavailableError(LocalqError):
    """This platform has no engine for this format."""


class ChatTemplateError(LocalqError):
    """No chat template, or one that can't be rendered with these messages."""


class PromptTooLongError(LocalqError):
    """The prompt leaves no room for an answer in the context."""

    def __init__(self, prompt_tokens: int, context_length: int, hint: str = "") -> None:
        self.prompt_tokens = prompt_tokens
        self.context_length = context_length
        super().__init__(
            f"the prompt has {prompt_tokens} tokens; the context holds {context_length}, one of them for the answer",
            hint or "shorten the prompt, or give a larger context with -c/--context-length if the model has one",
        )


class UnsupportedOptionError(LocalqError):
    """An option that this engine does not have."""


class EngineError(LocalqError):
    """The engine failed while it loaded a model or generated."""


class NotEnoughMemoryError(EngineError):
    """A model that does not fit in the free memory."""


class ModelFileError(LocalqError):
    """A model's file that would end or block the process that opens it, as a trial in another process showed."""
