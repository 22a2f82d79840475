"""Reads and writes the objects of a store that lies in a bucket, on the Hub, or in a folder that is treated so.

fsspec is the interface: s3fs, gcsfs and the Hub's own file system implement it, with their retries and credentials.
What is added is what a store needs: an object is there completely or not at all, its size is checked when it is read,
many objects are moved at once, and an error is one line that names the store and the way out.
"""

import hashlib
import os
import re
import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lgclip.store.errors import StoreError
from lgclip.store.location import Location, cache_of

CONNECTIONS = 16
"""Objects that are moved at once."""

_ATTEMPTS = 5
"""Tries of one request, with growing pauses, before it counts as failed."""

_SECONDS = 60
"""Wait for an answer, after which a request is tried again."""

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "DefaultCredentialsError")
_MD5 = re.compile(r"[0-9a-f]{32}")
_PROBE = ".writable"
"""Object that is written to learn whether one may; always the same, since not everyone who may write may delete."""

_EXTRAS = {"s3": "s3", "gs": "gcs"}
"""Extra of the package for each scheme whose library is optional."""


class ObjectError(StoreError):
    """Reports that an object store could not be read or written; the message says why and how to fix it."""


class ObjectInfo(NamedTuple):
    """Describes an object.

    Attributes:
        size: In bytes.
        changed: When it was written, as the store says it; texts or numbers of one store are in order.
    """

    size: int
    changed: str


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
        """Asks the store for one thing, so that a wrong name, missing rights or no network raise their error."""

    @abstractmethod
    def _translate(self, error: Exception, doing: str) -> str:
        """Returns why an operation failed, and the way out; empty for an error that is not the store's."""

    def check(self) -> None:
        """Checks that the store can be read.

        Raises:
            ObjectError: If it cannot.
        """
        with self._errors("read it"):
            self._check()

    def check_writable(self, aside: Path) -> None:
        """Checks that objects can be written, by writing a small one.

        Args:
            aside: Folder for a temporary file.

        Raises:
            ObjectError: If they cannot.
        """
        file = aside / f"{_PROBE}.{os.getpid()}"
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

        return [place for place in at_once(upload, list(files)) if place is not None]

    def delete(self, places: Sequence[str]) -> None:
        """Deletes objects.

        Raises:
            ObjectError: If they cannot be deleted.
        """
        if places:
            with self._errors("delete from it"):
                self._delete(places)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, ObjectError):
            raise
        except Exception as error:
            reason = self._translate(error, doing)
            if not reason:
                raise
            # Without the library's own error, whose text may repeat what a server was sent.
            raise ObjectError(f"{self.url}: {reason}") from None


def at_once(work: Callable[[str], Any], places: Sequence[str]) -> list[Any]:
    """Calls a function for several places in threads; returns its results in order, or raises the first error."""
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


class BucketStore(ObjectStore):
    """Keeps objects in a bucket, by the fsspec file system of its scheme."""

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        self._fs = _file_system(location)

    def _full(self, place: str) -> str:
        return f"{self._location.path}/{place}".rstrip("/")

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        top = self._full(folder)
        with self._errors("read it"):
            try:
                found: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
            except FileNotFoundError:
                return {}
        objects: dict[str, ObjectInfo] = {}
        for name, info in found.items():
            place = str(name).removeprefix("/").removeprefix(self._location.path.removeprefix("/") + "/")
            # A console marks a folder by an empty object whose name ends in a slash.
            if info["type"] == "file" and not place.endswith("/"):
                changed = info.get("LastModified") or info.get("mtime") or info.get("updated") or info.get("created")
                objects[place] = ObjectInfo(int(info["size"]), str(changed))
        return objects

    def _get(self, place: str, target: Path) -> None:
        self._fs.get_file(self._full(place), str(target))

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        return self._fs.cat_file(self._full(place), start=start, end=start + size)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        # One request, or parts that become visible together: nobody ever sees a part of an object.
        self._fs.put_file(str(path), self._full(place))

    def _delete(self, places: Sequence[str]) -> None:
        self._fs.rm([self._full(place) for place in places])

    def _check(self) -> None:
        # An empty prefix is no folder.
        with suppress(FileNotFoundError):
            self._fs.ls(self._location.path, detail=False)

    def _translate(self, error: Exception, doing: str) -> str:
        chain = list(_chain(error))
        names = {type(link).__name__ for link in chain}
        if names & set(_NO_CREDENTIALS):
            return _credentials(self._location.scheme)
        if any(isinstance(link, PermissionError) for link in chain):
            return (
                f"no rights to {doing}: the credentials of the environment or of the machine's role do not allow it; "
                "grant them to read, write and list objects, or name another store by paths.store"
            )
        causes = [type(link).__name__ for link in chain if isinstance(link, OSError) or _is_client_error(link)]
        if not causes:
            return ""
        return (
            f"it cannot be reached ({', '.join(dict.fromkeys(causes))}), after "
            f"repeated tries to {doing}; what was made is kept on this machine, and the same command goes on"
        )


class S3Store(BucketStore):
    """Keeps objects in a bucket of S3, or of a server that speaks its protocol."""

    def _check(self) -> None:
        bucket, _, prefix = self._location.path.partition("/")
        try:
            # One request; `ls` would list all that lies directly below the prefix.
            self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        # As `find`, without its further requests where nothing is found.
        bucket, _, prefix = self._full(folder).partition("/")
        top = self._location.path.partition("/")[2]
        objects: dict[str, ObjectInfo] = {}
        token: dict[str, str] = {}
        while True:
            with self._errors("read it"):
                try:
                    page = self._fs.call_s3(
                        "list_objects_v2", Bucket=bucket, Prefix=f"{prefix}/" if prefix else "", **token
                    )
                except FileNotFoundError:
                    raise self._no_bucket() from None
            for entry in page.get("Contents", ()):
                place = entry["Key"].removeprefix(f"{top}/" if top else "")
                if not place.endswith("/"):
                    objects[place] = ObjectInfo(int(entry["Size"]), entry["LastModified"].isoformat())
            if not page.get("IsTruncated"):
                return objects
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        try:
            if replace:
                self._fs.put_file(str(path), self._full(place))
            else:
                self._create(place, path)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def _create(self, place: str, path: Path) -> None:
        """Writes an object unless there is one: what another machine has put under the same key stays."""
        try:
            self._fs.put_file(str(path), self._full(place), mode="create")
        except FileExistsError:
            pass
        except NotImplementedError:
            self._fs.put_file(str(path), self._full(place))
        except OSError as error:
            # Servers without conditional writes answer 501; equal keys mean equal content, so plain writes do.
            if "not implemented" not in str(error).lower():
                raise
            self._fs.put_file(str(path), self._full(place))

    def _no_bucket(self) -> ObjectError:
        bucket = self._location.path.partition("/")[0]
        return ObjectError(f"{self.url}: there is no bucket {bucket!r}; make it, or name another by paths.store")


class FolderStore(ObjectStore):
    """Keeps objects in a folder, such as one on a slow network disk, which is only read and written as a whole file."""

    @property
    def _root(self) -> Path:
        return Path(self._location.path)

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        objects: dict[str, ObjectInfo] = {}
        with self._errors("read it"):
            for base, _, names in os.walk(self._root / folder):
                for name in names:
                    path = Path(base) / name
                    # Objects have no hidden names: this one is being written, or its writing was interrupted.
                    if name.startswith("."):
                        continue
                    status = path.stat()
                    place = path.relative_to(self._root).as_posix()
                    objects[place] = ObjectInfo(status.st_size, f"{status.st_mtime_ns:020d}")
        return objects

    def _get(self, place: str, target: Path) -> None:
        shutil.copyfile(self._root / place, target)

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        with (self._root / place).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        target = self._root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        # fsspec's file system of local files copies to the name itself, where others would see a part of it.
        temporary = target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}")
        try:
            shutil.copyfile(path, temporary)
            if replace:
                temporary.replace(target)
            else:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    pass
                except OSError:  # a disk without links
                    temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _delete(self, places: Sequence[str]) -> None:
        for place in places:
            (self._root / place).unlink(missing_ok=True)

    def _check(self) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise ObjectError(f"{self.url}: it is a file where a folder is expected")

    def _translate(self, error: Exception, doing: str) -> str:
        if not isinstance(error, OSError):
            return ""
        return f"cannot {doing}: {error.strerror or error}; what was made is kept on this machine"


class HubStore(ObjectStore):
    """Keeps objects in a repository of the Hugging Face Hub, several files a commit."""

    # The hub counts commits, not files, and limits them by the hour.
    push_seconds = 300.0

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        parts = location.path.split("/")
        self._type = "model"
        if parts[0] == "datasets":
            self._type = "dataset"
            del parts[0]
        self._repo = "/".join(parts[:2])
        self._prefix = "/".join(parts[2:])

    def _full(self, place: str) -> str:
        return "/".join(part for part in (self._prefix, place) if part)

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        from huggingface_hub.errors import EntryNotFoundError

        top = self._full(folder)
        objects: dict[str, ObjectInfo] = {}
        with self._errors("read it"):
            try:
                found = list(self._api.list_repo_tree(self._repo, top or None, recursive=True, repo_type=self._type))
            except EntryNotFoundError:
                return {}
        for entry in found:
            size = getattr(entry, "size", None)
            if size is not None:
                place = entry.path.removeprefix(f"{self._prefix}/" if self._prefix else "")
                objects[place] = ObjectInfo(int(size), "")
        return objects

    def _files(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(skip_instance_cache=True, use_listings_cache=False)

    def _address(self, place: str) -> str:
        kind = "datasets/" if self._type == "dataset" else ""
        return f"{kind}{self._repo}/{self._full(place)}"

    def _get(self, place: str, target: Path) -> None:
        # Not by the file system, which asks the hub four times for a file. On the disk of the cache, where it is moved.
        with TemporaryDirectory(dir=cache_of(self._location).parent) as folder:
            path = self._api.hf_hub_download(self._repo, self._full(place), repo_type=self._type, local_dir=folder)
            shutil.move(path, target)

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        return self._files().cat_file(self._address(place), start=start, end=start + size)

    def put(self, files: Mapping[str, Path], replaced: frozenset[str] = frozenset()) -> list[str]:
        from huggingface_hub import CommitOperationAdd

        # A commit holds all of them or none, so the order of its files does not matter.
        there = {place: path for place, path in files.items() if path.exists()}
        if not there:
            return []
        operations = [CommitOperationAdd(self._full(place), str(path)) for place, path in there.items()]
        with self._errors("write to it"):
            self._api.create_commit(
                self._repo,
                operations,
                commit_message=f"Add {len(there)} files of an lgclip store",
                repo_type=self._type,
            )
        return list(there)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        self.put({place: path})

    def check_writable(self, aside: Path) -> None:
        # No commit for a test: the hub answers whether the token may write.
        with self._errors("write to it"):
            self._api.auth_check(self._repo, repo_type=self._type, write=True)

    def _delete(self, places: Sequence[str]) -> None:
        self._api.delete_files(self._repo, [self._full(place) for place in places], repo_type=self._type)

    def _check(self) -> None:
        self._api.repo_info(self._repo, repo_type=self._type, timeout=20)

    @contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError

        from lgclip.runtime.hub import HubError, hub_errors

        try:
            with hub_errors(self._repo, "store", upload=doing != "read it"):
                yield
        except EntryNotFoundError as error:
            raise FileNotFoundError(self.url) from error
        except HubError as error:
            raise ObjectError(f"{self.url}: {error}") from None

    def _translate(self, error: Exception, doing: str) -> str:
        return ""


def object_store(location: Location) -> ObjectStore:
    """Returns the objects at a location; connects to nothing yet.

    Raises:
        ObjectError: If the library for its scheme is not installed.
    """
    match location.scheme:
        case "s3":
            return S3Store(location)
        case "hf":
            return HubStore(location)
        case "file":
            return FolderStore(location)
        case _:
            return BucketStore(location)


def _file_system(location: Location) -> Any:
    """Returns the fsspec file system of a scheme, with bounded retries and without caches of listings."""
    extra = _EXTRAS.get(location.scheme)
    options: dict[str, Any] = {}
    if location.scheme == "s3":
        # botocore tries again after 500, 503, a slow answer or a lost connection, with growing pauses.
        options["config_kwargs"] = {
            "retries": {"max_attempts": _ATTEMPTS, "mode": "standard"},
            "connect_timeout": _SECONDS,
            "read_timeout": _SECONDS,
            "max_pool_connections": 2 * CONNECTIONS,
        }
        if location.endpoint:
            options["endpoint_url"] = location.endpoint
    try:
        fsspec = import_module("fsspec")
        # Not from fsspec's cache of instances: one that was made with other credentials, or before a fork.
        return fsspec.filesystem(location.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise ObjectError(
            f"{location.url}: {location.scheme}:// needs {error.name or 'a library'}: pip install 'lgclip[{extra}]'"
        ) from None


def _credentials(scheme: str) -> str:
    if scheme == "s3":
        way = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    else:
        way = "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account"
    return f"there are no credentials; {way}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_client_error(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")


def digest_of_bytes(data: bytes) -> str:
    """Returns the name of an object that is called by its content."""
    return hashlib.sha256(data).hexdigest()[:32]
