"""Checkpoints from the Hugging Face hub, kept in the cache that other tools share.

The only importer of huggingface_hub, which does the transfers and honours HF_HOME, HF_HUB_CACHE, HF_ENDPOINT,
HF_TOKEN and HF_HUB_OFFLINE. Knows how files travel and where they lie; which ones are needed is said in
`hub_files`, what a failure means in `hub_errors`. The folders of the cache (`snapshots/<commit>`,
`refs/<revision>`, `blobs/<etag>`) are described in huggingface_hub's guide "Understand caching".
"""

from __future__ import annotations

import errno
import logging
import re
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localq.checkpoint.hub_errors import Failure, FailureKind, as_localq_error
from localq.checkpoint.hub_files import has_weights, is_complete, needed_names, weight_format
from localq.checkpoint.hub_gguf import choose_form, exact_form
from localq.checkpoint.hub_progress import byte_counter, ignore_bytes
from localq.checkpoint.hub_repository import RemoteFile, Repository
from localq.errors import DownloadError, LocalqError

DownloadProgress = Callable[[int, int], None]
"""Called with (bytes done, bytes in all); files that were in the cache count as done. Not always called from
the thread that pulls. Raising from it cancels the download."""
FolderCheck = Callable[[Path], object]

_DEFAULT_REVISION = "main"
_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A checkpoint folder in the Hugging Face cache."""

    folder: Path
    repo: str
    """`org/name`."""
    revision: str
    """The full commit hash, whatever name was asked for."""


def find_snapshot(repo: str, revision: str | None = None) -> Snapshot | None:
    """The checkpoint as far as it is complete in the cache; asks no network.

    `revision` is a branch, a tag or a commit; None is the default branch. Complete means: config.json,
    tokenizer_config.json, a tokenizer, and every weight file. Anything less is None: `pull` completes it.
    """
    commit = _cached_commit(repo, revision or _DEFAULT_REVISION)
    if commit is None:
        return None
    folder = _cache_folder(repo) / "snapshots" / commit
    return Snapshot(folder, repo, commit) if is_complete(folder) else None


def find_form(repo: str, form: str, revision: str | None = None) -> Path | None:
    """The `.gguf` file of a form such as `gguf-q4_k_m`, of a split one its first part; None unless all is in the cache.

    Asks no network.
    """
    commit = _cached_commit(repo, revision or _DEFAULT_REVISION)
    if commit is None:
        return None
    folder = _cache_folder(repo) / "snapshots" / commit
    found = exact_form({name: 0 for name in _cached_names(folder)}, form)
    return folder / found.names[0] if found is not None else None


def pull(
    repo: str,
    revision: str | None = None,
    progress: DownloadProgress | None = None,
    check: FolderCheck | None = None,
    checks_mlx: bool = True,
) -> Snapshot:
    """Bring the files that localq needs into the cache: configuration, tokenizer, chat template, weights.

    Files already there at their full length are not fetched again. When the hub can't be reached, a complete
    snapshot in the cache will do. `check` gets the snapshot's folder when config.json is there and the weights
    have yet to travel: what it raises ends the pull; `checks_mlx` says whether it is asked about a repository whose
    owner says that it is for MLX. Raises ModelNotFoundError (no such repository or revision)
    or DownloadError (everything else, among it a full disk and a repository without weights that localq reads).
    """
    wanted = revision or _DEFAULT_REVISION
    with _errors_translated(repo, wanted), _quiet_client():
        return _pull(repo, wanted, progress or _ignore_progress, check, checks_mlx)


def pull_form(
    repo: str,
    form: str,
    revision: str | None = None,
    progress: DownloadProgress | None = None,
    beside_checkpoint: bool = False,
) -> Path | None:
    """Bring the `.gguf` file of a form into the cache, all parts of a split one; gives the path of its first part.

    None where the repository has a checkpoint in Hugging Face format, from which the form can be made: then its
    `.gguf` files count only with `beside_checkpoint`, and where one is the form. When the hub can't be reached, what
    is in the cache will do. Raises as `pull`, and DownloadError that lists the forms there.
    """
    wanted = revision or _DEFAULT_REVISION
    with _errors_translated(repo, wanted), _quiet_client():
        try:
            repository = _look_up(repo, wanted)
        except Exception as error:
            found = find_form(repo, form, revision) if _classified(error, repo, wanted).is_outage else None
            if found is None:
                raise
            return found
        sizes = {name: file.size_bytes for name, file in repository.files.items()}
        if has_weights(sizes) and not (beside_checkpoint and exact_form(sizes, form)):
            return None
        names = choose_form(repo, sizes, form).names
        repository.require_room(names)
        _fetch_all(repository, names, progress or _ignore_progress)
        _point_to(repository, wanted, names[0])
        return repository.folder / names[0]


def _pull(
    repo: str, revision: str, progress: DownloadProgress, check: FolderCheck | None, checks_mlx: bool
) -> Snapshot:
    try:
        repository = _look_up(repo, revision)
    except Exception as error:
        cached = find_snapshot(repo, revision) if _classified(error, repo, revision).is_outage else None
        if cached is None:
            raise
        return cached
    kind = weight_format(repo, {name: file.size_bytes for name, file in repository.files.items()})
    _fetch(repository, "config.json", ignore_bytes)
    if check and (checks_mlx or not repository.is_mlx):
        check(repository.folder)
    if kind.index_name in repository.files:
        _fetch(repository, kind.index_name, ignore_bytes)
    names = needed_names(repo, repository.files, kind, repository.folder)
    repository.require_room(names)
    _fetch_all(repository, names, progress)
    _point_to(repository, revision, "config.json")
    return Snapshot(repository.folder, repo, repository.commit)


def _point_to(repository: Repository, revision: str, name: str) -> None:
    """Let the branch or tag mean this commit from now on: a reader never meets a half snapshot under its name."""
    from huggingface_hub import hf_hub_download

    if revision != repository.commit:
        # The file is there already, so that the client does nothing but write the reference.
        hf_hub_download(repository.repo, name, revision=revision, tqdm_class=byte_counter(ignore_bytes))


def _look_up(repo: str, revision: str) -> Repository:
    from huggingface_hub import HfApi, constants

    # Without a limit of its own this request would wait for ever on a network that swallows packets.
    timeout_seconds = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(repo, revision=revision, timeout=timeout_seconds, files_metadata=True)
    files = {}
    for entry in info.siblings or []:
        size_bytes, etag = (entry.lfs.size, entry.lfs.sha256) if entry.lfs else (entry.size, entry.blob_id)
        files[entry.rfilename] = RemoteFile(size_bytes or 0, etag or "")
    if info.sha is None or not _COMMIT.fullmatch(info.sha):
        raise DownloadError(f"{_endpoint()} names no commit for {repo}@{revision}", "check HF_ENDPOINT")
    return Repository(repo, info.sha, files, _cache_folder(repo), "mlx" in (info.tags or ()))


def _fetch_all(repository: Repository, names: Collection[str], progress: DownloadProgress) -> None:
    total_bytes = sum(repository.files[name].size_bytes for name in names)
    finished_bytes = 0
    progress(finished_bytes, total_bytes)
    for name in names:

        def on_bytes(file_bytes: int, before_bytes: int = finished_bytes) -> None:
            progress(before_bytes + file_bytes, total_bytes)

        _fetch(repository, name, on_bytes)
        finished_bytes += repository.files[name].size_bytes
        progress(finished_bytes, total_bytes)


def _fetch(repository: Repository, name: str, on_bytes: Callable[[int], None]) -> None:
    # One file after the other, in this thread: Ctrl-C ends it at once, where snapshot_download would wait for
    # the files that its threads have begun. Within a large file the xet transfer is parallel anyway.
    from huggingface_hub import hf_hub_download

    force = repository.is_damaged(name)
    counter = byte_counter(on_bytes)
    hf_hub_download(repository.repo, name, revision=repository.commit, force_download=force, tqdm_class=counter)


def _ignore_progress(done_bytes: int, total_bytes: int) -> None:
    pass


@contextmanager
def _errors_translated(repo: str, revision: str) -> Iterator[None]:
    try:
        yield
    except LocalqError:
        raise
    except Exception as error:
        raise as_localq_error(_classified(error, repo, revision)) from error


@contextmanager
def _quiet_client() -> Iterator[None]:
    """No lines of the client's own on stderr: what matters is in the error that is raised."""
    from huggingface_hub.utils import logging as client_logging

    verbosity = client_logging.get_verbosity()
    client_logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client_logging.set_verbosity(verbosity)


def _cache_folder(repo: str) -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE).expanduser() / f"models--{repo.replace('/', '--')}"


def _cached_names(folder: Path) -> list[str]:
    """Files of a snapshot, without the links that lead nowhere."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.gguf")) if path.is_file()]


def _cached_commit(repo: str, revision: str) -> str | None:
    if _COMMIT.fullmatch(revision):
        return revision
    references = _cache_folder(repo) / "refs"
    try:
        commit = (references / revision).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return commit if _COMMIT.fullmatch(commit) else None


def _endpoint() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _classified(error: Exception, repo: str, revision: str) -> Failure:
    from huggingface_hub import get_token
    from huggingface_hub.errors import LocalEntryNotFoundError

    # The client wraps what happened on the wire in an error about its cache.
    while isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    has_token = get_token() is not None
    detail = _reason(error).strip().partition("\n")[0]
    cache = _cache_folder(repo).parent
    return Failure(_kind(error, has_token), repo, revision, _endpoint(), cache, has_token, detail)


def _kind(error: Exception, has_token: bool) -> FailureKind:
    from huggingface_hub import errors

    kinds: dict[type[Exception], FailureKind] = {
        errors.OfflineModeIsEnabled: "offline",
        errors.GatedRepoError: "gated",
        errors.RepositoryNotFoundError: "no repository",
        errors.HFValidationError: "no repository",
        errors.RevisionNotFoundError: "no revision",
    }
    for known, kind in kinds.items():
        if isinstance(error, known):
            return kind
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status == 401:
            # Who sent no token is told this of a private repository, and of one that does not exist.
            return "bad token" if has_token else "no repository"
        return "server" if status >= 500 or status == 429 else "other"
    if isinstance(error, errors.HTTPError):  # type: ignore[attr-defined]  # httpx's in 1.x, httpx2's in 2.x
        return "unreachable"
    return "disk" if isinstance(error, OSError) and error.errno in _DISK_ERRORS else "other"


def _reason(error: Exception) -> str:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        said = error.server_message or error.response.reason_phrase
        return f"{said} (HTTP {error.response.status_code})"
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
