"""Connects a store of a URL with its object store; for a store in a folder every function does nothing.

What reads an entry calls `fetch` first. What writes one calls `note_written`, which `atomic_write` does for all files.
The stages call `push_pending` when they end. A process finds the object store by the path of its cache alone, so that
workers and other processes of a run need no more than the store's folder.
"""

import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lgclip.store.location import location_in, root_within

if TYPE_CHECKING:
    from lgclip.store.mirror import Mirror

_used: "dict[tuple[int, Path], Mirror]" = {}


def mirror_of(path: Path) -> "Mirror | None":
    """Returns the mirror of the store that a path lies in; None for a store in a folder.

    Args:
        path: A path in the store, which need not exist.
    """
    root = root_within(path)
    if root is None:
        return None
    return _mirror(root, os.getpid())


@lru_cache(maxsize=16)
def _mirror(root: Path, process: int) -> "Mirror":
    # By process: the connections and locks of another one are of no use after a fork.
    from lgclip.store.mirror import Mirror

    mirror = Mirror(root)
    _used[process, root] = mirror
    return mirror


def connect(root: Path) -> None:
    """Checks that the object store of a store can be read.

    Raises:
        ObjectError: If it cannot, or the library for it is not installed.
    """
    if (mirror := mirror_of(root)) is not None:
        mirror.check()


def check_writable(root: Path) -> None:
    """Checks that the object store of a store can be written.

    Raises:
        ObjectError: If it cannot.
    """
    if (mirror := mirror_of(root)) is not None:
        mirror.check_writable()


def fetch(folder: Path) -> Path:
    """Downloads what an entry lacks here, and returns its folder.

    Args:
        folder: Folder of the entry in a store, such as `STORE/features/ENCODER/SOURCE`.

    Raises:
        ObjectError: If the object store cannot be read.
    """
    if (mirror := mirror_of(folder)) is not None:
        mirror.fetch(folder.relative_to(mirror.root).as_posix())
    return folder


def fetch_file(path: Path) -> bool:
    """Downloads one file of a store; returns whether it is there now.

    Raises:
        ObjectError: If the object store cannot be read.
    """
    mirror = mirror_of(path)
    return mirror is not None and mirror.fetch_file(path)


def read_part(path: Path, start: int, size: int) -> bytes | None:
    """Reads a part of a file that is in the object store and not here; None for any other file.

    Raises:
        ObjectError: If the object store cannot be read.
    """
    mirror = mirror_of(path)
    if mirror is None or path.exists():
        return None
    return mirror.objects.read_part(path.relative_to(mirror.root).as_posix(), start, size)


def remote_shards(folder: Path) -> dict[str, int]:
    """Returns the sizes of the shards of images that are in the object store, by name; they need not be here."""
    mirror = mirror_of(folder)
    return {} if mirror is None else mirror.shards(folder)


def note_written(path: Path) -> None:
    """Notes that a file of a store was written, to be uploaded."""
    if (mirror := mirror_of(path)) is not None:
        mirror.written(path)


def discard_checkpoints(folder: Path) -> None:
    """Deletes the checkpoints of a finished training from the object store."""
    if (mirror := mirror_of(folder)) is not None:
        mirror.discard_checkpoints(folder.relative_to(mirror.root).as_posix())


def push_pending(root: Path | None = None) -> None:
    """Uploads what this process has written to a store with a URL and not yet uploaded.

    Args:
        root: The store; None stands for all that this process has used.

    Raises:
        ObjectError: If it cannot be uploaded; it stays here, and the next run uploads it.
    """
    for mirror in _mirrors(root):
        mirror.push()


def expire(root: Path | None = None) -> None:
    """Invalidates the listing of a store's object store.

    Args:
        root: The store; None stands for all that this process has used.
    """
    for mirror in _mirrors(root):
        mirror.expire()


def _mirrors(root: Path | None) -> "list[Mirror]":
    cache = None if root is None else root_within(root)
    return [
        mirror
        for (process, used), mirror in list(_used.items())
        if process == os.getpid() and (root is None or used == cache)
    ]


def url_of(root: Path) -> str:
    """Returns the URL of a store; empty for a store in a folder."""
    cache = root_within(root)
    return "" if cache is None else location_in(cache)[0].url


def is_remote(root: Path) -> bool:
    """Checks whether a store has a URL."""
    return root_within(root) is not None
