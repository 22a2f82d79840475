"""Reads and writes the objects of a store that lies in a bucket, on the Hub, or in a folder that is treated so.

fsspec is the interface: s3fs, gcsfs and the Hub's own file system implement it, with their retries and credentials.
What is added is what a store needs: an object is there completely or not at all, its size is checked when it is read,
many objects are moved at once, and an error is one line that names the store and the way out.
"""

import errno
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.store.errors import StoreError
from lgclip.store.location import Location

CONNECTIONS = 16
"""Objects that are moved at once."""

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)

_PROBE = ".writable"
"""Object that is written to learn whether one may; always the same, since not everyone who may write may delete."""


class ObjectError(StoreError):
    """Reports that an object store could not be read or written; the message says why and how to fix it."""


class ObjectInfo(NamedTuple):
    """Describes an object.

    Attributes:
        size: In bytes.
        changed: When it was written, as the store says it; texts or numbers of one store are in order.
        tag: Hash of its content, as the store says it; empty where it says none.
    """

    size: int
    changed: str
    tag: str = ""


class ObjectStore(ABC):
    """Reads and writes objects below one URL, by their place relative to it.

    Args:
        location: The URL.
    """

    push_seconds = 30.0
    """Seconds between two uploads of what a running stage has written."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self.url = location.url

    @abstractmethod
    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        """Returns all objects below a folder, by place; empty where there is none.

        Args:
            folder: Place of the folder; empty for all.
        """

    @abstractmethod
    def _get(self, place: str, target: Path) -> None:
        """Downloads one object to a file."""

    @abstractmethod
    def _read_part(self, place: str, start: int, size: int) -> bytes:
        """Returns some bytes of an object."""

    @abstractmethod
    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        """Uploads one file; with `replace` false an existing object may stay."""

    @abstractmethod
    def _delete(self, places: Sequence[str]) -> None:
        """Deletes objects."""

    @abstractmethod
    def _check(self) -> None:
        """Sends the store one request, so that a wrong name, missing rights or no network raise their error."""

    @abstractmethod
    def _translate(self, error: Exception, operation: str) -> str:
        """Returns the reason why an operation failed, and how to fix it; empty for an error that is not the store's."""

    def check(self) -> None:
        """Checks that the store can be read.

        Raises:
            ObjectError: If it cannot.
        """
        with self._errors("read it"):
            self._check()

    def check_writable(self, folder: Path) -> None:
        """Checks that objects can be written, by writing a small one.

        Args:
            folder: Folder for a temporary file.

        Raises:
            ObjectError: If they cannot.
        """
        file = folder / f"{_PROBE}.{os.getpid()}"
        file.write_bytes(b"")
        try:
            with self._errors("write to it"):
                self._put(_PROBE, file, replace=True)
        finally:
            file.unlink(missing_ok=True)

    def get(self, place: str, target: Path, size: int | None) -> None:
        """Downloads one object to a file, which the caller moves into place.

        Args:
            place: The object.
            target: The file.
            size: Its size; None if unknown.

        Raises:
            FileNotFoundError: If there is no such object.
            ObjectError: If it cannot be read, or has another size than it should.
        """
        for _ in range(2):
            with self._errors("read it"):
                self._get(place, target)
            # A connection may end early without an error of its own.
            if size is None or target.stat().st_size == size:
                return
        raise ObjectError(
            f"{self.url}/{place}: {target.stat().st_size:,} of {size:,} bytes arrive; try again, or delete the object: "
            "a run computes it again"
        )

    def read_part(self, place: str, start: int, size: int) -> bytes:
        """Returns some bytes of an object.

        Raises:
            FileNotFoundError: If there is no such object.
            ObjectError: If it cannot be read.
        """
        with self._errors("read it"):
            return self._read_part(place, start, size)

    def put(self, files: Mapping[str, Path], replaced: frozenset[str] = frozenset()) -> list[str]:
        """Uploads files at once, each completely or not at all.

        Args:
            files: File of each place.
            replaced: Places whose objects are replaced; elsewhere an existing object stays.

        Returns:
            The places that are in the store now; not those whose file has disappeared.

        Raises:
            ObjectError: If one cannot be written; the others may have been.
        """

        def upload(place: str) -> str | None:
            try:
                with self._errors("write to it"):
                    self._put(place, files[place], replace=place in replaced)
            except FileNotFoundError:
                # Another process has taken the file away; a missing bucket is another error, see `_translate`.
                return None
            return place

        return [place for place in call_in_threads(upload, list(files)) if place is not None]

    def delete(self, places: Sequence[str]) -> None:
        """Deletes objects.

        Raises:
            ObjectError: If they cannot be deleted.
        """
        if places:
            with self._errors("delete from it"):
                self._delete(places)

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ObjectError):
            raise
        except Exception as error:
            # A full disk of this machine would look like a lost connection.
            if isinstance(error, OSError) and error.errno in _NO_ROOM and operation == "read it":
                raise ObjectError(
                    f"{self.url}: its copy on this machine: {error.strerror}; make room, or name another folder by "
                    "XDG_CACHE_HOME"
                ) from error
            reason = self._translate(error, operation)
            if not reason:
                raise
            # Without the library's own error, whose text may repeat what a server was sent.
            raise ObjectError(f"{self.url}: {reason}") from None


def call_in_threads(work: Callable[[str], Any], places: Sequence[str]) -> list[Any]:
    """Calls a function for several paths in threads; returns the results in order, or raises the first error."""
    if len(places) < 2:
        return [work(place) for place in places]
    with ThreadPoolExecutor(min(CONNECTIONS, len(places))) as threads:
        futures = [threads.submit(work, place) for place in places]
        try:
            return [future.result() for future in futures]
        except BaseException:
            # What has not begun is not begun any more; what is under way ends by itself.
            for future in futures:
                future.cancel()
            raise


def object_store(location: Location) -> ObjectStore:
    """Returns the objects at a location; connects to nothing yet.

    Raises:
        ObjectError: If the library for its scheme is not installed.
    """
    # Imported here, since each of them derives from the class above.
    match location.scheme:
        case "hf":
            from lgclip.store.hub_store import HubStore

            return HubStore(location)
        case "file":
            from lgclip.store.folder_store import FolderStore

            return FolderStore(location)
        case "s3":
            from lgclip.store.bucket_store import S3Store

            return S3Store(location)
        case "gs":
            from lgclip.store.bucket_store import GoogleStore

            return GoogleStore(location)
        case _:
            from lgclip.store.bucket_store import BucketStore

            return BucketStore(location)


def digest_of_bytes(data: bytes) -> str:
    """Returns the name of an object that is called by its content."""
    return hashlib.sha256(data).hexdigest()[:32]
