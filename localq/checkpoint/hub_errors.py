"""What went wrong between localq and the hub, said in localq's errors.

Knows the sentences and what helps; not the client that failed: `localq.checkpoint.hub` classifies its errors.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from localq.errors import DownloadError, LocalqError, ModelNotFoundError

FailureKind = Literal[
    "offline", "unreachable", "server", "gated", "no repository", "no revision", "bad token", "disk", "other"
]


@dataclass(frozen=True, slots=True)
class Failure:
    """One failed exchange with the hub, or one failed write of what it sent."""

    kind: FailureKind
    repo: str
    revision: str
    endpoint: str
    """Where the hub is, such as `https://huggingface.co`."""
    cache: Path
    """The folder that downloads go to."""
    has_token: bool
    detail: str
    """The first line of what the client, the hub or the operating system said."""

    @property
    def is_outage(self) -> bool:
        """Whether nothing was learned about the repository, so that a copy in the cache is as good as any."""
        return self.kind in ("offline", "unreachable", "server")


def as_localq_error(failure: Failure) -> LocalqError:
    """The error to raise: ModelNotFoundError for a missing repository or revision, else DownloadError."""
    return _EXPLANATIONS[failure.kind](failure)


def _offline(failure: Failure) -> LocalqError:
    # transformers' variable of the same meaning is honoured by the client as well.
    variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
    return DownloadError(
        f"{variable} is set, and {failure.repo}@{failure.revision} is not complete in {failure.cache}",
        f"unset it and run `localq pull {failure.repo}`",
        missing_model=failure.repo,
    )


def _unreachable(failure: Failure) -> LocalqError:
    return DownloadError(
        f"no connection to {failure.endpoint} for {failure.repo}: {failure.detail}",
        "check the network, a proxy and HF_ENDPOINT, then run it again: finished files are kept",
    )


def _server(failure: Failure) -> LocalqError:
    return DownloadError(
        f"{failure.endpoint} could not serve {failure.repo}: {failure.detail}",
        "try again later: finished files are kept",
    )


def _gated(failure: Failure) -> LocalqError:
    page = f"{failure.endpoint}/{failure.repo}"
    if failure.has_token:
        return DownloadError(
            f"{failure.repo} is gated, and your token's account may not read it",
            f"accept the licence at {page} with that account (some owners answer requests by hand)",
        )
    return DownloadError(
        f"{failure.repo} is gated: its licence has to be accepted first",
        f"accept it at {page}, then `hf auth login` or set HF_TOKEN",
    )


def _no_repository(failure: Failure) -> LocalqError:
    if failure.has_token:
        return ModelNotFoundError(
            f"{failure.endpoint} has no repository {failure.repo} that your token may read",
            "check the spelling, and that the token's account has access to it",
            missing_model=failure.repo,
        )
    return ModelNotFoundError(
        f"{failure.endpoint} has no public repository {failure.repo}",
        "check the spelling; for a private one `hf auth login` or set HF_TOKEN",
        missing_model=failure.repo,
    )


def _no_revision(failure: Failure) -> LocalqError:
    return ModelNotFoundError(
        f"{failure.repo} has no revision {failure.revision!r}",
        f"its branches and tags are at {failure.endpoint}/{failure.repo}/tree/main",
    )


def _bad_token(failure: Failure) -> LocalqError:
    return DownloadError(
        f"{failure.endpoint} refuses your token: {failure.detail}",
        "`hf auth login` for a new one, or correct or unset HF_TOKEN",
    )


def _disk(failure: Failure) -> LocalqError:
    return DownloadError(
        f"{failure.repo} can't be written to {failure.cache}: {failure.detail}",
        "make room or mend the permissions there, or point HF_HOME to another disk",
    )


def _other(failure: Failure) -> LocalqError:
    return DownloadError(
        f"{failure.repo} could not be downloaded from {failure.endpoint}: {failure.detail}",
        "run it again: finished files are kept; LOCALQ_DEBUG=1 shows the cause",
    )


_EXPLANATIONS: dict[FailureKind, Callable[[Failure], LocalqError]] = {
    "offline": _offline,
    "unreachable": _unreachable,
    "server": _server,
    "gated": _gated,
    "no repository": _no_repository,
    "no revision": _no_revision,
    "bad token": _bad_token,
    "disk": _disk,
    "other": _other,
}
