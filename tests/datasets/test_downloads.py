"""Tests downloads from a real server that disconnects, changes files and sends wrong headers."""

import contextlib
import hashlib
import json
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from test_archives import GOOD, remaining_files, zip_of

from lgclip.datasets import download
from lgclip.datasets.download import TRIES, DownloadError, fetch
from lgclip.datasets.layout import Archive, Tree

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()


@dataclass
class FileServer:
    """Holds a server's file and behavior.

    Attributes:
        body: The file.
        etag: Its mark, none if empty.
        modified: Its date, none if empty.
        ranges: Whether it knows of parts.
        cuts: Bytes after which the next answers break off.
        status: Statuses of the next answers, before it behaves.
        extra_headers: Headers that every answer has besides.
        length: Whether it says how long the file is.
        requested_ranges: The `Range` of every request.
    """

    body: bytes = BODY
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    extra_headers: dict[str, str] = field(default_factory=dict)
    length: bool = True
    requested_ranges: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers as `FileServer` describes (RFC 9110, sections 13 and 14)."""

    file_server: FileServer

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        file_server = self.file_server
        expected = self.headers.get("Range")
        file_server.requested_ranges.append(expected)
        if file_server.status:
            self.send_error(file_server.status.pop(0))
            return
        known = self.headers.get("If-Range") in (None, file_server.etag, file_server.modified)
        start = (
            int(expected.removeprefix("bytes=").removesuffix("-"))
            if expected and file_server.ranges and known
            else None
        )
        if start is not None and start >= len(file_server.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(file_server.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if start is None else 206)
        rest = file_server.body[start or 0 :]
        marks = {"ETag": file_server.etag, "Last-Modified": file_server.modified, **file_server.extra_headers}
        if start is not None:
            marks["Content-Range"] = f"bytes {start}-{len(file_server.body) - 1}/{len(file_server.body)}"
        if file_server.length:
            marks["Content-Length"] = str(len(rest))
        for name, value in marks.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest[: file_server.cuts.pop(0)] if file_server.cuts else rest)


@pytest.fixture
def file_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    file_server = FileServer()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"file_server": file_server}))
    file_server.url = f"http://127.0.0.1:{server.server_address[1]}/data/set.bin"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield file_server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("checksum", [MD5, SHA256])
@pytest.mark.parametrize("length", [True, False])
def test_download_fetches_the_complete_file(
    file_server: FileServer, checksum: str, length: bool, tmp_path: Path
) -> None:
    file_server.length = length
    place = tmp_path / "new" / "set.bin"
    assert fetch(file_server.url, place, checksum) == place
    assert place.read_bytes() == BODY
    assert remaining_files(place.parent) == {"set.bin"}
    fetch(file_server.url, place, checksum)
    assert file_server.requested_ranges == [None], "what is there is not asked for again"


def test_interrupted_download_resumes(file_server: FileServer, tmp_path: Path) -> None:
    file_server.cuts = [1_000_000, 500_000]
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == [None, "bytes=1000000-", "bytes=1500000-"]


def test_killed_download_resumes_in_a_later_run(file_server: FileServer, tmp_path: Path) -> None:
    file_server.cuts = [700_000] + [0] * TRIES
    with pytest.raises(DownloadError, match=r"0\.7 MB are kept"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert remaining_files(tmp_path) == {"set.bin.part", "set.bin.part.json"}
    assert (tmp_path / "set.bin.part").read_bytes() == BODY[:700_000]
    file_server.requested_ranges.clear()
    fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert file_server.requested_ranges == ["bytes=700000-"]
    assert remaining_files(tmp_path) == {"set.bin"}


def test_complete_part_is_not_downloaded_again(file_server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(BODY)
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": file_server.url, "version": '"one"'}))
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("part", [BODY + b"more", b"rubbish"])
def test_mismatched_part_is_discarded(file_server: FileServer, part: bytes, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(part)
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": file_server.url, "version": '"one"'}))
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges[-1] is None


@pytest.mark.parametrize("note", [None, "{", '{"url": "http://elsewhere/", "version": "\\"one\\""}', '["no"]'])
def test_part_of_unknown_origin_is_discarded(file_server: FileServer, note: str | None, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"another file")
    if note is not None:
        (tmp_path / "set.bin.part.json").write_text(note)
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == [None]


@pytest.mark.parametrize(
    "marks", [{"etag": '"one"'}, {"etag": "", "modified": "Mon, 06 Nov 2017 08:49:37 GMT"}], ids=["ETag", "date"]
)
def test_changed_file_restarts_the_download(file_server: FileServer, marks: dict[str, str], tmp_path: Path) -> None:
    for name, value in marks.items():
        setattr(file_server, name, value)
    file_server.cuts = [1_000_000] + [0] * TRIES
    with pytest.raises(DownloadError):
        fetch(file_server.url, tmp_path / "set.bin")
    file_server.body = BODY[::-1]
    for name in marks:
        setattr(file_server, name, file_server.etag and '"two"' if name == "etag" else file_server.modified and "later")
    assert fetch(file_server.url, tmp_path / "set.bin").read_bytes() == BODY[::-1]
    assert file_server.requested_ranges[-1] == "bytes=1000000-", "it was asked for the rest and gave the whole"


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_weak_validators_restart_the_download(file_server: FileServer, etag: str, tmp_path: Path) -> None:
    file_server.etag = etag
    file_server.cuts = [1_000_000]
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == [None, None]


def test_server_without_ranges_sends_everything(file_server: FileServer, tmp_path: Path) -> None:
    file_server.ranges = False
    file_server.cuts = [1_000_000]
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == [None, "bytes=1000000-"]


def test_mixed_versions_are_downloaded_again(file_server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1_000_000)  # what a server that lies of its mark leaves
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": file_server.url, "version": '"one"'}))
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert file_server.requested_ranges == ["bytes=1000000-", None]


def test_wrong_checksum_is_not_kept(file_server: FileServer, tmp_path: Path) -> None:
    file_server.body = b"a page that says: moved"
    with pytest.raises(DownloadError, match=rf"its md5 is .*, not {MD5[4:]}, as published; it is not kept"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert not remaining_files(tmp_path)
    assert file_server.requested_ranges == [None], "the same wrong file is not had twice"


def test_manually_placed_file_is_verified(file_server: FileServer, tmp_path: Path) -> None:
    place = tmp_path / "set.bin"
    place.write_bytes(b"half")
    with pytest.raises(DownloadError, match=r"set\.bin is there already: move it away"):
        fetch(file_server.url, place, SHA256)
    assert place.read_bytes() == b"half"
    assert not file_server.requested_ranges


def test_unpublished_checksum_is_recorded(
    file_server: FileServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fetch(file_server.url, tmp_path / "set.bin")
    assert f"its sha256 is {SHA256[7:]}" in caplog.text
    assert (tmp_path / "set.bin.sha256").read_text() == f"{SHA256[7:]}  set.bin\n"


@pytest.mark.parametrize("status", [403, 404, 410])
def test_missing_file_fails_immediately(file_server: FileServer, status: int, tmp_path: Path) -> None:
    file_server.status = [status]
    with pytest.raises(DownloadError, match=rf"the server answers {status} .*by hand and put it into {tmp_path}"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert len(file_server.requested_ranges) == 1


def test_busy_server_is_retried_a_few_times(file_server: FileServer, tmp_path: Path) -> None:
    file_server.status = [503, 429, 500]
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    file_server.status = [503] * 50
    with pytest.raises(DownloadError, match=rf"the server answers 503, {TRIES} times in a row; start again later"):
        fetch(file_server.url, tmp_path / "other.bin", MD5)
    assert len(file_server.requested_ranges) == 4 + TRIES


def test_slow_progress_is_not_aborted(file_server: FileServer, tmp_path: Path) -> None:
    file_server.cuts = [100_000] * (2 * TRIES)
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert len(file_server.requested_ranges) == 2 * TRIES + 1


def test_unreachable_server_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/x: the connection failed .*times in a row"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", MD5)
    with pytest.raises(DownloadError, match="cannot be asked for"):
        fetch("nothing://x", tmp_path / "x", MD5)


def test_content_encoding_is_not_decoded(file_server: FileServer, tmp_path: Path) -> None:
    """Checks a .tar.gz sent with `Content-Encoding: gzip`, as Oxford's server does; decoding it would save a .tar."""
    file_server.extra_headers = {"Content-Encoding": "gzip"}
    assert fetch(file_server.url, tmp_path / "set.bin", MD5).read_bytes() == BODY


# Both, as a data set asks for them.


def serve_tree(file_server: FileServer, path: Path, checked: bool = True) -> Tree:
    file_server.body = path.read_bytes()
    checksum = "sha256:" + hashlib.sha256(file_server.body).hexdigest() if checked else None
    url = f"{file_server.url.rpartition('/')[0]}/{path.name}?download=1"
    return Tree("own", "http://page", (Archive(url, "set", checksum),), ("names.txt", "images"), ("set", ""))


def test_tree_is_downloaded_once(file_server: FileServer, tmp_path: Path) -> None:
    tree = serve_tree(file_server, zip_of(tmp_path / "set.zip", *GOOD))
    with pytest.raises(ValueError, match=r"not complete, missing: names\.txt, images\. Give dataset\.download=true"):
        tree.place(tmp_path / "root", download=False)
    assert tree.place(tmp_path / "root", download=True) == tmp_path / "root" / "set"
    assert remaining_files(tmp_path / "root") == {"set", "note.txt", ".download.lock"}
    assert tree.place(tmp_path / "root", download=True) == tree.place(tmp_path / "root" / "set", download=False)
    assert len(file_server.requested_ranges) == 1


def test_manually_placed_archive_is_extracted(file_server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    tree = serve_tree(file_server, zip_of(tmp_path / "root" / "set.zip", *GOOD), checked=False)
    tree.place(tmp_path / "root", download=True)
    assert {"set", "set.zip"} <= remaining_files(tmp_path / "root")
    assert not file_server.requested_ranges


def test_partial_tree_is_not_overwritten(file_server: FileServer, tmp_path: Path) -> None:
    tree = serve_tree(file_server, zip_of(tmp_path / "set.zip", *GOOD))
    (tmp_path / "root" / "set" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"set is not complete, missing: names\.txt\. .*move what is half there"):
        tree.place(tmp_path / "root", download=True)
    assert not file_server.requested_ranges


def test_concurrent_processes_download_once(file_server: FileServer, tmp_path: Path) -> None:
    tree = serve_tree(file_server, zip_of(tmp_path / "set.zip", *GOOD))
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: tree.place(tmp_path / "root", download=True), range(4)))
    assert results == [tmp_path / "root" / "set"] * 4
    assert len(file_server.requested_ranges) == 1


def test_dripping_download_is_given_up(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks a server that sends a few bytes now and then: no read of it takes long, and it makes progress."""
    monkeypatch.setattr(download, "_WINDOW_S", 0.1)

    def drip(self: Handler) -> None:
        file_server.requested_ranges.append(self.headers.get("Range"))
        self.send_response(200)
        self.send_header("Content-Length", str(len(BODY)))
        self.end_headers()
        with contextlib.suppress(OSError):
            for _ in range(200):
                self.wfile.write(b"x")
                time.sleep(0.02)

    monkeypatch.setattr(Handler, "do_GET", drip)
    start = time.monotonic()
    with pytest.raises(DownloadError, match=rf"fewer than 1000 bytes per second were received, {TRIES} times in a row"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert time.monotonic() - start < 8
    assert len(file_server.requested_ranges) == TRIES


def test_dripping_headers_are_given_up(
    file_server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "_HEADERS_S", 0.1)

    def drip(self: Handler) -> None:
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 60:
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)

    monkeypatch.setattr(Handler, "do_GET", drip)
    with pytest.raises(DownloadError, match=rf"no answer within 0 s, {TRIES} times in a row"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)


@pytest.mark.parametrize("length", [True, False])
def test_download_larger_than_the_disk_is_refused(
    file_server: FileServer, length: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_server.length = length
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: SimpleNamespace(free=download._RESERVE + 10))
    with pytest.raises(DownloadError, match=r"GB more, and .* has 0\.1 GB left; make room"):
        fetch(file_server.url, tmp_path / "set.bin", MD5)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 1000
