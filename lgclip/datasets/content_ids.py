"""Identifies image files by their content, with a cache of hashes."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from lgclip.runtime.regular_files import regular_stat
from lgclip.store.atomic import atomic_write
from lgclip.store.keys import content_key, digest_of, file_stamp
from lgclip.store.root import cache_folder

log = logging.getLogger(__name__)

_READERS = 8
"""Threads that read files; hashing releases the interpreter's lock."""
_BLOCK = 4096
"""Files that are hashed before their results are taken, which bounds the queue."""
_YOUNG = 2 * 10**9
"""Nanoseconds: a file that has changed so recently may change again within one tick of the file system's clock."""
_LOCK_SECONDS = 600
_DIGEST = 16
"""Bytes of a stored hash; the key that is made of it has as many."""


def content_id(digest: str) -> str:
    """Returns the key of an image by the sha256 of its file; the same in every folder."""
    return content_key({"content": digest})


def content_ids(root: Path, files: Sequence[str]) -> Iterator[str]:
    """Yields the content key of each image file.

    Hashes are cached by path, size, times and inode, so that a second run reads no image. The time of the last change
    of the inode cannot be set by a program, so that swapped files are noticed even if all else is restored.

    Args:
        root: Folder of the files.
        files: Path of each, relative to it.

    Raises:
        ValueError: If a file cannot be read.
    """
    cache = _Cache(root)
    try:
        # Processes that start together wait for the first, and then read what it has hashed.
        with FileLock(cache.lock, timeout=_LOCK_SECONDS):
            digests = cache.digests(files)
    except (OSError, Timeout) as error:  # a cache is no condition of a run
        log.debug("no cache of hashes in %s: %s", cache.path, error)
        digests = cache.digests(files, stores=False)
    for digest in digests:
        yield content_id(digest.tobytes().hex())


class _Cache:
    """Caches the hashes of the files below one folder.

    Args:
        root: The folder.
    """

    def __init__(self, root: Path) -> None:
        folder = cache_folder() / "lgclip-hashes"
        self._root = root
        self.path = folder / f"{content_key({'root': os.fsencode(root.resolve()).hex()})}.npz"
        self.lock = self.path.with_suffix(".lock")
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            log.debug("no cache of hashes in %s: %s", folder, error)

    def digests(self, files: Sequence[str], *, stores: bool = True) -> np.ndarray:
        """Returns the sha256 of each file, as rows of bytes; hashes what is not cached."""
        cached = self._read()
        now = time.time_ns()
        names = np.empty((len(files), _DIGEST), np.uint8)
        settled = np.empty(len(files), bool)
        for index, file in enumerate(files):
            name, changed = _name(self._root, file)
            names[index] = np.frombuffer(name, np.uint8)
            settled[index] = now - changed > _YOUNG
        keys = names.view(f"V{_DIGEST}").ravel()
        digests = np.empty((len(files), 32), np.uint8)
        missing = [index for index in range(len(files)) if not _take(cached, keys[index], digests, index)]
        for start in range(0, len(missing), _BLOCK):
            block = missing[start : start + _BLOCK]
            with ThreadPoolExecutor(_READERS) as readers:
                hashed = readers.map(_digest, [self._root / files[index] for index in block])
                for index, digest in zip(block, hashed, strict=True):
                    digests[index] = np.frombuffer(digest, np.uint8)
        if missing and stores:
            self._write(keys[settled], digests[settled])
        return digests

    def _read(self) -> dict[bytes, np.ndarray]:
        try:
            regular_stat(self.path)
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                names = content["names"]
                digests = content["digests"]
                checksum = content["checksum"]
            if checksum.tobytes() != _checksum(names, digests) or len(names) != len(digests):
                raise ValueError("its checksum is wrong")
        except FileNotFoundError:
            return {}
        except Exception as error:  # a damaged zip file fails in many ways; the hashes are computed again
            log.warning("%s is damaged (%s); the images are hashed again", self.path, error)
            return {}
        return dict(zip((name.tobytes() for name in names), digests, strict=True))

    def _write(self, keys: np.ndarray, digests: np.ndarray) -> None:
        names = keys.view(np.uint8).reshape(-1, _DIGEST)
        with atomic_write(self.path) as temporary, temporary.open("wb") as file:
            checksum = np.frombuffer(_checksum(names, digests), np.uint8)
            np.savez(file, names=names, digests=digests, checksum=checksum)


def _take(cached: dict[bytes, np.ndarray], key: np.void, digests: np.ndarray, index: int) -> bool:
    digest = cached.get(key.tobytes())
    if digest is None:
        return False
    digests[index] = digest
    return True


def _checksum(names: np.ndarray, digests: np.ndarray) -> bytes:
    return hashlib.sha256(names.tobytes() + digests.tobytes()).digest()


def _name(root: Path, file: str) -> tuple[bytes, int]:
    """Returns an identifier of a file's present state, and the time of its last change in nanoseconds."""
    try:
        stamp = file_stamp(root / file)
    except OSError as error:
        raise ValueError(f"{root / file} cannot be read ({error.strerror}): it was listed a moment ago") from error
    name = hashlib.blake2b(os.fsencode(file), digest_size=_DIGEST)
    name.update(repr(stamp).encode())
    return name.digest(), max(stamp.changed, stamp.inode_changed)


def _digest(file: Path) -> bytes:
    try:
        return bytes.fromhex(digest_of(file))
    except OSError as error:
        raise ValueError(
            f"{file} cannot be read ({error.strerror}): this is an error of the file system, so the image is never "
            "left out"
        ) from error
