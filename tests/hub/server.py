"""A loopback server that speaks the Hub's protocol, for models and data sets that are folders on disk.

What `huggingface_hub` asks for: repository info, revisions, trees, path infos, the list of parquet files, and files by
HEAD and GET with etags, commits, lengths, ranges and redirects. The errors carry the Hub's own `X-Error-Code`. `fail`
makes it misbehave.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LARGE_BYTES = 4096  # from here on a file is answered as the Hub answers large files: by a redirect
API = re.compile(
    r"/api/(?P<kind>models|datasets)/(?P<id>[^/]+/[^/]+?)"
    r"(?:/(?P<verb>revision|tree|paths-info|parquet)(?:/(?P<rest>.*))?)?"
)
RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
FILE = re.compile(r"/files/(?P<name>.+)")  # of another server, such as GitHub's
BLOB = re.compile(r"/blob/(?P<sha>[0-9a-f]{64})")


def commit_of(folder: Path) -> str:
    """Name a folder's content by 40 hex digits, as git would a commit."""
    digest = hashlib.sha1(usedforsecurity=False)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


@dataclass
class Repository:
    """A repository: revisions by name, each a folder."""

    revisions: dict[str, Path]
    private: bool = False

    def find(self, revision: str) -> tuple[str, Path] | None:
        """Return commit and folder of a branch, a tag or a commit."""
        for name, folder in self.revisions.items():
            if revision in {name, commit_of(folder)}:
                return commit_of(folder), folder
        return None


@dataclass
class Failure:
    """What to do wrong, for which paths."""

    status: int | None = None  # answer with it
    code: str | None = None  # its X-Error-Code
    seconds: float = 0.0  # wait so long before the answer
    cut_after: int | None = None  # close the connection after so many bytes of a file
    path: str = ""  # a regular expression; others are answered well
    times: int = 10**9  # so often


@dataclass
class Hub:
    """The server's state, and what a test may do with it."""

    endpoint: str
    storage: str  # the same server under another host name, as the real one has large files elsewhere
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    parquet: dict[str, dict[str, dict[str, list[str]]]] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)  # by name, under `/files/`
    token: str = "hf_of_a_test"
    requests: list[str] = field(default_factory=list)  # "GET /path" of each request
    failure: Failure | None = None
    closing: Event = field(default_factory=Event)

    def add(
        self, name: str, folder: Path, *, kind: str = "models", revision: str = "main", private: bool = False
    ) -> str:
        """Serve a folder as a revision of a repository; returns the commit."""
        repository = self.repositories.setdefault((kind, name), Repository({}, private))
        repository.revisions[revision] = folder
        return commit_of(folder)

    def add_parquet(self, name: str, files: dict[str, dict[str, list[str]]]) -> None:
        """List a data set's converted files, configuration -> split -> URLs, under `/api/datasets/<name>/parquet`."""
        self.parquet[name] = files

    def fail(self, **how: Any) -> None:
        """Misbehave from now on, as `Failure` says."""
        self.failure = Failure(**how)

    def heal(self) -> None:
        """Answer well again."""
        self.failure = None

    def etag(self, file: Path) -> str:
        """Return what the server sends as a small file's etag."""
        return f'"{_blob_id(file.read_bytes())}"'

    def fails_at(self, path: str) -> Failure | None:
        """Return what to do wrong for this path, once less often."""
        failure = self.failure
        if failure is None or failure.times <= 0 or not re.search(failure.path, path):
            return None
        failure.times -= 1
        return failure


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Say nothing."""

    def _answer(self) -> None:
        url = urlsplit(self.path)
        path = url.path  # quoted: a revision such as refs%2Fconvert%2Fparquet is one part of it
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.requests.append(f"{self.command} {unquote(path)}")
        failure = self.hub.fails_at(path)
        if failure is not None:
            self.hub.closing.wait(failure.seconds)
            if failure.status is not None:
                self._send(failure.status, b"{}", {"X-Error-Code": failure.code} if failure.code else {})
                return
        cut = failure.cut_after if failure is not None else None
        if found := API.fullmatch(path):
            self._api(found, parse_qs(url.query), body)
        elif found := RESOLVE.fullmatch(path):
            self._resolve(found, cut)
        elif found := BLOB.fullmatch(path):
            self._blob(found["sha"], cut)
        elif (found := FILE.fullmatch(path)) and (file := self.hub.files.get(unquote(found["name"]))) is not None:
            content = file.read_bytes()
            self._file(content, {"ETag": f'"{_blob_id(content)}"'}, cut)
        else:
            self._send(404, b"{}", {})

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get((kind, name))
        allowed = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        if repository is None or (repository.private and not allowed):
            # the Hub does not tell a stranger whether a repository is private or missing
            self._send(404 if allowed else 401, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
            return None
        return repository

    def _api(self, found: re.Match[str], query: dict[str, list[str]], body: bytes) -> None:
        kind, name, verb, rest = found["kind"], found["id"], found["verb"], found["rest"] or ""
        repository = self._repository(kind, name)
        if repository is None:
            return
        if verb == "parquet":
            self._json(self.hub.parquet.get(name, {}))
            return
        wanted, _, below = (unquote(part) for part in rest.partition("/"))
        revision = repository.find(wanted or "main")
        if revision is None:
            self._send(404, b'{"error":"Invalid rev id"}', {"X-Error-Code": "RevisionNotFound"})
            return
        commit, folder = revision
        files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
        if verb == "tree":
            self._json(list(_tree(files, below, recursive=query.get("recursive", [""])[0].lower() == "true")))
        elif verb == "paths-info":
            asked = parse_qs(body.decode()).get("paths", []) if body[:1] != b"{" else json.loads(body)["paths"]
            entries = [entry for entry in _tree(files, "", recursive=True) if entry["path"] in asked]
            self._json(entries)
        else:
            siblings = [{"rfilename": file} for file in files]
            if query.get("blobs", [""])[0].lower() == "true":
                siblings = [_sibling(entry) for entry in _tree(files, "", recursive=True)]
            day = "2020-10-27T00:00:00.000Z"
            self._json({
                "_id": commit[:24], "id": name, "modelId": name, "sha": commit, "private": repository.private,
                "gated": False, "disabled": False, "downloads": 0, "likes": 0, "tags": [], "siblings": siblings,
                "lastModified": day, "createdAt": day,
            })  # fmt: skip

    def _resolve(self, found: re.Match[str], cut: int | None) -> None:
        repository = self._repository("datasets" if found["kind"] else "models", found["id"])
        if repository is None:
            return
        revision = repository.find(unquote(found["revision"]))
        if revision is None:
            self._send(404, b"Invalid rev id", {"X-Error-Code": "RevisionNotFound"})
            return
        commit, folder = revision
        file = folder / unquote(found["file"])
        if not file.is_file():
            self._send(404, b"Entry not found", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
            return
        content = file.read_bytes()
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(content) < LARGE_BYTES:
            self._file(content, {**headers, "ETag": f'"{_blob_id(content)}"'}, cut)
            return
        sha = hashlib.sha256(content).hexdigest()
        linked = {"X-Linked-Size": str(len(content)), "X-Linked-Etag": f'"{sha}"', "ETag": f'"{_blob_id(content)}"'}
        self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/blob/{sha}"})

    def _blob(self, sha: str, cut: int | None) -> None:
        for repository in self.hub.repositories.values():
            for folder in repository.revisions.values():
                for path in folder.rglob("*"):
                    if path.is_file() and hashlib.sha256(content := path.read_bytes()).hexdigest() == sha:
                        self._file(content, {"ETag": f'"{sha}"', "Accept-Ranges": "bytes"}, cut)
                        return
        self._send(404, b"", {})

    def _file(self, content: bytes, headers: dict[str, str], cut: int | None) -> None:
        status, total = 200, len(content)
        if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            start, end = int(found[1]), int(found[2] or total - 1)
            status, content = 206, content[start : end + 1]
            headers = {**headers, "Content-Range": f"bytes {start}-{start + len(content) - 1}/{total}"}
        self._send(status, content, headers, cut)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        with suppress(ConnectionError):  # of a client that has given up
            self.send_response(status)
            for key, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "HEAD":
                return
            self.wfile.write(content if cut is None else content[:cut])
            if cut is not None and cut < len(content):
                self.close_connection = True


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def _sibling(entry: dict[str, Any]) -> dict[str, Any]:
    more = {"lfs": {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": 130}} if (lfs := entry.get("lfs")) else {}
    return {"rfilename": entry["path"], "size": entry["size"], "blobId": entry["oid"], **more}


def _tree(files: dict[str, Path], below: str, *, recursive: bool) -> Iterator[dict[str, object]]:
    folders = set()
    for name, path in files.items():
        if below and not name.startswith(below.rstrip("/") + "/"):
            continue
        inner = name[len(below.rstrip("/")) + 1 :] if below else name
        if "/" in inner and not recursive:
            folders.add(name[: len(name) - len(inner)] + inner.split("/")[0])
            continue
        content = path.read_bytes()
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
        if len(content) >= LARGE_BYTES:
            sha = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"oid": sha, "size": len(content), "pointerSize": 130}
        yield entry
    yield from ({"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders))


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a Hub on a free port of this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub = Hub(f"http://127.0.0.1:{port}", f"http://localhost:{port}")
    server.RequestHandlerClass = type("HandlerOfOneHub", (Handler,), {"hub": hub})
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.closing.set()
        server.shutdown()
        server.server_close()
        thread.join(timeout=5)
