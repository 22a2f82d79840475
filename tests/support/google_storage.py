"""Serves Google's storage on this machine by an emulator, counts its requests, and refuses some of them on purpose."""

import io
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import HTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from gcp_storage_emulator.exceptions import NotFound
from gcp_storage_emulator.handlers.buckets import create_bucket
from gcp_storage_emulator.server import RequestHandler
from gcp_storage_emulator.storage import Storage

BUCKET = "prototypes"


@dataclass(frozen=True)
class Refusal:
    """Describes a request that is refused once.

    Attributes:
        method: Its method.
        part: A part of its path.
        status: Status of the answer.
        message: What the answer says.
    """

    method: str
    part: str = ""
    status: int = 503
    message: str = "Refused on purpose."


@dataclass
class GoogleServer:
    """Describes a running server.

    Attributes:
        storage: The emulator's buckets.
        url: Its address.
        requests: Method and path of each request.
        refusals: Requests that are refused, in order; each is used up by the first request that fits.
        page: Objects in one answer to a listing.
    """

    storage: Any
    url: str = ""
    requests: list[str] = field(default_factory=list)
    refusals: list[Refusal] = field(default_factory=list)
    page: int = 1000

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Returns the content of all objects of the bucket, by name."""
        entries, _ = self.storage.get_file_list(BUCKET, prefix)
        return {entry["name"]: self.storage.get_file(BUCKET, entry["name"]) for entry in entries}

    def listings(self) -> int:
        """Returns the number of listings so far."""
        return sum(request.startswith("GET ") and urlsplit(request).path.endswith("/o") for request in self.requests)


class _Handler(RequestHandler):
    """Adds to the emulator what it lacks: pages of a listing, and uploads that replace nothing."""

    def __init__(self, state: GoogleServer, *arguments: Any) -> None:
        self.state = state
        super().__init__(state.storage, *arguments)

    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:  # noqa: N802
        if self._refuse("GET", b""):
            return
        parts = urlsplit(self.path)
        if parts.path.endswith("/o"):
            self._list(parts.path.split("/")[-2], parse_qs(parts.query))
        else:
            super().do_GET()

    def do_POST(self) -> None:  # noqa: N802
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self._refuse("POST", body):
            return
        if "ifGenerationMatch=0" in self.path and self._exists(body):
            self._answer(412, {"error": {"message": "At least one of the pre-conditions you specified did not hold."}})
            return
        # The emulator reads the body again.
        self.rfile = io.BytesIO(body)
        super().do_POST()

    def _refuse(self, method: str, body: bytes) -> bool:
        self.state.requests.append(f"{method} {unquote(self.path)}")
        # The name of an object that is uploaded is in the body.
        text = unquote(self.path) + body[:1000].decode(errors="replace")
        for refusal in self.state.refusals:
            if refusal.method == method and refusal.part in text:
                self.state.refusals.remove(refusal)
                self._answer(refusal.status, {"error": {"code": refusal.status, "message": refusal.message}})
                return True
        return False

    def _exists(self, body: bytes) -> bool:
        name = json.loads(body.split(b"\n\n", 1)[1].split(b"\n--", 1)[0])["name"]
        return name in self.state.objects(name)

    def _list(self, bucket: str, query: dict[str, list[str]]) -> None:
        try:
            entries, _ = self.state.storage.get_file_list(bucket, query.get("prefix", [""])[0])
        except NotFound:
            self._answer(404, {"error": {"code": 404, "message": "The specified bucket does not exist."}})
            return
        start = int(query.get("pageToken", ["0"])[0])
        stop = start + min(self.state.page, int(query.get("maxResults", ["1000"])[0]))
        answer: dict[str, Any] = {"kind": "storage#objects", "items": entries[start:stop]}
        if stop < len(entries):
            answer["nextPageToken"] = str(stop)
        self._answer(200, answer)

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


class _Server(HTTPServer):
    # The emulator serves one request at a time, and a store asks for sixteen.
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: a client that stops reading an answer is none of the server's errors."""


@contextmanager
def serve_google_storage() -> Iterator[GoogleServer]:
    """Serves Google's storage with one bucket for a block."""
    for name in ("gcp_storage_emulator", "api"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    state = GoogleServer(Storage(use_memory_fs=True))
    create_bucket(BUCKET, state.storage)
    with _Server(("127.0.0.1", 0), lambda *arguments: _Handler(state, *arguments)) as http:
        Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
        state.url = f"http://127.0.0.1:{http.server_port}"
        try:
            yield state
        finally:
            http.shutdown()
