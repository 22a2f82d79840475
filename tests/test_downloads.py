"""Downloads from a real server that cuts, changes and lies."""

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from test_archives import GOOD, left, zip_of

from lgclip.datasets import download
from lgclip.datasets.download import TRIES, DownloadError, fetch
from lgclip.datasets.tree import Archive, Tree

BODY = np.random.default_rng(0).bytes(3_000_000)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()
SHA256 = "sha256:" + hashlib.sha256(BODY).hexdigest()


@dataclass
class Shelf:
    """What the server holds and how it behaves.

    Attributes:
        body: The file.
        etag: Its mark, none if empty.
        modified: Its date, none if empty.
        ranges: Whether it knows of parts.
        cuts: Bytes after which the next answers break off.
        status: Statuses of the next answers, before it behaves.
        said: Headers that every answer has besides.
        length: Whether it says how long the file is.
        asked: The `Range` of every request.
    """

    body: bytes = BODY
    etag: str = '"one"'
    modified: str = ""
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)
    status: list[int] = field(default_factory=list)
    said: dict[str, str] = field(default_factory=dict)
    length: bool = True
    asked: list[str | None] = field(default_factory=list)
    url: str = ""


class Handler(BaseHTTPRequestHandler):
    """Answers as the shelf says (RFC 9110, 13 and 14)."""

    shelf: Shelf

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        shelf, wanted = self.shelf, self.headers.get("Range")
        shelf.asked.append(wanted)
        if shelf.status:
            self.send_error(shelf.status.pop(0))
            return
        known = self.headers.get("If-Range") in (None, shelf.etag, shelf.modified)
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and shelf.ranges and known else None
        if start is not None and start >= len(shelf.body):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(shelf.body)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200 if start is None else 206)
        rest = shelf.body[start or 0 :]
        marks = {"ETag": shelf.etag, "Last-Modified": shelf.modified, **shelf.said}
        if start is not None:
            marks["Content-Range"] = f"bytes {start}-{len(shelf.body) - 1}/{len(shelf.body)}"
        if shelf.length:
            marks["Content-Length"] = str(len(rest))
        for name, value in marks.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(rest[: shelf.cuts.pop(0)] if shelf.cuts else rest)


@pytest.fixture
def shelf(monkeypatch: pytest.MonkeyPatch) -> Iterator[Shelf]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    shelf = Shelf()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Own", (Handler,), {"shelf": shelf}))
    shelf.url = f"http://127.0.0.1:{server.server_address[1]}/data/set.bin"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield shelf
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("checksum", [MD5, SHA256])
@pytest.mark.parametrize("length", [True, False])
def test_a_file_is_had_whole_and_nothing_else(shelf: Shelf, checksum: str, length: bool, tmp_path: Path) -> None:
    shelf.length = length
    place = tmp_path / "new" / "set.bin"
    assert fetch(shelf.url, place, checksum) == place
    assert place.read_bytes() == BODY
    assert left(place.parent) == {"set.bin"}
    fetch(shelf.url, place, checksum)
    assert shelf.asked == [None], "what is there is not asked for again"


def test_a_cut_download_goes_on_where_it_stopped(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [1_000_000, 500_000]
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == [None, "bytes=1000000-", "bytes=1500000-"]


def test_a_later_run_goes_on_where_an_earlier_one_was_killed(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [700_000] + [0] * TRIES
    with pytest.raises(DownloadError, match=r"0\.7 MB are kept"):
        fetch(shelf.url, tmp_path / "set.bin", MD5)
    assert left(tmp_path) == {"set.bin.part", "set.bin.part.json"}
    assert (tmp_path / "set.bin.part").read_bytes() == BODY[:700_000]
    shelf.asked.clear()
    fetch(shelf.url, tmp_path / "set.bin", MD5)
    assert shelf.asked == ["bytes=700000-"]
    assert left(tmp_path) == {"set.bin"}


def test_all_of_it_was_there_already(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(BODY)
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": shelf.url, "version": '"one"'}))
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == [f"bytes={len(BODY)}-"]


@pytest.mark.parametrize("part", [BODY + b"more", b"rubbish"])
def test_a_part_that_does_not_fit_is_dropped(shelf: Shelf, part: bytes, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(part)
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": shelf.url, "version": '"one"'}))
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked[-1] is None


@pytest.mark.parametrize("note", [None, "{", '{"url": "http://elsewhere/", "version": "\\"one\\""}', '["no"]'])
def test_a_part_of_unknown_origin_is_not_continued(shelf: Shelf, note: str | None, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"another file")
    if note is not None:
        (tmp_path / "set.bin.part.json").write_text(note)
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == [None]


@pytest.mark.parametrize(
    "marks", [{"etag": '"one"'}, {"etag": "", "modified": "Mon, 06 Nov 2017 08:49:37 GMT"}], ids=["ETag", "date"]
)
def test_a_file_that_changed_meanwhile_is_begun_anew(shelf: Shelf, marks: dict[str, str], tmp_path: Path) -> None:
    for name, value in marks.items():
        setattr(shelf, name, value)
    shelf.cuts = [1_000_000] + [0] * TRIES
    with pytest.raises(DownloadError):
        fetch(shelf.url, tmp_path / "set.bin")
    shelf.body = BODY[::-1]
    for name in marks:
        setattr(shelf, name, shelf.etag and '"two"' if name == "etag" else shelf.modified and "later")
    assert fetch(shelf.url, tmp_path / "set.bin").read_bytes() == BODY[::-1]
    assert shelf.asked[-1] == "bytes=1000000-", "it was asked for the rest and gave the whole"


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_without_a_mark_that_is_sure_the_whole_is_asked_for(shelf: Shelf, etag: str, tmp_path: Path) -> None:
    shelf.etag, shelf.cuts = etag, [1_000_000]
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == [None, None]


def test_a_server_that_knows_no_parts_sends_the_whole(shelf: Shelf, tmp_path: Path) -> None:
    shelf.ranges, shelf.cuts = False, [1_000_000]
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == [None, "bytes=1000000-"]


def test_two_halves_of_two_versions_are_found_out_and_had_again(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "set.bin.part").write_bytes(b"x" * 1_000_000)  # what a server that lies of its mark leaves
    (tmp_path / "set.bin.part.json").write_text(json.dumps({"url": shelf.url, "version": '"one"'}))
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert shelf.asked == ["bytes=1000000-", None]


def test_a_file_that_is_not_what_was_published_is_not_kept(shelf: Shelf, tmp_path: Path) -> None:
    shelf.body = b"a page that says: moved"
    with pytest.raises(DownloadError, match=rf"its md5 is .*, not {MD5[4:]}, as published; it is not kept"):
        fetch(shelf.url, tmp_path / "set.bin", MD5)
    assert not left(tmp_path)
    assert shelf.asked == [None], "the same wrong file is not had twice"


def test_a_file_put_there_by_hand_is_checked_and_left_alone(shelf: Shelf, tmp_path: Path) -> None:
    place = tmp_path / "set.bin"
    place.write_bytes(b"half")
    with pytest.raises(DownloadError, match=r"set\.bin is there already: move it away"):
        fetch(shelf.url, place, SHA256)
    assert place.read_bytes() == b"half"
    assert not shelf.asked


def test_a_checksum_that_nobody_published_is_shown_and_written_down(
    shelf: Shelf, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fetch(shelf.url, tmp_path / "set.bin")
    assert f"its sha256 is {SHA256[7:]}" in caplog.text
    assert (tmp_path / "set.bin.sha256").read_text() == f"{SHA256[7:]}  set.bin\n"


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_file_that_is_not_there_is_said_at_once(shelf: Shelf, status: int, tmp_path: Path) -> None:
    shelf.status = [status]
    with pytest.raises(DownloadError, match=rf"the server answers {status} .*by hand and put it into {tmp_path}"):
        fetch(shelf.url, tmp_path / "set.bin", MD5)
    assert len(shelf.asked) == 1


def test_a_busy_server_is_asked_again_but_not_for_ever(shelf: Shelf, tmp_path: Path) -> None:
    shelf.status = [503, 429, 500]
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    shelf.status = [503] * 50
    with pytest.raises(DownloadError, match=rf"the server answers 503, {TRIES} times in a row; start again later"):
        fetch(shelf.url, tmp_path / "other.bin", MD5)
    assert len(shelf.asked) == 4 + TRIES


def test_as_long_as_bytes_come_it_is_not_given_up(shelf: Shelf, tmp_path: Path) -> None:
    shelf.cuts = [100_000] * (2 * TRIES)
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY
    assert len(shelf.asked) == 2 * TRIES + 1


def test_a_server_that_cannot_be_reached_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "_FIRST_WAIT", 0.0)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(DownloadError, match=r"127\.0\.0\.1:9/x: the connection failed .*times in a row"):
        fetch("http://127.0.0.1:9/x", tmp_path / "x", MD5)
    with pytest.raises(DownloadError, match="cannot be asked for"):
        fetch("nothing://x", tmp_path / "x", MD5)


def test_what_is_said_to_be_zipped_on_the_way_is_kept_as_it_is(shelf: Shelf, tmp_path: Path) -> None:
    """Oxford's server says so of .tar.gz files; a client that believes it saves a .tar."""
    shelf.said = {"Content-Encoding": "gzip"}
    assert fetch(shelf.url, tmp_path / "set.bin", MD5).read_bytes() == BODY


# Both, as a data set asks for them.


def served(shelf: Shelf, path: Path, checked: bool = True) -> Tree:
    shelf.body = path.read_bytes()
    checksum = "sha256:" + hashlib.sha256(shelf.body).hexdigest() if checked else None
    url = f"{shelf.url.rpartition('/')[0]}/{path.name}?download=1"
    return Tree("own", "http://page", (Archive(url, "set", checksum),), ("names.txt", "images"), ("set", ""))


def test_a_tree_is_downloaded_once_and_its_archive_goes(shelf: Shelf, tmp_path: Path) -> None:
    tree = served(shelf, zip_of(tmp_path / "set.zip", *GOOD))
    with pytest.raises(ValueError, match=r"not complete, missing: names\.txt, images\. Give dataset\.download=true"):
        tree.place(tmp_path / "root", download=False)
    assert tree.place(tmp_path / "root", download=True) == tmp_path / "root" / "set"
    assert left(tmp_path / "root") == {"set", "note.txt", ".download.lock"}
    assert tree.place(tmp_path / "root", download=True) == tree.place(tmp_path / "root" / "set", download=False)
    assert len(shelf.asked) == 1


def test_an_archive_put_there_by_hand_is_unpacked_and_kept(shelf: Shelf, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    tree = served(shelf, zip_of(tmp_path / "root" / "set.zip", *GOOD), checked=False)
    tree.place(tmp_path / "root", download=True)
    assert {"set", "set.zip"} <= left(tmp_path / "root")
    assert not shelf.asked


def test_a_half_tree_is_not_overwritten(shelf: Shelf, tmp_path: Path) -> None:
    tree = served(shelf, zip_of(tmp_path / "set.zip", *GOOD))
    (tmp_path / "root" / "set" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"set is not complete, missing: names\.txt\. .*move what is half there"):
        tree.place(tmp_path / "root", download=True)
    assert not shelf.asked


def test_processes_that_start_together_download_once(shelf: Shelf, tmp_path: Path) -> None:
    tree = served(shelf, zip_of(tmp_path / "set.zip", *GOOD))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: tree.place(tmp_path / "root", download=True), range(4)))
    assert found == [tmp_path / "root" / "set"] * 4
    assert len(shelf.asked) == 1
