"""Implements the part of the model hub's HTTP API that uploads and downloads use, with repositories in memory."""

import base64
import hashlib
import json
import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

TOKEN = "hf_test_0123456789_very_secret"
READ_TOKEN = "hf_test_0123456789_read_only"


@dataclass
class Repository:
    """Holds the files of each commit, and the commit of each branch and tag.

    Attributes:
        private: Whether it is hidden from those without a token.
        commits: Files of each commit by their path.
        refs: Commit of each branch and tag.
    """

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, changes: dict[str, bytes], deleted: Collection[str] = ()) -> str:
        """Adds files to the main branch, and takes others away; returns the new commit."""
        files = {name: data for name, data in {**self.files("main"), **changes}.items() if name not in deleted}
        content = json.dumps([len(self.commits), {name: _digest(data) for name, data in sorted(files.items())}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = files
        self.refs["main"] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """Returns the commit of a branch, tag or commit; None if there is none."""
        commit = self.refs.get(revision, revision)
        return commit if commit in self.commits else None

    def files(self, revision: str) -> dict[str, bytes]:
        """Returns the files of a revision; none for a repository without a commit."""
        return self.commits.get(self.refs.get(revision, revision), {})


class HubServer(ThreadingHTTPServer):
    """Serves repositories of models, and takes every file as a small one: large ones go to another server of the hub's.

    Attributes:
        repositories: Repositories by `owner/name`.
        requests: Method and path of each request.
        url: Address of the server.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serve_hub() -> Iterator[HubServer]:
    """Serves a hub for a block."""
    with HubServer() as server:
        Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()  # seconds until it sees that it ends
        try:
            yield server
        finally:
            server.shutdown()


def use_hub(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the hub's client of a test ask a server, with the right to write."""
    use_hub_address(server.url, monkeypatch)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def use_hub_address(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the hub's client of a test ask a server at an address."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        self._dispatch(b"")

    def do_HEAD(self) -> None:
        self._dispatch(b"")

    def do_POST(self) -> None:
        self._dispatch(self._body())

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["content-length"]))

    def _dispatch(self, body: bytes) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server.requests.append(f"{self.command} {path}")
        for pattern, method in _ROUTES:
            match = re.fullmatch(pattern, f"{self.command} {path}")
            if match:
                method(self, body, **match.groupdict())
                return
        self._send(501, {"error": f"{self.command} {path} is no part of this server"})

    @property
    def _token(self) -> str:
        return (self.headers.get("authorization") or "").removeprefix("Bearer ")

    def _send(self, status: int, content: Any, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _refuse(self) -> bool:
        """Answers a request that writes without a token that may; returns whether it did."""
        if self._token not in (TOKEN, READ_TOKEN):
            self._send(401, {"error": "Invalid username or password."})
            return True
        if self._token == READ_TOKEN:
            self._send(403, {"error": f"You don't have the rights to create a model with {READ_TOKEN}"})
            return True
        return False

    def create(self, body: bytes) -> None:
        if self._refuse():
            return
        values = json.loads(body)
        owner = values.get("organization") or "me"
        repo = f"{owner}/{values['name']}"
        if repo in self.server.repositories:
            self._send(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{repo}"})
            return
        private = bool(values.get("private")) or values.get("visibility") == "private"
        self.server.repositories[repo] = Repository(private)
        self._send(200, {"url": f"{self.server.url}/{repo}", "name": repo, "id": repo})

    def validate(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def preupload(self, body: bytes, repo: str, revision: str) -> None:
        if self._refuse():
            return
        files = [
            {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
            for file in json.loads(body)["files"]
        ]
        self._send(200, {"files": files, "commitOid": None})

    def commit(self, body: bytes, repo: str, revision: str) -> None:
        if self._refuse():
            return
        changes: dict[str, bytes] = {}
        deleted: set[str] = set()
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                changes[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            elif entry["key"] == "deletedFile":
                deleted.add(entry["value"]["path"])
        commit = self.server.repositories[repo].commit(changes, deleted)
        self._send(
            200, {"success": True, "commitOid": commit, "commitUrl": f"{self.server.url}/{repo}/commit/{commit}"}
        )

    def _resolved(self, repo: str, revision: str) -> tuple[Repository, str] | None:
        """Returns a repository and the commit of a revision; None if it has answered that there is none."""
        repository = self.server.repositories.get(repo)
        if repository is None or (repository.private and self._token not in (TOKEN, READ_TOKEN)):
            # The hub does not say which of the two it is.
            self._send(401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        commit = repository.resolve(revision)
        if commit is None:
            self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
            return None
        return repository, commit

    def info(self, body: bytes, repo: str, revision: str = "main") -> None:
        resolved = self._resolved(repo, revision)
        if resolved:
            repository, commit = resolved
            files = [{"rfilename": name} for name in repository.files(commit)]
            self._send(200, {"id": repo, "sha": commit, "private": repository.private, "siblings": files})

    def check_write(self, body: bytes, repo: str) -> None:
        if not self._refuse():
            self._send(200, {})

    def tree(self, body: bytes, repo: str, revision: str, folder: str | None = None) -> None:
        resolved = self._resolved(repo, revision)
        if resolved:
            repository, commit = resolved
            files = [
                {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}
                for name, content in repository.files(commit).items()
                if folder is None or name.startswith(f"{folder}/")
            ]
            if folder is not None and not files:
                self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
                return
            self._send(200, files)

    def file(self, body: bytes, repo: str, revision: str, name: str) -> None:
        resolved = self._resolved(repo, revision)
        if resolved is None:
            return
        repository, commit = resolved
        content = repository.files(commit).get(name)
        if content is None:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        headers = {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": commit}
        span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range") or "")
        if span:
            start, end = int(span[1]), int(span[2]) + 1
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(content)}"
            self._send(206, content[start:end], headers)
            return
        self._send(200, content, headers)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


_API = r"/api/(?:models|datasets)"
_REPO = r"(?P<repo>[^/]+/[^/]+)"
_ROUTES = (
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate),
    (rf"POST {_API}/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST {_API}/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
    (rf"GET {_API}/{_REPO}/revision/(?P<revision>.+)", _Handler.info),
    (rf"GET {_API}/{_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<folder>.+))?", _Handler.tree),
    (rf"GET {_API}/{_REPO}/auth-check/write", _Handler.check_write),
    (rf"GET {_API}/{_REPO}", _Handler.info),
    (rf"(?:GET|HEAD) (?:/datasets)?/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.file),
)
