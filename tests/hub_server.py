"""A Hugging Face hub on 127.0.0.1: the part of its protocol that downloading a model needs.

    with HubServer() as hub:
        repository = hub.add("org/name", {"config.json": b"{}"})
        ...  # a client with HF_ENDPOINT=hub.endpoint

Files are served as the hub serves them: `.safetensors`, `.bin` and `.gguf` as large files, whose ETag is the SHA-256,
the others with git's blob hash. No xet, no redirect to another host.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Repository:
    """One repository; `files` of each commit, and the branches and tags that point to commits."""

    commits: dict[str, dict[str, bytes]]
    references: dict[str, str]
    gated: bool = False
    """Listed for all; its files only for the tokens in `readers`."""
    private: bool = False
    """There only for the tokens in `readers`."""
    readers: set[str] = field(default_factory=set)
    tags: list[str] = field(default_factory=list)

    def commit(self, files: dict[str, bytes], reference: str = "main") -> str:
        """Add a commit, let the branch or tag point to it, and return its hash."""
        listing = "".join(f"{name}{etag_of(name, files[name])}" for name in sorted(files))
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.commits[commit] = files
        self.references[reference] = commit
        return commit


@dataclass(frozen=True)
class Fault:
    """What is wrong with one answer."""

    status: int | None = None
    """Instead of the answer."""
    headers: dict[str, str] = field(default_factory=dict)
    """Besides those of the answer, or instead of them."""
    body: Callable[[bytes], bytes] = bytes
    """What is sent instead of these bytes."""
    cut_after_bytes: int | None = None
    """Close the connection then; 0 sends nothing, not even a status."""
    ignores_range: bool = False


class HubServer:
    """The double; it runs inside `with` and keeps what it was asked in `requests`."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.tokens: set[str] = set()
        """Tokens that exist; any other is refused, as the hub does."""
        self.requests: list[tuple[str, str]] = []
        """(method, path) of every request, in order."""
        self.ranges: list[str] = []
        """Every Range header, in order."""
        self.fault: Callable[[str, str], Fault | None] = lambda method, path: None
        """Called with every request's method and path, from the threads of the connections."""
        self.failing_status: int | None = None
        """Answer everything with this status."""
        self.cut_after_bytes: int | None = None
        """Send only so many bytes of the next larger file, then break the connection."""
        self.stays_down_after_cut = False
        """Whether to break every connection from then on."""
        self._is_down = False
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.hub = self  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> HubServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def add(self, repo: str, files: dict[str, bytes] | Path) -> Repository:
        """Serve a repository with these files, or with those of a folder, at `main`."""
        if isinstance(files, Path):
            folder = files
            files = {
                path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
            }
        repository = self.repositories[repo] = Repository({}, {})
        repository.commit(files)
        return repository

    def repair(self) -> None:
        """Serve everything from now on."""
        self._is_down = False
        self.cut_after_bytes = None
        self.failing_status = None

    def fetched(self) -> list[str]:
        """Names of the files whose contents were asked for, in order."""
        paths = [path for method, path in self.requests if method == "GET" and "/resolve/" in path]
        return [path.split("/resolve/")[1].partition("/")[2] for path in paths]


def etag_of(name: str, content: bytes) -> str:
    """The hub's ETag: SHA-256 for large files, git's blob hash for the others."""
    if name.endswith((".safetensors", ".bin", ".gguf")):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()


def _sibling(name: str, content: bytes) -> dict[str, Any]:
    """One file as `GET /api/models/{repo}/revision/{revision}?blobs=true` lists it."""
    etag, size = etag_of(name, content), len(content)
    lfs = {"lfs": {"sha256": etag, "size": size, "pointerSize": 134}} if len(etag) == 64 else {}
    return {"rfilename": name, "size": size, "blobId": etag[:40]} | lfs


def _tree_entry(name: str, content: bytes) -> dict[str, Any]:
    """One file as `GET /api/models/{repo}/tree/{revision}?recursive=true` lists it."""
    etag, size = etag_of(name, content), len(content)
    lfs = {"lfs": {"oid": etag, "size": size, "pointerSize": 134}} if len(etag) == 64 else {}
    return {"type": "file", "path": name, "size": size, "oid": etag[:40]} | lfs


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        self.status = status
        self.headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})


class _Handler(BaseHTTPRequestHandler):
    @property
    def hub(self) -> HubServer:
        return self.server.hub  # type: ignore[attr-defined, no-any-return]

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path))
        if self.headers.get("Range"):
            self.hub.ranges.append(self.headers["Range"])
        self.fault = self.hub.fault(self.command, path) or Fault()
        if self.hub._is_down or self.fault.cut_after_bytes == 0:
            self.close_connection = True
            return
        try:
            self._check_token()
            if path.startswith("/api/models/"):
                self._answer_listing(path.removeprefix("/api/models/"))
            else:
                self._answer_file(path.removeprefix("/"))
        except _Refused as refused:
            self._send(refused.status, refused.headers, b"")

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _check_token(self) -> None:
        status = self.fault.status or self.hub.failing_status
        if status is not None:
            raise _Refused(status, "the double is set to fail")
        if self._token() is not None and self._token() not in self.hub.tokens:
            raise _Refused(401, "Invalid credentials in Authorization header")

    def _commit(self, repo: str, revision: str) -> tuple[Repository, str]:
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and self._token() not in repository.readers):
            # Without a token the hub answers the same for a missing repository and for a private one.
            status = 401 if self._token() is None else 404
            raise _Refused(status, "Repository not found", "RepoNotFound" if status == 404 else None)
        commit = repository.references.get(revision, revision)
        if commit not in repository.commits:
            raise _Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, commit

    def _answer_listing(self, path: str) -> None:
        is_tree = "/tree/" in path
        repo, _, revision = path.partition("/tree/" if is_tree else "/revision/")
        repository, commit = self._commit(repo, revision or "main")
        files = repository.commits[commit].items()
        answer: Any = [_tree_entry(name, content) for name, content in files]
        if not is_tree:
            siblings = [_sibling(name, content) for name, content in files]
            answer = {
                "id": repo,
                "sha": commit,
                "siblings": siblings,
                "tags": repository.tags,
                "downloads": 0,
                "likes": 0,
            }
        self._send(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())

    def _answer_file(self, path: str) -> None:
        repo, _, rest = path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        repository, commit = self._commit(repo, revision)
        if repository.gated and self._token() not in repository.readers:
            status = 401 if self._token() is None else 403
            raise _Refused(status, f"Access to model {repo} is restricted", "GatedRepo")
        content = repository.commits[commit].get(name)
        if content is None:
            raise _Refused(404, "Entry not found", "EntryNotFound")
        etag = etag_of(name, content)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(etag) == 64:
            headers |= {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{etag}"'}
        asked_range = None if self.fault.ignores_range else self.headers.get("Range")
        start = int((asked_range or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(206 if start else 200, headers, content[start:])

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        body = self.fault.body(body)
        for key, value in (headers | {"Content-Length": str(len(body))} | self.fault.headers).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.fault.cut_after_bytes is not None or "Content-Length" in self.fault.headers:
            body = body[: self.fault.cut_after_bytes]
            self.close_connection = True
        cut = self.hub.cut_after_bytes
        if cut is not None and len(body) > cut:
            self.hub.cut_after_bytes = None
            self.hub._is_down = self.hub.stays_down_after_cut
            body = body[:cut]
        self.wfile.write(body)
