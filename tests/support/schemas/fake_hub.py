"""A Hub on this machine: the requests that a push, a pull and reading through fsspec make, answered from memory.

Written from what `huggingface_hub` sends and expects, without Xet (the tests switch it off). Faults are set by a test.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_test"
LFS = (".arrow", ".parquet", ".zip", ".bin")


@dataclass
class Repository:
    """One data set or model: its commits, oldest first, each a whole tree."""

    kind: str
    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, tree: dict[str, bytes]) -> str:
        """Add a commit; its id follows from what came before."""
        oid = hashlib.sha1(f"{len(self.commits)} {sorted(tree)}".encode()).hexdigest()
        self.commits.append((oid, tree))
        return oid

    @property
    def tree(self) -> dict[str, bytes]:
        """Of the last commit."""
        return self.commits[-1][1]

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """The commit of a revision."""
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit[0] == revision), None)


@dataclass
class FakeHub:
    """What the server knows, and what it is to do wrong."""

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    """By "kind/owner/name"."""
    blobs: dict[str, bytes] = field(default_factory=dict)
    """Large files by SHA-256."""
    uploads: list[str] = field(default_factory=list)
    """SHA-256 of every large file that was sent, in order."""
    refuse_from: int | None = None
    """Commits are refused (`status`) once there are more than so many."""
    status: int = 500
    read_only: bool = False
    requests: list[str] = field(default_factory=list)

    def add(self, name: str, tree: dict[str, bytes], *, kind: str = "dataset", private: bool = False) -> Repository:
        """Put a repository there."""
        repository = self.repositories[f"{kind}/{name}"] = Repository(kind, private)
        repository.commit(tree)
        return repository

    def dataset(self, name: str) -> Repository:
        """One that is there."""
        return self.repositories[f"dataset/{name}"]


_API = re.compile(
    r"/api/(dataset|model|space)s/([^/]+/[^/]+)(?:/(revision|tree|paths-info|preupload|commit)/([^/]+)(.*))?"
)
_RESOLVE = re.compile(r"/datasets/([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
_BATCH = re.compile(r"/datasets/([^/]+/[^/]+)\.git/info/lfs/objects/batch")


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Be quiet."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        if method == "PUT":
            self.hub.blobs[path.rpartition("/")[2]] = body
            self.hub.uploads.append(path.rpartition("/")[2])
            return self._send(200, {})
        if path == "/api/validate-yaml":
            return self._send(200, {"errors": [], "warnings": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        if match := _BATCH.fullmatch(path):
            return self._batch(json.loads(body))
        if match := _RESOLVE.fullmatch(path):
            return self._resolve(*match.groups())
        if match := _API.fullmatch(path):
            kind, name, what, revision, rest = match.groups()
            return self._api(kind, name, what, revision, rest, body)
        return self._send(404, {"error": f"the fake knows nothing of {path}"})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _create(self, wish: dict[str, Any]) -> None:
        name = f"{wish['organization']}/{wish['name']}"
        if not self._known:
            return self._send(401, {"error": "Invalid username or password."})
        if self.hub.read_only:
            return self._send(403, {"error": "You don't have the rights"})
        url = f"{self.hub.endpoint}/datasets/{name}"
        if f"{wish['type']}/{name}" in self.hub.repositories:
            return self._send(409, {"error": "You already created this dataset repo", "url": url})
        self.hub.add(name, {".gitattributes": b"*.arrow filter=lfs\n"}, private=wish.get("visibility") == "private")
        return self._send(200, {"url": url})

    def _repository(self, kind: str, name: str) -> Repository | None:
        repository = self.hub.repositories.get(f"{kind}/{name}")
        if repository is None or (repository.private and not self._known):
            self._send(404 if self._known else 401, {"error": "Repository not found"}, code="RepoNotFound")
            return None
        return repository

    def _api(self, kind: str, name: str, what: str | None, revision: str | None, rest: str | None, body: bytes) -> None:
        if (repository := self._repository(kind, name)) is None:
            return None
        if what == "commit":
            return self._commit(name, repository, [json.loads(line) for line in body.splitlines()])
        if what == "preupload":
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(LFS) else "regular" for path in files}
            return self._send(
                200, {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
            )
        if (commit := repository.at(revision or "main")) is None:
            return self._send(404, {"error": "Invalid rev id"}, code="RevisionNotFound")
        if what in (None, "revision"):
            facts = {"id": name, "sha": commit[0], "private": repository.private, "siblings": [], "tags": []}
            return self._send(200, facts)
        if what == "paths-info":
            wanted = json.loads(body)["paths"]
            return self._send(200, [file for file in _listing(commit[1], "", True) if file["path"] in wanted])
        below = (rest or "").strip("/")
        recursive = "recursive=true" in urlsplit(self.path).query.lower()
        listing = _listing(commit[1], below, recursive)
        if below and not listing:
            return self._send(404, {"error": "not found"}, code="EntryNotFound")
        return self._send(200, listing)

    def _batch(self, wish: dict[str, Any]) -> None:
        objects = []
        for item in wish["objects"]:
            actions = {"upload": {"href": f"{self.hub.endpoint}/upload/{item['oid']}", "header": {}}}
            objects.append(item if item["oid"] in self.hub.blobs else {**item, "actions": actions})
        self._send(200, {"objects": objects, "transfer": "basic"})

    def _commit(self, name: str, repository: Repository, lines: list[dict[str, Any]]) -> None:
        hub, tree = self.hub, dict(repository.tree)
        if hub.refuse_from is not None and len(repository.commits) > hub.refuse_from:
            return self._send(hub.status, {"error": "made up"})
        for line in lines:
            value = line["value"]
            if line["key"] == "header" and value.get("parentCommit") not in (None, repository.commits[-1][0]):
                return self._send(412, {"error": "A commit has happened since"})
            if line["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            if line["key"] == "lfsFile":
                tree[value["path"]] = hub.blobs[value["oid"]]
        oid = repository.commit(tree)
        return self._send(
            200, {"commitUrl": f"{hub.endpoint}/datasets/{name}/commit/{oid}", "commitOid": oid, "success": True}
        )

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (repository := self._repository("dataset", name)) is None:
            return None
        commit = repository.at(revision)
        if commit is None or path not in commit[1]:
            return self._send(404, {"error": "Entry not found"}, code="EntryNotFound")
        content, status = commit[1][path], 200
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": commit[0]}
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), int(match[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
            content, status = content[first : last + 1], 206
        return self._send(status, content, headers=headers)

    def _send(self, status: int, document: Any, *, code: str = "", headers: dict[str, str] | None = None) -> None:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        if code:
            self.send_header("X-Error-Code", code)
        if status >= 400:
            self.send_header("X-Error-Message", document["error"])
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _listing(tree: dict[str, bytes], below: str, recursive: bool) -> list[dict[str, Any]]:
    listing: dict[str, dict[str, Any]] = {}
    prefix = f"{below}/" if below else ""
    for path, content in sorted(tree.items()):
        if not path.startswith(prefix):
            continue
        folder, deeper, _ = path.removeprefix(prefix).partition("/")
        if deeper:
            listing[prefix + folder] = {"type": "directory", "path": prefix + folder, "oid": "0" * 40, "size": 0}
        if not deeper or recursive:
            size = len(content)
            oid = hashlib.sha1(b"blob %d\0" % size + content).hexdigest()
            listing[path] = {"type": "file", "path": path, "oid": oid, "size": size}
            if path.endswith(LFS):
                digest = hashlib.sha256(content).hexdigest()
                listing[path]["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
    return list(listing.values())


@contextmanager
def running_hub() -> Iterator[FakeHub]:
    """A server on a free port of this machine."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
