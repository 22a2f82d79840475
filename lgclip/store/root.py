"""Locates the content-addressed store of prompts, captions, images and features; entries are written atomically.

    STORE/prompts/KEY.json             prompts of one class
    STORE/captions/KEY/....json        captions of real images by one captioner, one file per batch
    STORE/images/KEY/ab/abcd....png    images by one diffuser (or .jpg), each with its inputs in it
    STORE/features/KEY/SOURCE/....safetensors   unit features by one encoder, one file per batch

A key covers every input (see `keys`). `inputs.json` next to the entries spells them out, and
`costs.jsonl` records what the entries cost (see `cost_log`); no key depends on costs.
"""

import os
from pathlib import Path
from tempfile import NamedTemporaryFile

from lgclip.store import remote
from lgclip.store.errors import StoreError
from lgclip.store.location import cache_folder, cache_of, parse_location, root_within

__all__ = ["StoreError", "cache_folder", "check_writable", "location_of", "open_root", "root_of"]


def location_of(root: str | os.PathLike[str] | None) -> str:
    """Returns where a store lies, as another machine can be given it: a URL, or the path of its folder.

    Args:
        root: As in `root_of`.
    """
    location = _configured(root)
    url = parse_location(location)
    return str(root_of(location)) if url is None else url.url


def _configured(root: str | os.PathLike[str] | None) -> str:
    if root is None:
        root = os.environ.get("LGCLIP_HOME") or cache_folder() / "lgclip"
    return os.fspath(root)


def root_of(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, whether or not it exists; of a URL, the folder that it is cached in.

    Args:
        root: A folder or a URL (see `location`); None uses `$LGCLIP_HOME`, or else the user's cache folder.

    Raises:
        StoreError: If it is a URL of no known kind, or one with a key in it.
    """
    place = _configured(root)
    location = parse_location(place)
    if location is not None:
        return cache_of(location)
    folder = Path(place).expanduser().absolute()
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        # The path is part of result.json and of the log, which are UTF-8.
        raise StoreError(
            f"store {str(folder)!a}: its path is no text in UTF-8; rename the folder, or name a link to it by "
            "paths.store=LINK"
        ) from error
    return folder


def open_root(root: str | os.PathLike[str] | None) -> Path:
    """Returns the store's folder, created if needed.

    A store with content may be read-only, since a run that lacks nothing writes nothing to it; whatever writes calls
    `check_writable` first.

    Args:
        root: As in `root_of`.

    Raises:
        StoreError: If there is no such folder and it cannot be created, it is empty and not writable, or the object
            store of a URL cannot be read.
    """
    folder = root_of(root)
    remote.connect(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        is_empty = next(folder.iterdir(), None) is None
    except OSError as error:
        raise _unusable(folder, error) from error
    # A new cache of an object store is empty too, and a run that lacks nothing there writes nothing to it.
    if is_empty and root_within(folder) is None:
        check_writable(folder)
    return folder


def check_writable(folder: Path) -> None:
    """Checks that files can be written to the store's folder, which is created if needed, and to its object store.

    Raises:
        StoreError: If the system or the object store refuses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # A file is written for a test, since permissions do not show read-only mounts, quotas or network disks.
        # It fails here, before hours of generation whose first image could not be stored.
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise _unusable(folder, error) from error
    remote.check_writable(folder)


def _unusable(folder: Path, error: OSError) -> StoreError:
    return StoreError(
        f"store {folder}: {error.strerror}; name a folder that can be written, paths.store=DIR or LGCLIP_HOME=DIR"
    )
