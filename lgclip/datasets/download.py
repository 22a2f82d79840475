"""Downloads files: interrupted downloads resume, checksums are verified, and files appear atomically."""

import functools
import json
import logging
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from lgclip.runtime.deadlines import OvertimeError, call_within
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import digest_of

log = logging.getLogger(__name__)

TRIES = 5
"""Maximum number of consecutive attempts without any progress."""
_FIRST_WAIT = 1.0  # seconds, doubled with each try in vain
_TIMEOUT = (15, 60)  # seconds to connect, and without a byte
_HEADERS_S = 120.0
"""Maximum time until an answer begins, redirects included: a server can send its headers byte by byte."""
_SLOWEST = 1_000  # bytes per second, over `_WINDOW_S`; a connection that is slower counts as cut
_WINDOW_S = 60.0
_LEAST_PROGRESS = 1 << 16  # bytes of an attempt that count as progress
_RESERVE = 100_000_000
"""Bytes of the disk that a download leaves free."""
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CUTS = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


class DownloadError(ValueError):
    """Reports that a file could not be downloaded completely; the message says why and how to fix it."""


class _CutError(Exception):
    """Reports an interrupted download; the partial file is kept."""


@dataclass(frozen=True)
class _Part:
    """Describes the partial download of a file, and which version of the file it belongs to.

    Attributes:
        path: File of the bytes so far.
        url: Their origin.
    """

    path: Path
    url: str

    @property
    def note(self) -> Path:
        """Returns the file that records the version."""
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        """Returns the number of bytes so far."""
        if not self.path.is_file():
            return 0
        return self.path.stat().st_size

    def version(self) -> str | None:
        """Returns the server's identifier of the version that the bytes belong to; None if it gave none."""
        try:
            note = json.loads(read_text(self.note))
            # Bytes of another address, as after the file has moved, are not continued.
            if note["url"] == self.url:
                return note["version"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def drop(self) -> None:
        """Removes the partial download."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def fetch(url: str, path: Path, checksum: str | None = None) -> Path:
    """Downloads a file.

    A partial download, of this run or an earlier one, is resumed if the server confirms that the file is
    unchanged (`If-Range`), and restarted otherwise. An existing file is verified and kept.

    Args:
        url: Address of the file.
        path: Target path.
        checksum: `md5:...` or `sha256:...`; None if none was published: the sha256 of the file is then
            displayed and written next to it.

    Raises:
        DownloadError: If the download fails or does not match the checksum.
    """
    if path.is_file():
        _check(path, url, checksum, f"{path} is there already: move it away to have it downloaded")
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path.with_name(f"{path.name}.part"), url)
    resumed = _complete(part, path.name)
    try:
        _check(part.path, url, checksum, "it is not kept")
    except DownloadError:
        part.drop()
        if not resumed:
            raise
        _complete(part, path.name)  # halves of two versions: restart from the beginning
        try:
            _check(part.path, url, checksum, "it is not kept")
        except DownloadError:
            part.drop()
            raise
    if checksum is None:
        digest = digest_of(part.path)
        log.warning("%s: nobody published a checksum to compare with; its sha256 is %s", url, digest)
        path.with_name(f"{path.name}.sha256").write_text(f"{digest}  {path.name}\n", encoding="utf-8")
    part.path.replace(path)
    part.drop()
    return path


def _check(path: Path, url: str, checksum: str | None, way_out: str) -> None:
    if checksum is None:
        return
    algorithm, _, expected = checksum.partition(":")
    digest = digest_of(path, algorithm)
    if digest != expected:
        raise DownloadError(f"{url}: its {algorithm} is {digest}, not {expected}, as published; {way_out}")


def _complete(part: _Part, name: str) -> bool:
    """Downloads until nothing is missing; returns whether an earlier partial download was resumed."""
    failures = 0
    reason = ""
    while failures < TRIES:
        if failures:
            time.sleep(_FIRST_WAIT * 2 ** (failures - 1))
        before = part.size()
        try:
            return _attempt(part, name)
        except _CutError as cut:
            reason = str(cut)
            failures += 1
            # Only failures in a row count: a connection that is cut every few minutes still gets there.
            if part.size() >= before + _LEAST_PROGRESS:
                failures = 0
    raise DownloadError(
        f"{part.url}: {reason}, {TRIES} times in a row; start again later, {part.size() / 1e6:.1f} MB are kept,"
        f" or download it by hand and put it at {part.path.with_name(name)}"
    )


def _attempt(part: _Part, name: str) -> bool:
    """Makes one request: resumes the partial download (and returns True), or starts from the beginning."""
    have = part.size()
    version = part.version()
    # Undecoded: Oxford's server declares a .tar.gz as gzip-encoded .tar, which clients would decompress.
    headers = {"Accept-Encoding": "identity"}
    # With If-Range the server sends the rest only if the file is still the same version, otherwise all of it again.
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        get = functools.partial(requests.get, part.url, headers=headers, stream=True, timeout=_TIMEOUT)
        with call_within(_HEADERS_S, get) as answer:
            total = _accept(answer, part, have)
            # After `_accept`, which removes the old bytes where the server sends the whole file.
            resumed = part.size() > 0
            if answer.status_code != requests.codes.requested_range_not_satisfiable:
                _check_space(part, (total or 0) - part.size())
                _receive(answer, part, total, name)
    except OvertimeError:
        raise _CutError(f"no answer within {_HEADERS_S:.0f} s") from None
    except _CUTS as error:
        raise _CutError(f"the connection failed ({type(error).__name__}: {error})") from error
    except requests.RequestException as error:
        raise DownloadError(f"{part.url} cannot be asked for ({error})") from error
    # The client takes a connection that closes early for the end of the file.
    if total is not None and part.size() != total:
        raise _CutError(f"{part.size()} of {total} bytes were received")
    return resumed


def _accept(answer: requests.Response, part: _Part, have: int) -> int | None:
    """Interprets the response for the partial download; returns the full size of the file if it is stated."""
    status = answer.status_code
    length = answer.headers.get("Content-Length")
    if status == requests.codes.partial:
        content_range = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if content_range and int(content_range[1]) == have:
            if content_range[2] != "*":
                return int(content_range[2])
            # The server does not know the whole size; the length of the rest gives it.
            return have + int(length) if length else None
        part.drop()
        raise _CutError("the server sent another part than was asked for")
    if status == requests.codes.requested_range_not_satisfiable:
        content_range = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
        if content_range and int(content_range[1]) == have:  # all of it had come before
            return have
        part.drop()
        raise _CutError("what was there does not fit the server's file")
    if status in _BUSY:
        raise _CutError(f"the server answers {status}")
    if status != requests.codes.ok:
        raise DownloadError(
            f"{part.url}: the server answers {status} {answer.reason}; if the file has moved, get it"
            f" by hand and put it into {part.path.parent}"
        )
    part.drop()
    version: str | None = answer.headers.get("ETag", "")
    # A weak mark (W/...) does not say that the bytes are the same.
    if not version.startswith('"'):
        version = answer.headers.get("Last-Modified")
    part.note.write_text(json.dumps({"url": part.url, "version": version}), encoding="utf-8")
    return int(length) if length else None


def _receive(answer: requests.Response, part: _Part, total: int | None, name: str) -> None:
    bar = tqdm(total=total, initial=part.size(), desc=name, unit="B", unit_scale=True, disable=None, mininterval=0.5)
    started = time.monotonic()
    received = 0
    with bar, part.path.open("ab") as file:
        for chunk in _raw(answer):
            # With an unknown length the disk is the only limit; it is left some room, because others write to it too.
            _check_space(part, len(chunk))
            file.write(chunk)
            bar.update(len(chunk))
            received += len(chunk)
            elapsed = time.monotonic() - started
            if elapsed > _WINDOW_S:
                if received < _SLOWEST * elapsed:
                    raise _CutError(f"fewer than {_SLOWEST} bytes per second were received")
                started = time.monotonic()
                received = 0


def _check_space(part: _Part, count: int) -> None:
    """Checks that the disk has room for more bytes.

    Raises:
        DownloadError: If it has not.
    """
    free = shutil.disk_usage(part.path.parent).free
    if count > free - _RESERVE:
        raise DownloadError(
            f"{part.url}: {count / 1e9:.1f} GB more, and {part.path.parent} has {free / 1e9:.1f} GB left; make room, "
            f"or remove {part.path}"
        )


def _raw(answer: requests.Response) -> Iterator[bytes]:
    """Yields the bytes as transmitted."""
    # `read1` returns what is there; `read` would wait for a whole chunk, however slowly it comes.
    while chunk := answer.raw.read1(_CHUNK, decode_content=False):
        yield chunk
