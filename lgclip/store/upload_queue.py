"""Uploads what this machine has written to a store with a URL, now and then and in the order that readers need.

Data goes before what describes it: a reader that sees a marker or an index finds all that belongs to it.
"""

import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from lgclip.store.errors import StoreError
from lgclip.store.object_store import ObjectError, ObjectInfo, ObjectStore
from lgclip.store.places import CHECKPOINTS, entry_of, is_immutable, is_marker
from lgclip.store.segments import Segments, generator_place

log = logging.getLogger(__name__)


class UploadQueue:
    """Holds the places of files that were written here and are not yet in the object store.

    Args:
        root: Folder that is laid out as a store.
        writer: Name of this machine in the object store, for its checkpoints.
        objects: The object store.
        segments: The objects of lines of the store.
        remote_objects: Objects of the store, by entry and path; uploads are added to it.
    """

    def __init__(
        self,
        root: Path,
        writer: str,
        objects: ObjectStore,
        segments: Segments,
        remote_objects: dict[str, dict[str, ObjectInfo]],
    ) -> None:
        self._root = root
        self._writer = writer
        self._objects = objects
        self._segments = segments
        self._remote_objects = remote_objects
        self._lock = threading.RLock()
        self._pushing = threading.Lock()
        # Places to upload, in the order of writing, each with the number of its writing: 0 for what an earlier process
        # has left here.
        self._waiting: dict[str, int] = {}
        self._writes = 0
        self._replaced: set[str] = set()
        self._upload: Future[None] | None = None
        self._uploader: ThreadPoolExecutor | None = None
        self._last_push = time.monotonic()

    def add(self, place: str, *, is_replaced: bool) -> None:
        """Adds a file that was written; uploads what waits, in the background, now and then.

        Args:
            place: Place of the file in the store.
            is_replaced: Whether it replaces the object of its name.
        """
        with self._lock:
            if is_replaced:
                self._replaced.add(place)
            self._writes += 1
            self._waiting[place] = self._writes
            is_due = time.monotonic() - self._last_push >= self._objects.push_seconds
            if not is_due or (self._upload is not None and not self._upload.done()):
                return
            self._last_push = time.monotonic()
            if self._uploader is None:
                self._uploader = ThreadPoolExecutor(1, "upload")
            self._upload = self._uploader.submit(self._push_quietly)

    def push(self) -> int:
        """Uploads what waits, and returns the number of objects.

        Raises:
            ObjectError: If something that this process has made cannot be uploaded; it stays here.
        """
        with self._pushing:
            with self._lock:
                waiting = dict(self._waiting)
                self._last_push = time.monotonic()
            if not waiting:
                return 0
            try:
                count = self._push(list(waiting))
            except ObjectError as error:
                # What an earlier, interrupted process has left here is no reason to refuse a run that lacks nothing.
                if any(waiting.values()):
                    raise
                log.warning("%s; %d files of an earlier run stay here", error, len(waiting))
                return 0
            with self._lock:
                for place, number in waiting.items():
                    # A file that was written again in the meantime waits on.
                    if self._waiting.get(place) == number:
                        del self._waiting[place]
            return count

    def add_unsent(self, entry: str) -> None:
        """Adds what an interrupted process has left here and not uploaded."""
        remote_objects = self._remote_objects[entry]
        with self._lock:
            if (self._root / entry).is_dir():
                for path in (self._root / entry).rglob("*"):
                    place = path.relative_to(self._root).as_posix()
                    # A shard goes with its index, and a checkpoint when it is written again.
                    is_plain = is_immutable(place) and not place.endswith(".tar") and CHECKPOINTS not in path.parts
                    if is_plain and place not in remote_objects and path.is_file():
                        self._waiting.setdefault(place, 0)
            for place in self._segments.unsent(entry):
                self._waiting.setdefault(place, 0)

    def discard_checkpoints(self, entry: str) -> None:
        """Deletes the checkpoints of a finished training from the object store; one that may not be deleted stays."""
        with self._pushing, self._lock:
            for waiting in [name for name in self._waiting if name.startswith(f"{entry}/{CHECKPOINTS}/")]:
                del self._waiting[waiting]
            checkpoints = [name for name in self._objects.ls(entry) if name.startswith(f"{entry}/{CHECKPOINTS}/")]
            try:
                self._objects.delete(checkpoints)
            except ObjectError as error:
                log.warning("%s; %d checkpoints of %s stay there", error, len(checkpoints), entry)

    def _push_quietly(self) -> None:
        try:
            self.push()
        except StoreError as error:
            # A store that is away for minutes should not end hours of work; the end of the stage insists.
            log.warning("%s; %d files wait here and are uploaded later", error, len(self._waiting))

    def _push(self, places: Sequence[str]) -> int:
        entries = {entry_of(generator_place(place, self._root / place)) for place in places}
        for entry in entries:
            if entry not in self._remote_objects:
                # A file by itself is put unless it is there, which takes no listing.
                self._remote_objects[entry] = {} if is_immutable(entry) else self._objects.ls(entry)
        plain: dict[str, str] = {}
        for place in places:
            if CHECKPOINTS in place.split("/"):
                head, _, name = place.partition(f"/{CHECKPOINTS}/")
                plain[f"{head}/{CHECKPOINTS}/{self._writer}/{name}"] = place
            elif is_immutable(place):
                plain |= {target: target for target in _with_shard(place)}
        count = self._put_plain(plain)
        return count + self._put_segments(entries, places)

    def _put_plain(self, plain: Mapping[str, str]) -> int:
        """Uploads files under names of their own: data first, then what describes it."""
        count = 0
        for phase in (False, True):
            files: dict[str, Path] = {}
            for target, place in plain.items():
                is_new = target not in self._remote_objects.get(entry_of(place), {})
                is_replaced = place in self._replaced or target != place
                if is_marker(place) == phase and (is_new or is_replaced):
                    files[target] = self._root / place
            replaced = frozenset(
                target for target in files if plain[target] in self._replaced or plain[target] != target
            )
            for target in self._objects.put(files, replaced):
                size = files[target].stat().st_size if files[target].exists() else 0
                self._remote_objects.setdefault(entry_of(target), {})[target] = ObjectInfo(size, "")
                count += 1
        return count

    def _put_segments(self, entries: Iterable[str], places: Sequence[str]) -> int:
        """Uploads the lines of cost logs and the prompts of classes that the object store lacks."""
        files: dict[str, Path] = {}
        for place, data in self._segments.new_objects(entries, places).items():
            temporary = self._segments.folder / f".{place.rpartition('/')[2]}.{os.getpid()}"
            temporary.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            files[place] = temporary
        put = self._objects.put(files)
        # They stay here under the same name: so it is known what the object store has.
        for place in put:
            target = self._segments.folder / place
            target.parent.mkdir(parents=True, exist_ok=True)
            files[place].replace(target)
        return len(put)


def _with_shard(place: str) -> list[str]:
    """Returns an object with what has to be there before it: the shard of an index."""
    if "/shards/" in place and place.endswith(".safetensors"):
        return [place.removesuffix(".safetensors") + ".tar", place]
    return [place]
