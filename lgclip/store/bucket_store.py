"""Keeps objects in a bucket, by the fsspec file system of its scheme."""

import logging
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.store.location import Location
from lgclip.store.object_store import CONNECTIONS, ObjectError, ObjectInfo, ObjectStore

_ATTEMPTS = 5
"""Tries of one request, with growing pauses, before it counts as failed."""

_SECONDS = 60
"""Wait for an answer, after which a request is tried again."""

_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError", "DefaultCredentialsError")
_EXTRAS = {"s3": "s3", "gs": "gcs"}
"""Extra of the package for each scheme whose library is optional."""


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
                entries: dict[str, dict[str, Any]] = self._fs.find(top, detail=True)
            except FileNotFoundError:
                return {}
        objects: dict[str, ObjectInfo] = {}
        for name, info in entries.items():
            place = str(name).removeprefix("/").removeprefix(self._location.path.removeprefix("/") + "/")
            # A console marks a folder by an empty object whose name ends in a slash.
            if info["type"] == "file" and not place.endswith("/"):
                changed = info.get("LastModified") or info.get("mtime") or info.get("updated") or info.get("created")
                tag = info.get("ETag") or info.get("etag") or ""
                objects[place] = ObjectInfo(int(info["size"]), str(changed), str(tag))
        return objects

    def _get(self, place: str, target: Path) -> None:
        self._fs.get_file(self._full(place), str(target))

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        return self._fs.cat_file(self._full(place), start=start, end=start + size)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        if not path.exists():
            raise FileNotFoundError(path)
        # One request, or parts that become visible together: nobody ever sees a part of an object.
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

    def _delete(self, places: Sequence[str]) -> None:
        self._fs.rm([self._full(place) for place in places])

    def _check(self) -> None:
        # An empty prefix is no folder.
        with suppress(FileNotFoundError):
            self._fs.ls(self._location.path, detail=False)

    def _translate(self, error: Exception, operation: str) -> str:
        chain = list(_chain(error))
        names = {type(link).__name__ for link in chain}
        if names & set(_NO_CREDENTIALS):
            return _credentials(self._location.scheme)
        if any(isinstance(link, PermissionError) for link in chain):
            return (
                f"no rights to {operation}: the credentials of the environment or of the machine's role do not allow "
                "it; grant them to read, write and list objects, or name another store by paths.store"
            )
        causes = [type(link).__name__ for link in chain if isinstance(link, OSError) or _is_client_error(link)]
        if not causes:
            return ""
        return (
            f"it cannot be reached ({', '.join(dict.fromkeys(causes))}), after "
            f"repeated tries to {operation}; what was made is kept on this machine, and the same command goes on"
        )


class _Page(NamedTuple):
    """Holds a part of a bucket's list.

    Attributes:
        objects: The objects, by their names in the bucket.
        page_token: Token of the next part; empty after the last one.
    """

    objects: dict[str, ObjectInfo]
    page_token: str


class _ListedStore(BucketStore):
    """Lists a bucket by the provider's own request: fsspec's `find` sends further ones where nothing is found."""

    @abstractmethod
    def _page(self, bucket: str, prefix: str, page_token: str = "", limit: int | None = None) -> _Page:
        """Returns a part of the list.

        Args:
            bucket: The bucket.
            prefix: Prefix of the names.
            page_token: Token of the part; empty for the first one.
            limit: Maximum number of objects; the provider's own if None.

        Raises:
            FileNotFoundError: If there is no such bucket.
        """

    def _check(self) -> None:
        bucket, _, prefix = self._location.path.partition("/")
        try:
            self._page(bucket, prefix, limit=1)
        except FileNotFoundError:
            raise self._no_bucket() from None

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        bucket, _, prefix = self._full(folder).partition("/")
        top = self._location.path.partition("/")[2]
        objects: dict[str, ObjectInfo] = {}
        page_token = ""
        while True:
            with self._errors("read it"):
                try:
                    page = self._page(bucket, f"{prefix}/" if prefix else "", page_token)
                except FileNotFoundError:
                    raise self._no_bucket() from None
            for name, info in page.objects.items():
                place = name.removeprefix(f"{top}/" if top else "")
                if not place.endswith("/"):
                    objects[place] = info
            page_token = page.page_token
            if not page_token:
                return objects


class S3Store(_ListedStore):
    """Keeps objects in a bucket of S3, or of a server that speaks its protocol."""

    def _page(self, bucket: str, prefix: str, page_token: str = "", limit: int | None = None) -> _Page:
        query: dict[str, Any] = {"ContinuationToken": page_token} if page_token else {}
        if limit:
            query["MaxKeys"] = limit
        page = self._fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **query)
        objects = {
            entry["Key"]: ObjectInfo(int(entry["Size"]), entry["LastModified"].isoformat(), entry.get("ETag", ""))
            for entry in page.get("Contents", ())
        }
        return _Page(objects, page["NextContinuationToken"] if page.get("IsTruncated") else "")


class GoogleStore(_ListedStore):
    """Keeps objects in a bucket of Google Cloud Storage, or of an emulator of it."""

    def _page(self, bucket: str, prefix: str, page_token: str = "", limit: int | None = None) -> _Page:
        query: dict[str, Any] = {"pageToken": page_token} if page_token else {}
        if limit:
            query["maxResults"] = limit
        page = self._fs.call("GET", "b/{}/o", bucket, json_out=True, prefix=prefix, **query)
        objects = {
            entry["name"]: ObjectInfo(int(entry["size"]), entry["updated"], entry.get("etag", ""))
            for entry in page.get("items", ())
        }
        return _Page(objects, page.get("nextPageToken", ""))

    def _delete(self, places: Sequence[str]) -> None:
        # Another machine may have deleted them.
        with suppress(FileNotFoundError):
            super()._delete(places)

    def _translate(self, error: Exception, operation: str) -> str:
        # gcsfs raises plain errors of the system for the answers 401 and 403.
        for link in _chain(error):
            if str(getattr(link, "code", "")) == "401":
                return _credentials(self._location.scheme)
            if isinstance(link, OSError) and str(link).startswith("Forbidden"):
                return super()._translate(PermissionError(), operation)
        return super()._translate(error, operation)


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
        if location.scheme == "gs":
            return _google_file_system(location)
        fsspec = import_module("fsspec")
        # Not from fsspec's cache of instances: one that was made with other credentials, or before a fork.
        return fsspec.filesystem(location.scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except ImportError as error:
        raise ObjectError(
            f"{location.url}: {location.scheme}:// needs {error.name or 'a library'}: pip install 'lgclip[{extra}]'"
        ) from None


def _google_file_system(location: Location) -> Any:
    """Returns gcsfs's file system, which tries a request six times, with growing pauses of half a minute in all."""
    core = import_module("gcsfs").core
    timeout = import_module("aiohttp").ClientTimeout(total=None, sock_connect=_SECONDS, sock_read=_SECONDS)
    options: dict[str, Any] = {"requests_timeout": timeout}
    if location.endpoint:
        # An emulator asks for no credentials, and those of the machine are none of its business.
        url = location.endpoint if "://" in location.endpoint else f"http://{location.endpoint}"
        options |= {"endpoint_url": url, "token": "anon"}
    # It logs the stack of every error that it raises as well.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Not the class that fsspec names: that asks first for the kind of each bucket, by another protocol and with a
    # right that not everyone has who may read and write objects.
    return core.GCSFileSystem(skip_instance_cache=True, use_listings_cache=False, **options)


def _credentials(scheme: str) -> str:
    if scheme == "s3":
        advice = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or give the machine a role"
    else:
        advice = "set GOOGLE_APPLICATION_CREDENTIALS, or give the machine a service account"
    return f"there are no credentials; {advice}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_client_error(error: BaseException) -> bool:
    return type(error).__module__.partition(".")[0] in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google")
