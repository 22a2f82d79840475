"""Serves S3 on this machine by moto, counts its requests, and spoils some of them on purpose."""

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import boto3
import pytest
import requests
from botocore.config import Config
from moto.core.models import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from moto.s3.models import s3_backends
from werkzeug.serving import WSGIRequestHandler, make_server

from lgclip.store import remote, tar_shards

BUCKET = "prototypes"
CONTENT = bytes(range(256)) * 40
"""Content of a small object."""

Fault = Callable[[dict[str, Any], Any], Iterable[bytes] | None]
"""Answers a request in place of the server; None lets it through."""


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log(self, type: str, message: str, *args: Any) -> None:
        """Prints nothing."""


@dataclass
class S3Server:
    """Describes a running server.

    Attributes:
        url: Its address.
        requests: Method and path of each request.
        faults: What spoils requests, in order; each is used up by the first request that it answers.
        is_down: Whether every connection is lost.
    """

    url: str = ""
    requests: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    is_down: bool = False

    @property
    def client(self) -> Any:
        """Returns a client of it that is not counted on: the tests' own view of the bucket."""
        return boto3.client("s3", endpoint_url=self.url, config=Config(retries={"max_attempts": 0}))

    def objects(self, prefix: str = "") -> dict[str, bytes]:
        """Returns the content of all objects of the bucket, by key."""
        contents: dict[str, bytes] = {}
        for page in self.client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=prefix):
            for entry in page.get("Contents", ()):
                contents[entry["Key"]] = self.client.get_object(Bucket=BUCKET, Key=entry["Key"])["Body"].read()
        return contents

    def fill(self, keys: Iterable[str]) -> None:
        """Puts objects of one byte into the bucket, without a request each."""
        for key in keys:
            s3_backends[DEFAULT_ACCOUNT_ID]["aws"].put_object(BUCKET, key, b"x")

    def counts(self) -> Counter[str]:
        """Returns the number of requests so far: LIST, GET, PUT, and others by their method."""
        kinds: list[str] = []
        for request in self.requests:
            method, path = request.split(" ", 1)
            kinds.append("LIST" if method == "GET" and "list-type" in path else method)
        return Counter(kinds)

    def __call__(self, app: Any) -> Any:
        """Returns the WSGI application that stands before the server's own."""

        def before(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            query = environ.get("QUERY_STRING", "")
            self.requests.append(f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}?{query}".rstrip("?"))
            if self.is_down:
                return lose_connection(environ, start)
            for fault in self.faults:
                try:
                    answer = fault(environ, start)
                except ConnectionError:
                    self.faults.remove(fault)
                    raise
                if answer is not None:
                    self.faults.remove(fault)
                    return answer
            return app(environ, start)

        return before


@contextmanager
def serve_s3() -> Iterator[S3Server]:
    """Serves S3 with one bucket for a block."""
    server = S3Server()
    app = server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    server.url = f"http://127.0.0.1:{http.server_port}"
    try:
        # moto keeps its buckets in this process, from one server to the next.
        requests.post(f"{server.url}/moto-api/reset", timeout=10).raise_for_status()
        server.client.create_bucket(Bucket=BUCKET)
        server.requests.clear()
        yield server
    finally:
        http.shutdown()
        http.server_close()


def is_for(environ: dict[str, Any], method: str, part: str = "") -> bool:
    """Checks whether a request has a method, or is a LIST, and has a part in its path."""
    actual = "LIST" if _is_listing(environ) else environ["REQUEST_METHOD"]
    return actual == method and part in environ["PATH_INFO"]


def _is_listing(environ: dict[str, Any]) -> bool:
    return "list-type" in parse_qs(environ.get("QUERY_STRING", ""))


def unavailable(method: str, part: str = "", *, code: str = "SlowDown", status: str = "503 Slow Down") -> Fault:
    """Returns a fault that refuses a request for the moment."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if not is_for(environ, method, part):
            return None
        _read_all(environ)
        text = f"<Error><Code>{code}</Code><Message>Refused on purpose.</Message></Error>".encode()
        start(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(text)))])
        return [text]

    return answer


def slow(method: str, part: str = "", *, seconds: float = 0.5) -> Fault:
    """Returns a fault that answers late, and then loses the connection."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if not is_for(environ, method, part):
            return None
        time.sleep(seconds)
        return lose_connection(environ, start)

    return answer


def cut_upload(part: str) -> Fault:
    """Returns a fault that loses the connection when half of an upload has arrived."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if not is_for(environ, "PUT", part):
            return None
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0) // 2)
        return lose_connection(environ, start)

    return answer


def cut_download(part: str, content: bytes) -> Fault:
    """Returns a fault that sends half of an object and loses the connection."""

    def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes] | None:
        if not is_for(environ, "GET", part):
            return None
        start("200 OK", [("Content-Length", str(len(content))), ("ETag", '"x"')])

        def half() -> Iterator[bytes]:
            yield content[: len(content) // 2]
            lose_connection(environ, start)

        return half()

    return answer


def lose_connection(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    """Closes a connection without an answer."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.shutdown(socket.SHUT_RDWR)
    raise ConnectionResetError("lost on purpose")


def _read_all(environ: dict[str, Any]) -> None:
    environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))


def on_machine(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Continues on another machine, which has an empty cache at first."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
    remote._mirror.cache_clear()
    remote._used.clear()
    tar_shards.shards_in.cache_clear()
