"""Checkpoints and `.gguf` files from the Hugging Face hub, kept in the cache that other tools share.

huggingface_hub does the transfers and honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.
`hub_files` says which files are needed, `hub_errors` what a failure means. huggingface_hub's guide "Understand
caching" describes the cache: `snapshots/<commit>`, `refs/<revision>`, `blobs/<etag>`.

Files come one after the other, in this thread: see `hub_transfer`. `snapshot_download` would wait after Ctrl-C until
the files that its threads have begun are complete. A large file (xet) is fetched in parallel anyway.
What is in the cache is found without the client: importing it takes a third of a second.
"""

from __future__ import annotations

import logging
import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from localq.checkpoint.hub_checks import damaged_blob
from localq.checkpoint.hub_errors import as_localq_error, is_outage
from localq.checkpoint.hub_files import (
    choose_form,
    exact_form,
    is_complete,
    needed_names,
    require_checkpoint,
    weight_format,
)
from localq.checkpoint.hub_transfer import HubFile, patiently
from localq.disk import replacing
from localq.errors import DownloadError, LocalqError
from localq.gguf_file import part_names

DownloadProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); files that were in the cache count as done. Not always called from
the thread that pulls. Raising from it cancels the download."""
FolderCheck = Callable[[Path, bool], object]
"""Called with a snapshot's folder and whether its owner gave the repository the tag `mlx`."""

_logger = logging.getLogger("localq.download")
_DEFAULT_REVISION = "main"
_COMMIT = re.compile(r"[0-9a-f]{40}")


def find_snapshot(repo: str, revision: str | None = None) -> Path | None:
    """The folder of a checkpoint if the cache has all of it, else None: `pull` completes it. Uses no network.

    `revision` is a branch, a tag or a commit; None is the default branch. The folder's name is the full commit hash.
    See `is_complete` for what all of it is.
    """
    folder = _cached_folder(repo, revision)
    return folder if folder and is_complete(folder) else None


def find_form(repo: str, form: str, revision: str | None = None) -> Path | None:
    """The `.gguf` file of a format such as `gguf-q4_k_m` if the cache has it; the first part of a split one.

    None unless all parts are there. Uses no network.
    """
    folder = _cached_folder(repo, revision)
    if folder is None:
        return None
    files = (path for path in folder.rglob("*") if path.is_file())  # a link to nothing is no file
    found = exact_form({path.relative_to(folder).as_posix(): path.stat().st_size for path in files}, form)
    return folder / found.names[0] if found else None


def pull(
    repo: str,
    revision: str | None = None,
    progress: DownloadProgress | None = None,
    check: FolderCheck | None = None,
    verify: bool = False,
    before_weights: Callable[[Path], object] | None = None,
) -> Path:
    """Bring the files that localq needs into the cache: configuration, tokenizer, chat template, weights.

    Gives the snapshot's folder, whose name is the commit. Each file must have the hash that the hub states; one that is
    there is read for that once, and again with `verify`. When the hub can't be reached, a complete snapshot in the
    cache is enough, compared with the hashes in the blobs' names. `check` is called after config.json has come, and
    `before_weights` with the folder after all other small files: what they raise ends the pull. Raises
    ModelNotFoundError (no such repository or revision), CheckpointError (an index of weight files that can't be read)
    or DownloadError (everything else, such as a full disk, a file that arrives damaged and a repository without weights
    that localq reads).
    """
    revision = revision or _DEFAULT_REVISION
    with _client(repo, revision):
        try:
            remote = _look_up(repo, revision, verify)
        except Exception as error:
            if is_outage(error) and (snapshot := find_snapshot(repo, revision)):
                _check_without_hub(repo, snapshot.iterdir(), verify)
                return snapshot
            raise
        kind = require_checkpoint(repo, remote.sizes)
        remote.fetch("config.json")
        if check:
            check(remote.folder, remote.is_mlx)
        if kind.index_name in remote.sizes:
            remote.fetch(kind.index_name)
        remote.fetch_all(needed_names(repo, remote.sizes, kind, remote.folder), progress, before_weights)
        return remote.folder


def pull_form(
    repo: str,
    form: str,
    revision: str | None = None,
    progress: DownloadProgress | None = None,
    beside_checkpoint: bool = False,
    verify: bool = False,
) -> Path | None:
    """Bring the `.gguf` file of a format into the cache, all parts of a split one; gives the path of its first part.

    None where the repository has a checkpoint in Hugging Face format, from which localq makes the format itself. With
    `beside_checkpoint`, a `.gguf` file of exactly this format is taken there too. When the hub can't be reached, a
    file in the cache is enough. Raises as `pull`, and DownloadError that lists the formats of the repository.
    """
    revision = revision or _DEFAULT_REVISION
    with _client(repo, revision):
        try:
            remote = _look_up(repo, revision, verify, form)
        except Exception as error:
            if is_outage(error) and (path := find_form(repo, form, revision)):
                _check_without_hub(repo, [path.with_name(part) for part in part_names(path.name)], verify)
                return path
            raise
        if weight_format(remote.sizes) and not (beside_checkpoint and exact_form(remote.sizes, form)):
            return None
        names = choose_form(repo, remote.sizes, form).names
        remote.fetch_all(names, progress)
        return remote.folder / names[0]


@dataclass(frozen=True, slots=True)
class _Remote:
    """What the hub lists for one commit of a repository, and what the cache has of it."""

    repo: str
    revision: str
    """Branch, tag or commit, as it was given."""
    commit: str
    sizes: Mapping[str, int]
    """Bytes of each file."""
    etags: Mapping[str, str]
    """The name that the contents of each file have under `blobs`."""
    is_mlx: bool
    """Whether its owner gave it the tag `mlx`."""
    verify: bool
    """Whether to read again what is there."""
    form: str
    """The format that was asked for; empty for a checkpoint."""
    good: set[str] = field(default_factory=set)
    """Files that have the right bytes, as far as it is known."""
    fetched: set[str] = field(default_factory=set)

    @property
    def folder(self) -> Path:
        """Where the files of this commit are, or will be."""
        return _cache_folder(self.repo) / "snapshots" / self.commit

    def fetch_all(
        self,
        names: Collection[str],
        progress: DownloadProgress | None,
        before_weights: Callable[[Path], object] | None = None,
    ) -> None:
        """Bring files, then let the branch or tag mean this commit: a reader never finds half a snapshot under it."""
        self._require_room(names)
        report = progress or _ignore
        total_bytes = sum(self.sizes[name] for name in names)
        missing = [name for name in names if not self._is_good(name)]
        if missing or self.fetched:
            done_bytes = total_bytes - sum(self.sizes[name] for name in missing)
            report(0, total_bytes)
            for name in missing:
                if before_weights and PurePosixPath(name).suffix in (".safetensors", ".bin"):
                    before_weights(self.folder)
                    before_weights = None

                def on_bytes(file_bytes: int, before_bytes: int = done_bytes) -> None:
                    report(before_bytes + file_bytes, total_bytes)

                self._bring(name, on_bytes)
                done_bytes += self.sizes[name]
        report(total_bytes, total_bytes)
        self._write_reference()

    def fetch(self, name: str) -> None:
        """Bring one file, where its bytes are not there or not those that the hub states."""
        if not self._is_good(name):
            self._bring(name, _ignore)

    def _bring(self, name: str, on_bytes: Callable[[int], object]) -> None:
        with _client(self.repo, self.revision, name):
            self._file(name).fetch(on_bytes)
        self.fetched.add(name)
        self.good.add(name)

    def _is_good(self, name: str) -> bool:
        if name not in self.good and self._file(name).is_good():
            self.good.add(name)
        return name in self.good

    def _file(self, name: str) -> HubFile:
        revision = "" if self.revision == _DEFAULT_REVISION else f"@{self.revision}"
        reference = self.repo + revision + (f":{self.form}" if self.form else "")
        size_bytes, etag, cache = self.sizes[name], self.etags[name], _cache_folder(self.repo)
        return HubFile(self.repo, self.commit, name, size_bytes, etag, cache, reference, self.verify)

    def _write_reference(self) -> None:
        reference = _cache_folder(self.repo) / "refs" / self.revision
        if self.revision != self.commit and _read_reference(reference) != self.commit:
            reference.parent.mkdir(parents=True, exist_ok=True)
            with replacing(reference) as stream:
                stream.write(self.commit.encode())

    def _require_room(self, names: Collection[str]) -> None:
        # What another commit has already needs only a link.
        needed_bytes = sum(self._file(name).missing_bytes() for name in names)
        cache = _cache_folder(self.repo)
        free_bytes = shutil.disk_usage(next(folder for folder in (cache, *cache.parents) if folder.exists())).free
        if needed_bytes > free_bytes:
            raise DownloadError(
                f"{self.repo} needs {needed_bytes / 1e9:.3f} GB more in {cache.parent}, "
                f"which has {free_bytes / 1e9:.3f} GB free",
                "free some space, or set HF_HOME to a folder on another disk",
            )


def _look_up(repo: str, revision: str, verify: bool, form: str = "") -> _Remote:
    from huggingface_hub import HfApi, constants

    # Without a limit of its own this request would wait for ever on a network that drops packets.
    limit_seconds = constants.HF_HUB_ETAG_TIMEOUT
    info = patiently(
        lambda: HfApi().model_info(repo, revision=revision, timeout=limit_seconds, files_metadata=True),
        f"{constants.ENDPOINT} can't list {repo} now",
        breaks=False,
    )
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"{constants.ENDPOINT} gives no commit for {repo}@{revision}", "check HF_ENDPOINT")
    files = info.siblings or []
    sizes = {file.rfilename: (file.lfs.size if file.lfs else file.size) or 0 for file in files}
    etags = {file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in files}
    return _Remote(repo, revision, info.sha, sizes, etags, "mlx" in (info.tags or ()), verify, form)


def _check_without_hub(repo: str, files: Iterable[Path], verify: bool) -> None:
    damaged = damaged_blob(files, verify)
    if damaged:
        raise DownloadError(
            f"{damaged.name} of {repo} in the cache is damaged, and the hub can't be reached to fetch it again",
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, then run it again",
        )
    _logger.info("the hub can't be reached: %s is taken as it is in the cache, where no file is damaged", repo)


def _ignore(*_: object, **__: object) -> None:
    pass


@contextmanager
def _client(repo: str, revision: str, name: str = "") -> Iterator[None]:
    """Turn the client's errors into localq's; it prints nothing itself: what matters is in the error."""
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except LocalqError:
        raise
    except Exception as error:
        raise as_localq_error(error, repo, revision, name) from error
    finally:
        client_logging.set_verbosity(verbosity)


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


def _cached_folder(repo: str, revision: str | None) -> Path | None:
    """The folder of a snapshot, which may be incomplete."""
    cache, commit = _cache_folder(repo), revision or _DEFAULT_REVISION
    if not _COMMIT.fullmatch(commit):
        commit = _read_reference(cache / "refs" / commit)
    return cache / "snapshots" / commit if _COMMIT.fullmatch(commit) else None


def _read_reference(file: Path) -> str:
    """The commit that a branch or tag means here; empty where it is not known."""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
