"""Opens files that hold many images, wherever they lie: on this machine or in an object store.

A file of an object store is downloaded as a whole when it is opened first, into a cache with a limit: what was used
least recently makes room. fsspec's `filecache` was considered: it has no limit, and locks nothing between processes.
"""

import glob
import io
import os
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock

from lgclip.store.keys import content_key, file_stamp
from lgclip.store.location import Location, cache_folder
from lgclip.store.object_store import ObjectInfo, ObjectStore, object_store

CACHE = "lgclip-shards"
"""Folder of the user's cache folder with copies of files of object stores."""

_PART = 2**16
"""Bytes that are read at least of a file of which only parts are read."""


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
        """Downloads the file, and opens it before it can be deleted from the cache."""
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Loaders ask for one file together: one of them downloads it.
            lock = FileLock(self.path.with_name(f"{self.path.name}.lock")).acquire()
        except OSError as error:
            raise ValueError(
                f"{self.where}: it cannot be copied to {folder} ({error.strerror}); name another folder by "
                "XDG_CACHE_HOME"
            ) from error
        with lock:
            with suppress(FileNotFoundError):
                return self.path.open("rb")
            # What a killed process has left of this file.
            for part in folder.glob(f".{glob.escape(self.path.name)}.*"):
                part.unlink(missing_ok=True)
            # Before, so that the disk has room; and after, since others may have downloaded at the same time.
            self._make_room(self.size)
            temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
            try:
                open_object_store(location).get(self.place, temporary, self.size)
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
        self._objects = open_object_store(location)
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


def local_shard(path: Path) -> ShardFile:
    """Returns a file of this machine.

    Raises:
        OSError: If it cannot be read.
    """
    stamp = file_stamp(path)
    return ShardFile(str(path), path.absolute(), stamp.size, repr(stamp))


def remote_shard(folder: Location, place: str, info: ObjectInfo, cache_bytes: int | None) -> ShardFile:
    """Returns a file of an object store, with the path that its copy has.

    Args:
        folder: Folder in the object store.
        place: Place of the file in the folder.
        info: What the folder's listing says of the file.
        cache_bytes: Limit of all cached copies; None for none.
    """
    where = f"{folder.url}/{place}"
    version = info.tag or info.changed
    # Equal names of another version, or of another server, are other files.
    key = content_key({"where": where, "endpoint": folder.endpoint, "size": info.size, "version": version})
    path = _cache() / f"{key}-{place.rpartition('/')[2][-60:]}"
    return ShardFile(where, path, info.size, version, folder, place, cache_bytes)


def open_object_store(location: Location) -> ObjectStore:
    """Returns the object store of a folder; of this process, which makes one connection."""
    return _objects(location, os.getpid())


def _cache() -> Path:
    return cache_folder().expanduser().absolute() / CACHE


@lru_cache(maxsize=16)
def _objects(location: Location, process: int) -> ObjectStore:
    # By process: the connections of another one are of no use after a fork.
    return object_store(location)
