"""What a failed exchange with the hub means: huggingface_hub's exceptions as localq's errors."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from localq.disk import reason
from localq.errors import DownloadError, LocalqError, ModelNotFoundError

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}
_LONGEST_WAIT_SECONDS = 300


def is_outage(error: Exception) -> bool:
    """Whether nothing was learned about the repository: offline mode, no connection, a hub that can't answer now."""
    from huggingface_hub import errors

    error = _cause(error)
    if isinstance(error, errors.HfHubHTTPError):
        return error.response.status_code >= 500 or error.response.status_code == 429
    # httpx's HTTPError in huggingface_hub 1.x, httpx2's in 2.x
    return isinstance(error, (errors.OfflineModeIsEnabled, errors.HTTPError))  # type: ignore[attr-defined]


def seconds_to_wait(error: Exception, usual_seconds: float, breaks: bool) -> float | None:
    """How long to wait before the same request may succeed, as the hub asks for it; None where that is not worth it.

    `breaks` says whether a broken connection is worth it, and a DownloadError, which stands for a short answer.
    """
    from huggingface_hub import errors

    error = _cause(error)
    if isinstance(error, errors.HfHubHTTPError):
        if error.response.status_code < 500 and error.response.status_code not in (408, 429):
            return None
        seconds = _asked_seconds(error.response.headers)
        return usual_seconds if seconds is None else seconds if seconds <= _LONGEST_WAIT_SECONDS else None
    is_break = isinstance(error, (errors.HTTPError, DownloadError))  # type: ignore[attr-defined]
    return usual_seconds if breaks and is_break and not isinstance(error, errors.OfflineModeIsEnabled) else None


def _asked_seconds(headers: Mapping[str, str]) -> float | None:
    """From `Retry-After`, seconds or a date, else from the time until the quota is new in the hub's `RateLimit`."""
    asked = headers.get("Retry-After", "").strip()
    if asked.isdecimal():
        return float(asked)
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(asked) - datetime.now(UTC)).total_seconds())
    found = re.search(r";\s*t=(\d+)", headers.get("RateLimit", ""))
    return float(found[1]) + 1 if found else None


def as_localq_error(error: Exception, repo: str, revision: str, name: str = "") -> LocalqError:
    """The error to raise: ModelNotFoundError for a missing repository or revision, else DownloadError.

    `name` is that of the file that was to be brought.
    """
    error = _cause(error)
    return _refusal(error, repo, revision) or _failure(error, repo, revision, name)


def _refusal(error: Exception, repo: str, revision: str) -> LocalqError | None:
    """What the hub answered about this repository and this user; None for every other error."""
    from huggingface_hub import constants, errors, get_token

    endpoint, has_token = constants.ENDPOINT, get_token() is not None
    page = f"{endpoint}/{repo}"
    is_unauthorized = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 401
    if isinstance(error, errors.GatedRepoError) and has_token:
        message = f"{repo} is gated, and your token's account may not read it"
        return DownloadError(message, f"accept the licence at {page} with that account; some owners answer by hand")
    if isinstance(error, errors.GatedRepoError):
        message = f"{repo} is gated: you must accept its licence first"
        return DownloadError(message, f"accept it at {page}, then run `hf auth login` or set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        hint = f"{page}/tree/main lists its branches and tags"
        return ModelNotFoundError(f"{repo} has no revision {revision!r}", hint)
    is_missing = isinstance(error, (errors.RepositoryNotFoundError, errors.HFValidationError))
    if is_missing and has_token:
        message = f"{endpoint} has no repository {repo} that your token may read"
        hint = "check the spelling, and that the token's account has access to it"
        return ModelNotFoundError(message, hint, missing_model=repo)
    if is_missing or (is_unauthorized and not has_token):  # which a private repository answers as well
        message = f"{endpoint} has no public repository {repo}"
        hint = "check the spelling; for a private repository run `hf auth login` or set HF_TOKEN"
        return ModelNotFoundError(message, hint, missing_model=repo)
    if is_unauthorized:
        hint = "run `hf auth login` to get a new token, or correct or unset HF_TOKEN"
        return DownloadError(f"{endpoint} refuses your token: {first_line(error)}", hint)
    return None


def _failure(error: Exception, repo: str, revision: str, name: str) -> DownloadError:
    """What went wrong with the connection, the hub or the disk."""
    from huggingface_hub import constants, errors

    endpoint, cache, detail = constants.ENDPOINT, Path(constants.HF_HUB_CACHE).expanduser(), first_line(error)
    what = f"{name} of {repo}" if name else repo
    if isinstance(error, errors.OfflineModeIsEnabled):
        # The client honours transformers' variable of the same meaning too.
        variable = "HF_HUB_OFFLINE" if os.environ.get("HF_HUB_OFFLINE") else "TRANSFORMERS_OFFLINE"
        message = f"{variable} is set, and {repo}@{revision} is not complete in {cache}"
        named = repo if revision == "main" else f"{repo}@{revision}"
        return DownloadError(message, f"unset it and run `localq pull {named}`", missing_model=repo)
    if is_outage(error) and isinstance(error, errors.HfHubHTTPError):
        message = f"{endpoint} can't send {what} now: {detail}"
        return DownloadError(message, "try again later: finished files are kept, and others go on where they stopped")
    if is_outage(error):
        message = f"no connection to {endpoint} for {what}: {detail}"
        hint = "check the network, the proxy and HF_ENDPOINT, then run it again: finished files are kept"
        return DownloadError(message, hint)
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        message = f"{what} can't be written to {cache}: {detail}"
        hint = "free some space or correct the permissions there, or set HF_HOME to a folder on another disk"
        return DownloadError(message, hint)
    message = f"{what} could not be downloaded from {endpoint}: {detail}"
    return DownloadError(message, "run it again: finished files are kept; LOCALQ_DEBUG=1 shows the cause")


def _cause(error: Exception) -> Exception:
    """What happened on the wire: the client raises it inside an error about its cache."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def first_line(error: Exception) -> str:
    """What happened, in one line."""
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        text = f"{error.server_message or error.response.reason_phrase} (HTTP {error.response.status_code})"
    else:
        text = reason(error)
    return text.strip().partition("\n")[0]
