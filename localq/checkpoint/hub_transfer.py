"""One file of the hub into the cache: it goes on where it stopped, and must have the hash that the hub states.

What has arrived of a file is `blobs/<hash>.incomplete`, a name that huggingface_hub knows as an unfinished download
(`hf cache prune` deletes it). Its own `hf_hub_download` (2.4) begins a file from the start in the next run. It is used
for xet alone, the hub's way to send large files in parallel: such a file begins again after a break, and is read once
more at its end.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import IO, Any, TypeVar

from localq.checkpoint.hub_checks import feed, has_hash, is_stated_hash, new_digest, note_checked, was_checked
from localq.checkpoint.hub_errors import first_line, seconds_to_wait
from localq.errors import DownloadError
from localq.tables import format_bytes

_TRIES = 5
_SLOW_TO_READ_BYTES = 500_000_000
_Result = TypeVar("_Result")
_logger = logging.getLogger("localq.download")


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file of one commit, with what the hub states of it."""

    repo: str
    commit: str
    name: str
    size_bytes: int
    etag: str
    """The hash of its contents; empty where the hub states none."""
    cache: Path
    """The repository's folder in the cache."""
    reference: str
    """What to pull again where that helps."""
    verify: bool = False
    """Whether to read again what was compared before."""

    @property
    def path(self) -> Path:
        """Where the commit has it: a link to the blob."""
        return self.cache / "snapshots" / self.commit / self.name

    @property
    def blob(self) -> Path:
        """Where its bytes are."""
        return self.cache / "blobs" / self.etag

    @property
    def partial(self) -> Path:
        """Where its bytes are until all have come."""
        return self.cache / "blobs" / f"{self.etag}.incomplete"

    def missing_bytes(self) -> int:
        """What is still to come, by the lengths of the files."""
        lengths = {file.stat().st_size for file in (self.path, self.blob) if file.is_file()}
        return 0 if self.size_bytes in lengths else max(0, self.size_bytes - self.arrived_bytes())

    def arrived_bytes(self) -> int:
        """Of one that has not come as a whole."""
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def is_good(self) -> bool:
        """Whether the commit has it with the right bytes."""
        return self._has_right_bytes(self.path)

    def fetch(self, on_bytes: Callable[[int], object]) -> None:
        """Bring it; `on_bytes` gets how many are there. One that arrives damaged is fetched once more.

        Raises DownloadError where the hub sends other bytes than it states, OSError, and the client's exceptions.
        """
        if PurePosixPath(self.name).is_absolute() or ".." in PurePosixPath(self.name).parts:
            raise DownloadError(f"{self.repo} lists a file outside of it: {self.name}", "look for another repository")
        if self.path.is_file():
            if self.is_good():  # another process brought it
                return
            _logger.info("%s in the cache is damaged: fetching it again", self.name)
            self._remove(self.path)
        for _ in range(2):
            if self._bring(on_bytes):
                return
            _logger.info("%s arrived damaged", self.name)
        raise DownloadError(
            f"{self.name} of {self.repo} arrived damaged: it does not have the hash that the hub states",
            f"nothing of it was kept: `localq pull {self.reference}` fetches it again",
        )

    def _bring(self, on_bytes: Callable[[int], object]) -> bool:
        """One way through; whether the bytes are right, else they are deleted. Goes on after short breaks."""
        if not is_stated_hash(self.etag):
            # Without the hash in the listing: the client names the blob after the ETag that comes with the file.
            patiently(lambda: self._by_client(on_bytes), self.name)
            stated = self.path.resolve().name
            if not is_stated_hash(stated):
                _logger.warning("the hub states no hash of %s: only its length is compared", self.name)
        elif not self.arrived_bytes() and not self.blob.exists() and patiently(self._is_xet, self.name):
            patiently(lambda: self._by_client(on_bytes), self.name)
            stated = self.etag
        else:
            return patiently(lambda: self._by_http(on_bytes), self.name, self.arrived_bytes)
        is_right = self.path.stat().st_size == self.size_bytes
        is_right = is_right and (not is_stated_hash(stated) or has_hash(self.path, stated))
        if not is_right:
            self._remove(self.path)
        return is_right

    def _has_right_bytes(self, file: Path) -> bool:
        if not file.is_file() or file.stat().st_size != self.size_bytes:
            return False
        etag = self.etag if is_stated_hash(self.etag) else file.resolve().name
        if not is_stated_hash(etag) or (not self.verify and was_checked(file, etag)):
            return True
        if self.size_bytes > _SLOW_TO_READ_BYTES:
            _logger.info("checking %s (%s)", self.name, format_bytes(self.size_bytes))
        return has_hash(file, etag)

    def _is_xet(self) -> bool:
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

        if len(self.etag) != 64 or constants.HF_HUB_DISABLE_XET or not find_spec("hf_xet"):
            return False
        url = hf_hub_url(self.repo, self.name, revision=self.commit, endpoint=constants.ENDPOINT)
        return get_hf_file_metadata(url).xet_file_data is not None

    def _by_client(self, on_bytes: Callable[[int], object]) -> None:
        from huggingface_hub import hf_hub_download

        counter: Any = _counter(on_bytes)
        hf_hub_download(self.repo, self.name, revision=self.commit, force_download=True, tqdm_class=counter)

    def _by_http(self, on_bytes: Callable[[int], object]) -> bool:
        """Whether the bytes are right, which are then in their place; else they are deleted."""
        with self._locked():
            if not self._has_right_bytes(self.blob):  # another commit or another process may have brought it
                self._remove(self.blob)
                try:
                    with self.partial.open("ab") as stream:
                        digest = self._receive(stream, on_bytes)
                        os.fsync(stream.fileno())
                finally:
                    if self.size_bytes and not self.arrived_bytes():
                        self.partial.unlink(missing_ok=True)
                if digest != self.etag:
                    self.partial.unlink(missing_ok=True)
                    return False
                self.partial.replace(self.blob)
                note_checked(self.blob, self.etag)
            self._link()
        return True

    def _receive(self, stream: IO[bytes], on_bytes: Callable[[int], object]) -> str:
        """Append what is missing; returns the hash of all bytes."""
        from huggingface_hub import constants, hf_hub_url
        from huggingface_hub.utils import (  # type: ignore[attr-defined]
            build_hf_headers,
            get_session,
            hf_raise_for_status,
        )

        url = hf_hub_url(self.repo, self.name, revision=self.commit, endpoint=constants.ENDPOINT)
        digest, done_bytes = new_digest(self.etag, self.size_bytes), stream.tell()
        if done_bytes > self.size_bytes:
            stream.truncate(0)
            done_bytes = 0
        feed(self.partial, digest)
        if done_bytes == self.size_bytes:
            return digest.hexdigest()
        headers = build_hf_headers()
        if done_bytes or len(self.etag) == 64:  # a range of compressed bytes would be of no use
            headers |= {"Accept-Encoding": "identity"}
        if done_bytes:
            headers |= {"Range": f"bytes={done_bytes}-"}
        limit_seconds = constants.HF_HUB_DOWNLOAD_TIMEOUT
        with get_session().stream("GET", url, headers=headers, timeout=limit_seconds) as response:
            hf_raise_for_status(response)
            if response.status_code != 206 and done_bytes:
                stream.truncate(0)
                digest, done_bytes = new_digest(self.etag, self.size_bytes), 0
            for piece in response.iter_bytes(chunk_size=constants.DOWNLOAD_CHUNK_SIZE):
                stream.write(piece)
                digest.update(piece)
                done_bytes += len(piece)
                on_bytes(min(done_bytes, self.size_bytes))
                if done_bytes > self.size_bytes:
                    break
        if done_bytes < self.size_bytes:
            raise DownloadError(
                f"{self.name} of {self.repo} came in part: {done_bytes} of {self.size_bytes} bytes",
                f"run `localq pull {self.reference}` again: it goes on where it stopped",
            )
        return digest.hexdigest() if done_bytes == self.size_bytes else ""

    def _link(self) -> None:
        from huggingface_hub import constants

        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.unlink(missing_ok=True)
        try:
            if getattr(constants, "HF_HUB_DISABLE_SYMLINKS", False):
                raise OSError
            self.path.symlink_to(os.path.relpath(self.blob, self.path.parent))
        except OSError:  # a file system without links: the client has the bytes in this place then
            self.blob.replace(self.path)
            note_checked(self.path, self.etag)

    def _remove(self, file: Path) -> None:
        """Delete a file that is wrong, with every link on the way to its bytes."""
        while file.is_symlink():
            target = file.parent / file.readlink()
            file.unlink()
            file = target
        file.unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock that the client has for this file."""
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        lock = self.cache.parent / ".locks" / self.cache.name / f"{self.etag}.lock"
        for folder in (lock.parent, self.blob.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):
            yield


def patiently(
    action: Callable[[], _Result], what: str, progress: Callable[[], int] = lambda: 0, *, breaks: bool = True
) -> _Result:
    """Do it again after an answer that says "later", and, with `breaks`, after a broken connection.

    Five times, and as often as `progress` rises before a connection breaks. The waits are as long as the hub asks for,
    else 1, 2, 4 and 8 s.
    """
    furthest, tries = progress(), 0
    while True:
        try:
            return action()
        except Exception as error:
            if progress() > furthest and not isinstance(error, DownloadError):
                furthest, tries = progress(), 0
            wait_seconds = seconds_to_wait(error, 2**tries, breaks)
            tries += 1
            if wait_seconds is None or tries == _TRIES:
                raise
            _logger.info("%s: %s: trying again in %.0f s", what, first_line(error), wait_seconds)
        time.sleep(wait_seconds)


def _counter(on_bytes: Callable[[int], object]) -> type:
    class ByteCounter:
        """What the client takes for tqdm: it draws nothing and reports the bytes of the file so far."""

        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self._done_bytes = initial

        def __enter__(self) -> ByteCounter:
            return self

        def update(self, new_bytes: float | None = 1) -> None:
            self._done_bytes += int(new_bytes or 0)  # less than 0 when a broken transfer starts again
            on_bytes(self._done_bytes)

        # `update_transfer` gets the bytes on the wire; without it xet would make a second bar for them.
        __exit__ = close = update_transfer = set_postfix_str = set_transfer_postfix_str = _ignore

    return ByteCounter


def _ignore(*_: object, **__: object) -> None:
    pass
