"""Files from the network: resumed where they were cut, checked, and there whole or not at all."""

import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import requests
import urllib3
from tqdm import tqdm

from lgclip.identity import digest_of

log = logging.getLogger(__name__)

TRIES = 5
"""How often in a row a download may be cut or refused for the moment without one byte of progress."""
_FIRST_WAIT = 1.0  # seconds, doubled with each try in vain
_TIMEOUT = (15, 60)  # seconds to connect, and without a byte
_CHUNK = 1 << 20
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_CUTS = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


class DownloadError(ValueError):
    """A file could not be had whole; the message says why and what to do."""


class _CutError(Exception):
    """The download stopped; what came so far is kept."""


@dataclass(frozen=True)
class _Part:
    """What is there of a file, and which version of it that is.

    Attributes:
        path: The bytes so far.
        url: Where they are from.
    """

    path: Path
    url: str

    @property
    def note(self) -> Path:
        """Where the version is written down."""
        return self.path.with_name(f"{self.path.name}.json")

    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.is_file() else 0

    def version(self) -> str | None:
        """The server's mark of the version that the bytes are of; None if it gave none."""
        try:
            noted = json.loads(self.note.read_text(encoding="utf-8"))
            return noted["version"] if noted["url"] == self.url else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def drop(self) -> None:
        """Removes it."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def fetch(url: str, path: Path, checksum: str | None = None) -> Path:
    """Downloads a file.

    What a cut download left, in this run or an earlier one, is continued if the server says that the file is
    still the same (`If-Range`), and begun anew if not. A file that is there already is checked and kept.

    Args:
        url: Where it is.
        path: Where it goes.
        checksum: `md5:...` or `sha256:...`; None if none was published: the sha256 found is then
            shown and written beside the file.

    Raises:
        DownloadError: If it cannot be had or is not what the checksum says.
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
        _complete(part, path.name)  # two halves of two versions: once more, from the start
        try:
            _check(part.path, url, checksum, "it is not kept")
        except DownloadError:
            part.drop()
            raise
    if checksum is None:
        found = digest_of(part.path)
        log.warning("%s: nobody published a checksum to compare with; its sha256 is %s", url, found)
        path.with_name(f"{path.name}.sha256").write_text(f"{found}  {path.name}\n", encoding="utf-8")
    part.path.replace(path)
    part.drop()
    return path


def _check(path: Path, url: str, checksum: str | None, way_out: str) -> None:
    if checksum is None:
        return
    algorithm, _, wanted = checksum.partition(":")
    found = digest_of(path, algorithm)
    if found != wanted:
        raise DownloadError(f"{url}: its {algorithm} is {found}, not {wanted}, as published; {way_out}")


def _complete(part: _Part, name: str) -> bool:
    """Downloads until nothing is missing; returns whether the end was put to a beginning that was there."""
    vain, reason = 0, ""
    while vain < TRIES:
        if vain:
            time.sleep(_FIRST_WAIT * 2 ** (vain - 1))
        before = part.size()
        try:
            return _attempt(part, name)
        except _CutError as cut:
            reason = str(cut)
            vain = 0 if part.size() > before else vain + 1
    raise DownloadError(
        f"{part.url}: {reason}, {TRIES} times in a row; start again later, {part.size() / 1e6:.1f} MB are kept,"
        f" or get it by hand and put it at {part.path.with_name(name)}"
    )


def _attempt(part: _Part, name: str) -> bool:
    """One request: continues what is there (and returns True), or begins."""
    have, version = part.size(), part.version()
    # As it lies on the server: Oxford's says of a .tar.gz that it is a gzipped .tar, to be unzipped on the way.
    headers = {"Accept-Encoding": "identity"}
    if have and version:
        headers |= {"Range": f"bytes={have}-", "If-Range": version}
    try:
        with requests.get(part.url, headers=headers, stream=True, timeout=_TIMEOUT) as answer:
            total = _accept(answer, part, have)
            resumed = part.size() > 0
            if answer.status_code != requests.codes.requested_range_not_satisfiable:
                _receive(answer, part, total, name)
    except _CUTS as error:
        raise _CutError(f"the connection failed ({type(error).__name__}: {error})") from error
    except requests.RequestException as error:
        raise DownloadError(f"{part.url} cannot be asked for ({error})") from error
    if total is not None and part.size() != total:
        raise _CutError(f"{part.size()} of {total} bytes came")
    return resumed


def _accept(answer: requests.Response, part: _Part, have: int) -> int | None:
    """What the answer means for what is there; returns the size of the whole file if it is said."""
    status, length = answer.status_code, answer.headers.get("Content-Length")
    if status == requests.codes.partial:
        said = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", answer.headers.get("Content-Range", ""))
        if said and int(said[1]) == have:
            return int(said[2]) if said[2] != "*" else have + int(length) if length else None
        part.drop()
        raise _CutError("the server sent another part than was asked for")
    if status == requests.codes.requested_range_not_satisfiable:
        said = re.fullmatch(r"bytes \*/(\d+)", answer.headers.get("Content-Range", ""))
        if said and int(said[1]) == have:  # all of it had come before
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
    mark = answer.headers.get("ETag", "")
    # A weak mark (W/...) does not say that the bytes are the same.
    version = mark if mark.startswith('"') else answer.headers.get("Last-Modified")
    part.note.write_text(json.dumps({"url": part.url, "version": version}), encoding="utf-8")
    return int(length) if length else None


def _receive(answer: requests.Response, part: _Part, total: int | None, name: str) -> None:
    bar = tqdm(total=total, initial=part.size(), desc=name, unit="B", unit_scale=True, disable=None, mininterval=0.5)
    with bar, part.path.open("ab") as file:
        for chunk in _raw(answer):
            file.write(chunk)
            bar.update(len(chunk))


def _raw(answer: requests.Response) -> Iterator[bytes]:
    """The bytes as they were sent."""
    while chunk := answer.raw.read(_CHUNK, decode_content=False):
        yield chunk
