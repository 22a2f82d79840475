"""Lists files that hold many images, on this machine or in an object store, and opens them wherever they lie.

    DIR/test-*.tar, DIR/test-{000..099}.tar                 files of this machine
    s3://BUCKET/PREFIX/test-*.tar, gs://BUCKET/...          a bucket
    hf://datasets/OWNER/NAME/test/*.tar                     a data set of the Hugging Face Hub

A file of an object store is downloaded as a whole when it is opened first, into a cache with a limit: what was used
least recently makes room. fsspec's `filecache` was considered: it has no limit, and locks nothing between processes.
"""

import glob
import io
import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from filelock import FileLock

from lgclip.store.keys import content_key, file_stamp
from lgclip.store.location import Location, cache_folder, parse_location
from lgclip.store.object_store import ObjectInfo, ObjectStore, object_store

log = logging.getLogger(__name__)

CACHE = "lgclip-shards"
"""Folder of the user's cache folder with copies of files of object stores."""

_MAX_FILES = 1_000_000
_PART = 2**16
"""Bytes that are read at least of a file of which only parts are read."""

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class ShardFile:
    """Names a file that holds many images.

    Attributes:
        where: Its path or URL, for messages and results.
        path: The file; of an object store, its copy in the cache, which need not exist.
        size: In bytes.
        version: Changes when the file is replaced.
        location: The folder in the object store that holds it; None for a file of this machine.
        place: Its place in that folder.
        cache_bytes: Limit of all cached copies; None for none.
    """

    where: str
    path: Path
    size: int
    version: str
    location: Location | None = None
    place: str = ""
    cache_bytes: int | None = None

    @property
    def name(self) -> str:
        """Returns its last name, such as `test-000.tar`."""
        return self.where.rpartition("/")[2]

    @property
    def key(self) -> str:
        """Returns a key of its place and version."""
        return content_key(
            {
                "where": str(self.path) if self.location is None else self.where,
                "size": self.size,
                "version": self.version,
            }
        )

    def on_this_machine(self) -> "ShardFile":
        """Returns it with the path that it has here, where another machine has listed it.

        Raises:
            ValueError: If it lies in a folder that this machine does not see.
        """
        if self.location is not None:
            return replace(self, path=_cache() / self.path.name)
        if not self.path.exists():
            raise ValueError(
                f"{self.where}: {os.uname().nodename} does not see it; give shards in a folder that all machines "
                "share, or in an object store"
            )
        return self

    @property
    def stamp(self) -> str:
        """Returns its version now; another one than `version` if a file of this machine was replaced."""
        return self.version if self.location is not None else repr(file_stamp(self.path))

    def open_parts(self) -> BinaryIO:
        """Opens it to read little of it: parts are read from the object store where it is not here.

        Raises:
            ObjectError: If the object store cannot be read.
            OSError: If a file of this machine cannot be read.
        """
        if self.location is None or self.path.exists():
            return self.open()
        return io.BufferedReader(_Parts(self, self.location), _PART)

    def open(self) -> BinaryIO:
        """Opens it for reading; downloads it first where it is not here.

        An open file stays readable when its copy is taken out of the cache.

        Raises:
            ObjectError: If the object store cannot be read.
            OSError: If a file of this machine cannot be read.
        """
        if self.location is None:
            return self.path.open("rb")
        try:
            file = self.path.open("rb")
        except (FileNotFoundError, NotADirectoryError):
            return self._download(self.location)
        # The time of the last use, by which copies make room.
        with suppress(OSError):
            os.utime(self.path)
        return file

    def fetch(self) -> None:
        """Downloads it if it is not here.

        Raises:
            ObjectError: If the object store cannot be read.
        """
        if self.location is not None and not self.path.exists():
            self._download(self.location).close()

    def _download(self, location: Location) -> BinaryIO:
        """Downloads it, and opens it before it can be taken out of the cache."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Loaders ask for one file together: one of them downloads it.
            held = FileLock(self.path.with_name(f"{self.path.name}.lock")).acquire()
        except OSError as error:
            raise ValueError(
                f"{self.where}: it cannot be copied to {folder} ({error.strerror}); name another folder by "
                "XDG_CACHE_HOME"
            ) from error
        with held:
            with suppress(FileNotFoundError):
                return self.path.open("rb")
            # What a killed process has left of this file.
            for part in folder.glob(f".{glob.escape(self.path.name)}.*"):
                part.unlink(missing_ok=True)
            # Before, so that the disk has room; and after, since others may have downloaded at the same time.
            self._make_room(self.size)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                _objects(location, os.getpid()).get(self.place, temporary, self.size)
                file = temporary.open("rb")
                temporary.replace(self.path)
            except FileNotFoundError as error:
                raise ValueError(f"{self.where}: it has disappeared; list the shards again") from error
            finally:
                temporary.unlink(missing_ok=True)
            self._make_room(0)
            return file

    def _make_room(self, size: int) -> None:
        """Deletes the copies that were used least recently, until `size` more bytes keep the limit."""
        if self.cache_bytes is None:
            return
        copies: list[tuple[float, int, Path]] = []
        # Names with a leading dot are being written.
        for path in self.path.parent.glob("[!.]*"):
            if path.suffix != ".lock":
                with suppress(FileNotFoundError):
                    status = path.stat()
                    copies.append((status.st_mtime, status.st_size, path))
        total = size + sum(count for _, count, _ in copies)
        for _, count, path in sorted(copies):
            if total <= self.cache_bytes:
                return
            # This file stays, also where it alone is larger than the limit.
            if path != self.path:
                path.unlink(missing_ok=True)
                total -= count


class _Parts(io.RawIOBase):
    """Reads a file of an object store part by part, one request each."""

    mode = "rb"

    def __init__(self, shard: ShardFile, location: Location) -> None:
        self._shard = shard
        self.name = shard.where
        self._objects = _objects(location, os.getpid())
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._shard.size}[whence]
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: "bytearray | memoryview") -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        size = min(len(buffer), self._shard.size - self._position)
        if size <= 0:
            return 0
        content = self._objects.read_part(self._shard.place, self._position, size)
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


def find_shards(pattern: str, option: str, cache_gb: float | None = None, *, folder: str = "") -> list[ShardFile]:
    """Returns the files that fit a pattern, sorted by place.

    Args:
        pattern: A path or a URL; `*`, `[...]`, and in a path `?`, stand for characters of a name, `{a,b}` and
            `{00..99}` for several names.
        option: Setting that names it, for errors.
        cache_gb: Limit of cached copies of files of object stores, in 10**9 bytes; None for none.
        folder: Path or URL that the pattern is relative to; its own name is no pattern, whatever signs are in it.

    Raises:
        ValueError: If no file fits, or one of a range is missing.
    """
    limit = _bytes_of(cache_gb)
    location = parse_location(folder or pattern, option)
    if location is None:
        texts = expand_braces(pattern, option)
        files = [local_shard(path) for text in texts for path in _matching(folder, text, option)]
    else:
        patterns = pattern
        if not folder:
            fixed, patterns = _split(location.path)
            location = replace(location, path=fixed)
        files = _remote(location, patterns, option, limit)
    if not files:
        place = f"{folder}/{pattern}" if folder else pattern
        raise ValueError(f"{option}={place}: no file fits; give a path or a URL such as data/test-*.tar")
    return files


def local_shard(path: Path) -> ShardFile:
    """Returns a file of this machine.

    Raises:
        OSError: If it cannot be read.
    """
    stamp = file_stamp(path)
    return ShardFile(str(path), path.absolute(), stamp.size, repr(stamp))


def files_below(location: Location, cache_gb: float | None = None) -> dict[str, ShardFile]:
    """Returns all files below a folder of an object store, by place.

    Args:
        location: The folder.
        cache_gb: As in `find_shards`.

    Raises:
        ObjectError: If the object store cannot be read.
    """
    limit = _bytes_of(cache_gb)
    return {place: _cached(location, place, info, limit) for place, info in _listed(location).items()}


def _bytes_of(cache_gb: float | None) -> int | None:
    if cache_gb is not None and not cache_gb > 0:
        raise ValueError(f"dataset.cache_gb={cache_gb}: it must be above 0, or null for no limit")
    return None if cache_gb is None else int(cache_gb * 10**9)


def read_small_file(folder: str, name: str, option: str) -> str | None:
    """Returns the text of a small file of a folder; None if there is none.

    Args:
        folder: A path or a URL.
        name: Place of the file in it.
        option: Setting that names the folder, for errors.

    Raises:
        ValueError: If it cannot be read, or is no text.
    """
    location = parse_location(folder, option)
    try:
        if location is None:
            content = (Path(folder).expanduser() / name).read_bytes()
        else:
            with TemporaryDirectory() as aside:
                _objects(location, os.getpid()).get(name, Path(aside) / "file", None)
                content = (Path(aside) / "file").read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ValueError(f"{folder}/{name} cannot be read ({error.strerror or error})") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{folder}/{name} is not text in UTF-8 ({error})") from error


def expand_braces(pattern: str, option: str) -> Iterator[str]:
    """Yields the texts that a pattern with `{a,b}` and `{00..99}` stands for.

    The braceexpand package was considered: it is not maintained, and this much is needed of it.

    Raises:
        ValueError: If a range runs backwards, or there are more than a million.
    """
    match = _BRACES.search(pattern)
    if match is None:
        yield pattern
        return
    head = pattern[: match.start()]
    numbers = _RANGE.fullmatch(match[1])
    choices: Sequence[str]
    if numbers is None:
        choices = match[1].split(",")
    else:
        first, last = int(numbers[1]), int(numbers[2])
        if not first <= last < first + _MAX_FILES:
            raise ValueError(f"{option}={pattern}: {{{match[1]}}} is no range of at most {_MAX_FILES:,} numbers")
        width = len(numbers[1]) if numbers[1].startswith("0") else 0
        choices = [f"{number:0{width}}" for number in range(first, last + 1)]
    for choice in choices:
        for rest in expand_braces(pattern[match.end() :], option):
            yield f"{head}{choice}{rest}"


def _matching(folder: str, text: str, option: str) -> list[Path]:
    root = Path(folder).expanduser()
    text = str(Path(text).expanduser())
    if (root / text).is_file():
        return [root / text]
    # Not by Path.glob, which takes no absolute pattern.
    matches = [root / match for match in sorted(glob.glob(text, root_dir=root))]  # noqa: PTH207
    if not matches and not _WILD.search(text):
        raise ValueError(f"{option}: {text}: no such file")
    return [match for match in matches if match.is_file()]


def _remote(folder: Location, patterns: str, option: str, limit: int | None) -> list[ShardFile]:
    listed = _listed(folder)
    found: dict[str, ObjectInfo] = {}
    for text in expand_braces(patterns, option):
        if not _WILD.search(text):
            if text not in listed:
                raise ValueError(f"{option}={patterns}: there is no {folder.url}/{text}")
            found[text] = listed[text]
            continue
        parts = text.split("/")
        for place, info in listed.items():
            names = place.split("/")
            if len(names) == len(parts) and all(map(fnmatchcase, names, parts)):
                found[place] = info
    return [_cached(folder, place, found[place], limit) for place in sorted(found)]


def _split(path: str) -> tuple[str, str]:
    """Splits a path into the folder before its first pattern, and the rest."""
    parts = path.split("/")
    plain = 0
    while plain < len(parts) - 1 and not re.search(r"[*?\[{]", parts[plain]):
        plain += 1
    return "/".join(parts[:plain]), "/".join(parts[plain:])


def _cached(folder: Location, place: str, info: ObjectInfo, limit: int | None) -> ShardFile:
    where = f"{folder.url}/{place}"
    version = info.tag or info.changed
    # Equal names of another version, or of another server, are other files.
    key = content_key({"where": where, "endpoint": folder.endpoint, "size": info.size, "version": version})
    path = _cache() / f"{key}-{place.rpartition('/')[2][-60:]}"
    return ShardFile(where, path, info.size, version, folder, place, limit)


def _cache() -> Path:
    return cache_folder().expanduser().absolute() / CACHE


@lru_cache(maxsize=16)
def _objects(location: Location, process: int) -> ObjectStore:
    # By process: the connections of another one are of no use after a fork.
    return object_store(location)


def _listed(location: Location) -> dict[str, ObjectInfo]:
    objects = _objects(location, os.getpid())
    objects.check()
    return objects.ls()
