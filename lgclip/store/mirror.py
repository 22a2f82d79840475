"""Synchronizes a folder of this machine with an object store, entry by entry.

No object is ever replaced by other content of the same entry, so that two machines may fill one store at once:

    features/..., captions/..., images/KEY/shards/..., students/...    as in a store in a folder: written once
    prompts/GENERATOR/DIGEST.jsonl       prompts of several classes, a line each; a class that gets more has a new line
    ENTRY/costs/DIGEST.jsonl             lines of a cost log, each in one object
    ENTRY/checkpoints/WRITER/...         checkpoints, which this machine alone replaces

An entry is what has one key: it is listed by one request (more from 1,000 objects on), whatever it holds. Images lie
in shards; a run that has their features reads the indexes alone, and never the shards.
"""

import hashlib
import logging
import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

from filelock import FileLock

from lgclip.runtime.progress import Progress
from lgclip.store.atomic import atomic_write
from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import digest_of
from lgclip.store.location import location_in
from lgclip.store.object_store import ObjectError, ObjectInfo, call_in_threads, object_store
from lgclip.store.places import (
    CHECKPOINTS,
    entry_of,
    is_immutable,
    is_index,
    is_marker,
    segments_of,
)
from lgclip.store.segments import Segments, generator_place
from lgclip.store.shard_index import read_index_sum
from lgclip.store.upload_queue import UploadQueue

log = logging.getLogger(__name__)

_LISTED_SECONDS = 30.0
"""Seconds for which a listing of an entry is valid; a stage lists its missing items many times."""

_SHOWN = 100
"""Number of files from which on a download shows its progress."""


class Mirror:
    """Copies what a run needs from an object store to a folder, and what it makes back.

    Args:
        root: Folder that is laid out as a store, see `location.cache_of`.
    """

    def __init__(self, root: Path) -> None:
        location, writer = location_in(root)
        self.root = root
        self.objects = object_store(location)
        self._segments = Segments(root, root.parent / "segments")
        self._lock = threading.RLock()
        self._listed: dict[str, float] = {}
        self._remote_objects: dict[str, dict[str, ObjectInfo]] = {}
        self._merged: dict[str, set[str]] = {}
        self._searched: set[str] = set()
        self._arriving: set[str] = set()
        self._arrived: set[str] = set()
        self._is_checked = False
        self._uploads = UploadQueue(root, writer, self.objects, self._segments, self._remote_objects)

    # ---------------------------------------------------------------------------------------------------- reading

    def check(self) -> None:
        """Checks, once, that the object store can be read.

        Raises:
            ObjectError: If it cannot.
        """
        if not self._is_checked:
            self.objects.check()
            self._is_checked = True

    def expire(self) -> None:
        """Invalidates the listings of all entries: another machine may have written to them."""
        with self._lock:
            self._listed.clear()

    def fetch(self, place: str, *, shards: bool = False, lists: bool = False) -> None:
        """Downloads what an entry holds and this machine lacks: all but the shards of images.

        Args:
            place: Place of a file or a folder of the entry, in a store's layout.
            shards: Whether to download the shards as well.
            lists: Whether to download only what tells what is there.

        Raises:
            ObjectError: If the object store cannot be read.
        """
        entry = entry_of(place)
        with self._lock:
            now = time.monotonic()
            is_fresh = now - self._listed.get(entry, -_LISTED_SECONDS) < _LISTED_SECONDS
            if is_fresh and not shards:
                return
            if entry == place and place.endswith(".json"):
                self._fetch_alone(self.root / place, again=lists)
                return
            remote_objects = self.objects.ls(entry)
            self._remote_objects[entry] = remote_objects
            self._download(entry, remote_objects, shards=shards, lists=lists)
            self._merge_segments(entry, remote_objects)
            if entry not in self._searched:
                self._uploads.add_unsent(entry)
                self._searched.add(entry)
            if not lists:
                self._listed[entry] = now

    def _download(self, entry: str, remote_objects: Mapping[str, ObjectInfo], *, shards: bool, lists: bool) -> None:
        downloads: dict[str, tuple[str, Path]] = {}
        for place in remote_objects:
            if f"/{CHECKPOINTS}/" in place:
                continue
            if segments_of(entry, place):
                target = self._segments.folder / place
            elif lists and not is_index(place):
                continue
            elif is_immutable(place) and (shards or not place.endswith(".tar")):
                target = self.root / place
            else:
                continue
            if not target.exists():
                downloads[place] = (place, target)
        if not lists:
            downloads |= self._checkpoints(entry, remote_objects)
        # Weights before the file that marks them complete; shards last, since their indexes have their hashes.
        shard_files = [place for place in downloads if place.endswith(".tar")]
        first = [place for place in downloads if not is_marker(place) and not place.endswith(".tar")]
        last = [place for place in downloads if is_marker(place)]
        progress = None
        if len(downloads) >= _SHOWN or any(remote_objects[place].size > 10**8 for place in downloads):
            progress = Progress(f"download {self.objects.url}", len(downloads), "file")

        def download(place: str) -> None:
            source, target = downloads[place]
            self._get(source, target, remote_objects[source].size)
            if progress is not None:
                progress.update(1)

        for places in (first, last, shard_files):
            call_in_threads(download, places)
        if progress is not None:
            progress.close()

    def _get(self, place: str, target: Path, size: int | None) -> None:
        local = self._local(target)
        # Of the processes of one machine one downloads a shard; a small file may well be downloaded twice.
        with self._lock_of(local) if place.endswith(".tar") else nullcontext():
            if target.exists():
                return
            target.parent.mkdir(parents=True, exist_ok=True)
            self._arriving.add(local)
            try:
                with atomic_write(target) as temporary:
                    self.objects.get(place, temporary, size)
                    _check_shard(self.objects.url, place, target, temporary)
                self._arrived.add(local)
            except FileNotFoundError:
                log.warning("%s/%s has been deleted since it was listed", self.objects.url, place)
            finally:
                self._arriving.discard(local)

    def _lock_of(self, local: str) -> FileLock:
        folder = self.root.parent / "locks"
        folder.mkdir(exist_ok=True)
        return FileLock(folder / hashlib.sha256(local.encode()).hexdigest()[:2])

    def _local(self, target: Path) -> str:
        base = self.root if target.is_relative_to(self.root) else self.root.parent
        return target.relative_to(base).as_posix()

    def fetch_file(self, path: Path) -> bool:
        """Downloads one file, such as a shard; returns whether it is there now.

        Raises:
            ObjectError: If the object store cannot be read, or the file is not what its index describes.
        """
        place = path.relative_to(self.root).as_posix()
        entry = entry_of(place)
        if entry == place:
            self._fetch_alone(path)
            return path.exists()
        if place not in self._remote_objects.get(entry, {}):
            self.fetch(place)
        info = self._remote_objects.get(entry, {}).get(place)
        if info is None:
            return path.exists()
        self._get(place, path, info.size)
        return path.exists()

    def _fetch_alone(self, path: Path, *, again: bool = False) -> None:
        """Downloads, once, a file that is an entry by itself, if there is one; one that is here stays."""
        place = path.relative_to(self.root).as_posix()
        with self._lock:
            if place in self._searched or (path.exists() and not again):
                return
            self._searched.add(place)
        # Of each process its own: until it is complete it must not be found under the name of another.
        temporary = self._segments.folder / f".{place.replace('/', '-')}.{os.getpid()}"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.objects.get(place, temporary, None)
            self._remote_objects[place] = {place: ObjectInfo(temporary.stat().st_size, "")}
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.replace(path)
        except FileNotFoundError:
            pass  # there is none
        finally:
            temporary.unlink(missing_ok=True)

    def entry_of_file(self, place: str, path: Path) -> str:
        """Returns the entry of a file that lies in some store.

        Args:
            place: Its place in the store.
            path: The file, whose content says to which generator prompts belong.
        """
        return entry_of(generator_place(place, path))

    def has(self, place: str, path: Path) -> bool:
        """Checks whether the object store has a file of another store; its entry must have been fetched.

        Args:
            place: Its place in the store.
            path: The file.
        """
        entry = self.entry_of_file(place, path)
        if is_immutable(place):
            return place in self._remote_objects.get(entry, {})
        return self._segments.has(place, path)

    def shards(self, folder: Path) -> dict[str, int]:
        """Returns the sizes of the shards of images that are in the object store and need not be here, by name.

        Args:
            folder: `images/KEY/shards`.
        """
        place = folder.relative_to(self.root).as_posix()
        self.fetch(place)
        remote_objects = self._remote_objects.get(entry_of(place), {})
        sizes: dict[str, int] = {}
        for name, info in remote_objects.items():
            # Without an index a shard is still being uploaded, or its upload was interrupted.
            has_index = name.removesuffix(".tar") + ".safetensors" in remote_objects
            if name.startswith(f"{place}/") and name.endswith(".tar") and has_index:
                sizes[name.rpartition("/")[2]] = info.size
        return sizes

    def _merge_segments(self, entry: str, remote_objects: Mapping[str, ObjectInfo]) -> None:
        """Adds the lines of other machines to the cost log and the prompts of an entry, if there are new ones."""
        names = {place for place in remote_objects if segments_of(entry, place)}
        if names <= self._merged.get(entry, set()):
            return
        self._merged[entry] = names
        self._segments.merge_costs(entry)
        if not entry.startswith("prompts/"):
            return
        for path, text in self._segments.further_prompts(entry):
            path.parent.mkdir(parents=True, exist_ok=True)
            local = self._local(path)
            self._arriving.add(local)
            try:
                with atomic_write(path) as temporary:
                    temporary.write_text(text, encoding="utf-8")
            finally:
                self._arriving.discard(local)

    def _checkpoints(self, entry: str, remote_objects: Mapping[str, ObjectInfo]) -> dict[str, tuple[str, Path]]:
        """Returns the checkpoints of the machine that has written last, where this one has none of its own."""
        folder = self.root / entry / CHECKPOINTS
        top = f"{entry}/{CHECKPOINTS}/"
        by_writer: defaultdict[str, dict[str, ObjectInfo]] = defaultdict(dict)
        for place, info in remote_objects.items():
            if place.startswith(top):
                by_writer[place.removeprefix(top).partition("/")[0]][place] = info
        if not by_writer or (folder.is_dir() and any(folder.rglob("*.safetensors"))):
            return {}
        latest = max(by_writer.values(), key=lambda files: max(info.changed for info in files.values()))
        return {place: (place, folder / place.removeprefix(top).partition("/")[2]) for place in latest}

    # ---------------------------------------------------------------------------------------------------- writing

    def check_writable(self) -> None:
        """Checks that the object store can be written.

        Raises:
            ObjectError: If it cannot.
        """
        self.check()
        self.objects.check_writable(self.root.parent)

    def written(self, path: Path) -> None:
        """Notes that a file of the store was written here; uploads what waits, in the background, now and then."""
        place = path.relative_to(self.root).as_posix()
        if place in self._arriving or not _is_uploaded(place):
            return
        # Written again although it came from there: what came was damaged.
        self._uploads.add(place, is_replaced=place in self._arrived)

    def push(self) -> int:
        """Uploads what waits, and returns the number of objects.

        Raises:
            ObjectError: If something that this process has made cannot be uploaded; it stays here.
        """
        return self._uploads.push()

    def discard_checkpoints(self, place: str) -> None:
        """Deletes the checkpoints of a finished training from the object store; one that may not be deleted stays."""
        self._uploads.discard_checkpoints(entry_of(place))


def _is_uploaded(place: str) -> bool:
    """Checks whether a file of a store goes to the object store: no temporary one, and no list of what is here."""
    return (
        is_immutable(place)
        or CHECKPOINTS in place.split("/")
        or place.startswith("prompts/")
        or (place.rpartition("/")[2] == COST_LOG)
    )


def _check_shard(url: str, place: str, target: Path, temporary: Path) -> None:
    """Compares a downloaded shard with the hash in its index.

    Raises:
        ObjectError: If they differ.
    """
    if not place.endswith(".tar"):
        return
    expected = read_index_sum(target)
    if expected and digest_of(temporary) != expected:
        raise ObjectError(
            f"{url}/{place}: its bytes are not those that its index describes; delete both objects, and a run "
            "generates the images again"
        )
