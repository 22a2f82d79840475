"""Reads where a store lies: in a folder, or below the URL of an object store, of which a folder here is a cache.

    paths.store=DIR                       a folder, used as it is
    paths.store=s3://BUCKET/PREFIX        S3, and servers that speak its protocol (AWS_ENDPOINT_URL)
    paths.store=gs://BUCKET/PREFIX        Google Cloud Storage, and its emulators (STORAGE_EMULATOR_HOST)
    paths.store=hf://datasets/USER/NAME/PREFIX, hf://USER/NAME/PREFIX      a repository of the Hugging Face Hub
    paths.store=file:///DIR               a folder that is treated as an object store, such as a slow network disk

Nothing here connects, and nothing heavy is imported.
"""

import hashlib
import json
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from lgclip.store.errors import StoreError

SCHEMES = ("s3", "gs", "hf", "file")
"""Schemes of the URLs that a store may have."""

CACHES = "lgclip-remote"
"""Folder of the user's cache folder with a copy of what was read from, or is put into, each object store."""

_ABOUT = "remote.json"
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
ENDPOINT_VARIABLES = {"s3": ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), "gs": ("STORAGE_EMULATOR_HOST",)}
"""Environment variables that name another server than the provider's own, the first that is set, by scheme."""


@dataclass(frozen=True)
class Location:
    """Names a store that is reached by a URL.

    Attributes:
        scheme: One of `SCHEMES`.
        path: What follows `://`, without a slash at its end: bucket and prefix, repository and folder, or a folder.
        endpoint: Another server that speaks the protocol of S3 or of Google's storage; empty for the provider's own.
        revision: Commit of a repository of the Hub that is read; empty for its main branch.
    """

    scheme: str
    path: str
    endpoint: str = ""
    revision: str = ""

    @property
    def url(self) -> str:
        """Returns the URL; it never holds a key, see `parse_location`."""
        return f"{self.scheme}://{self.path}"

    @property
    def key(self) -> str:
        """Returns a short hash of the URL and the endpoint."""
        parts = [self.url, self.endpoint, *([self.revision] if self.revision else [])]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def cache_folder() -> Path:
    """Returns the user's cache folder: `$XDG_CACHE_HOME`, or else `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


def parse_location(text: str, option: str = "paths.store") -> Location | None:
    """Returns the location that a URL names; None for a path.

    Args:
        text: A URL, or a path.
        option: Setting that names it, for errors.

    Raises:
        StoreError: If the URL is of another kind, names no bucket, or holds a key, which the message does not repeat.
    """
    match = _URL.fullmatch(text)
    if match is None:
        return None
    scheme = match[1].lower().replace("gcs", "gs")
    path = match[2].rstrip("/")
    if "@" in path or "?" in path or "#" in path:
        # Without the URL: what stands before the @ may be a key and its secret.
        raise StoreError(
            f"{option}: a URL of {scheme}:// names a bucket or repository and a prefix, without @, ? and #; "
            "credentials come from the environment or the machine's role, never from a URL"
        )
    if scheme not in SCHEMES:
        schemes = ", ".join(f"{name}://" for name in SCHEMES)
        raise StoreError(f"{option}={scheme}://...: choose {schemes} or the path of a folder")
    parts = path.split("/")
    if scheme == "file":
        if not path.startswith("/"):
            raise StoreError(f"{option}={text}: file:// takes an absolute path, as in file:///shared/store")
    elif not all(parts) or any(part in (".", "..") for part in parts):
        raise StoreError(f"{option}={text}: name a bucket or repository, and a prefix without empty parts")
    if scheme == "hf":
        _check_repository(text, parts, option)
    endpoints = [os.environ[name] for name in ENDPOINT_VARIABLES.get(scheme, ()) if os.environ.get(name)]
    return Location(scheme, path, endpoints[0] if endpoints else "")


def _check_repository(text: str, parts: list[str], option: str) -> None:
    """Raises an error unless the path of an hf:// URL begins with a model's or a data set's repository."""
    is_dataset = parts[0] == "datasets"
    if parts[0] in ("spaces", "buckets") or len(parts) < (3 if is_dataset else 2):
        raise StoreError(f"{option}={text}: choose hf://datasets/USER/NAME/PREFIX or hf://USER/NAME/PREFIX")


def cache_of(location: Location) -> Path:
    """Returns the folder of this machine that a store is cached in, created if needed; laid out as a store.

    Args:
        location: The store.
    """
    slug = re.sub(r"[^A-Za-z0-9]+", "-", location.path).strip("-")[-40:]
    folder = cache_folder().expanduser().absolute() / CACHES / f"{location.scheme}-{slug}-{location.key}"
    root = folder / "store"
    about = folder / _ABOUT
    if about.is_file() and root.is_dir():
        return root
    try:
        root.mkdir(parents=True, exist_ok=True)
        # Not by `atomic_write`, which asks this module where a file lies.
        temporary = folder / f".{_ABOUT}.{os.getpid()}"
        # The name of this copy of the store: what only one writer may replace is put under it.
        content = {**vars(location), "writer": secrets.token_hex(8)}
        temporary.write_text(json.dumps(content) + "\n", encoding="utf-8")
        try:
            # A link fails where another process was faster, whose name then holds.
            os.link(temporary, about)
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    except OSError as error:
        raise StoreError(
            f"cache of {location.url} in {folder}: {error.strerror}; name another by XDG_CACHE_HOME"
        ) from error
    return root


def root_within(path: Path) -> Path | None:
    """Returns the folder that a store of a URL is cached in, of a path below it; None for any other path.

    Args:
        path: A path, which need not exist.
    """
    # The test of a text first: this is asked for every file that is written, also to a store in a folder.
    if CACHES not in path.parts:
        return None
    parts = path.parts
    place = parts.index(CACHES)
    root = Path(*parts[: place + 3])
    if len(parts) < place + 3 or root.name != "store" or not (root.parent / _ABOUT).is_file():
        return None
    return root


def location_in(root: Path) -> tuple[Location, str]:
    """Returns the location that a cache belongs to, and the name of this copy.

    Args:
        root: From `cache_of` or `root_within`.
    """
    about = json.loads((root.parent / _ABOUT).read_text(encoding="utf-8"))
    writer = about.pop("writer")
    return Location(**about), writer
