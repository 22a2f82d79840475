"""Lists the files of a store, identified by their paths only, and reads and writes its sha256 manifest."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lgclip.store.atomic import atomic_write
from lgclip.store.cost_log import COST_LOG
from lgclip.store.root import StoreError
from lgclip.store.shard_index import MANIFEST as SHARDS

QUARANTINE = "quarantine"
"""Folder of a store where faulty files are moved to."""

MANIFEST = "MANIFEST.sha256"
"""Manifest of hashes in a store's folder, in the format of `sha256sum -c`."""

HOUR = 3600 * 10**9
"""In nanoseconds: a younger temporary file may still be written."""

TOPS = ("adapters", "captions", "features", "images", "prompts", "prompts_learned", "students")
"""Folders of a store that hold its entries."""


class Kind(StrEnum):
    """Enumerates the types of files in a store."""

    PROMPTS = "prompts"
    CAPTIONS = "captions"
    IMAGE = "image"
    MARKER = "fault marker"
    """Marks an image that could not be used."""
    SHARD = "shard"
    """A tar file of images and markers, see `tar_shards`."""
    UNREADABLE = "findings"
    """Faults of images outside the store, see `image_folder`."""
    FEATURES = "features"
    STUDENT = "student"
    """Weights or metadata of a student."""
    ADAPTER = "adapter"
    """Weights or metadata of LoRA weights."""
    LEARNED = "learned prompt"
    """Weights or metadata of tuned prompts."""
    CHECKPOINT = "checkpoint"
    """A training checkpoint."""
    INPUTS = "inputs"
    TOWERS = "towers"
    COST_LOG = "cost log"
    INDEX = "index"
    """The index of a shard."""
    LIST = "list of shards"
    LEFTOVER = "leftover"
    """A temporary file: one that is being written now, or whose writing was interrupted."""
    LINK = "link"
    FOREIGN = "foreign"
    """Anything else."""


ENTRIES = {
    Kind.PROMPTS, Kind.CAPTIONS, Kind.IMAGE, Kind.MARKER, Kind.SHARD, Kind.UNREADABLE, Kind.FEATURES,
    Kind.STUDENT, Kind.ADAPTER, Kind.LEARNED, Kind.CHECKPOINT,
}  # fmt: skip
"""Entries that a run computes and reuses."""

COMPANIONS = {Kind.INPUTS, Kind.TOWERS, Kind.COST_LOG, Kind.INDEX, Kind.LIST}
"""Companion files of entries; useless without them."""

CHANGING = {Kind.COST_LOG, Kind.LIST, Kind.CHECKPOINT}
"""Files that runs append to; no manifest has their hash."""

_KEY = "[0-9a-f]{32}"
_PLACES = {
    Kind.PROMPTS: rf"prompts/{_KEY}\.json",
    Kind.CAPTIONS: rf"captions/{_KEY}/{_KEY}\.json",
    Kind.IMAGE: rf"images/{_KEY}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.(png|jpg)",
    Kind.MARKER: rf"images/{_KEY}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.fault\.json",
    Kind.SHARD: rf"images/{_KEY}/shards/{_KEY}\.tar",
    Kind.INDEX: rf"images/{_KEY}/shards/{_KEY}\.safetensors",
    Kind.LIST: rf"images/{_KEY}/shards/{re.escape(SHARDS)}",
    Kind.UNREADABLE: rf"images/{_KEY}/{_KEY}\.json",
    Kind.FEATURES: rf"features/{_KEY}/{_KEY}/{_KEY}\.safetensors",
    Kind.STUDENT: rf"students/{_KEY}/(model\.safetensors|student\.json)",
    Kind.ADAPTER: rf"adapters/{_KEY}/(pytorch_lora_weights\.safetensors|lora\.json)",
    Kind.LEARNED: rf"prompts_learned/{_KEY}/((text|visual)\.safetensors|prompt_tuning\.json)",
    Kind.CHECKPOINT: rf"((students|adapters)/{_KEY}/checkpoints/last"
    rf"|prompts_learned/{_KEY}/checkpoints/(rounds|\d\d+/last))\.safetensors",
    Kind.INPUTS: rf"((captions|images)/{_KEY}|features/{_KEY}/{_KEY})/inputs\.json",
    Kind.TOWERS: rf"features/{_KEY}/towers\.json",
    Kind.COST_LOG: rf"(prompts/{_KEY}\.|(captions|images)/{_KEY}/|features/{_KEY}/{_KEY}/){re.escape(COST_LOG)}",
    # As `atomic.atomic_write`, an import, and `store.open_root` (at the top alone) name what they write to.
    # The second is safetensors' own, next to ours.
    Kind.LEFTOVER: r"(.*/)?\.[^/]{1,40}\.[a-z0-9_]{8}(/.*)?|(.*/)?\.tmp[A-Za-z0-9]{6}|tmp[a-z0-9_]{8}",
}
_KINDS = [(kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _PLACES.items()]


@dataclass(frozen=True)
class Item:
    """Describes a file of a store.

    Attributes:
        root: The store's folder.
        place: Path relative to it, with `/`.
        kind: Type of the file.
        size: In bytes.
        changed: Modification time, in nanoseconds since 1970.
        appeared: Time when it was created here; later than `changed` if it was copied with its times.
    """

    root: Path
    place: str
    kind: Kind
    size: int
    changed: int
    appeared: int

    @property
    def path(self) -> Path:
        """Returns the path of the file."""
        return self.root / self.place

    @property
    def parts(self) -> list[str]:
        """Returns the components of its relative path."""
        return self.place.split("/")


def kind_of(place: str) -> Kind:
    """Returns the type of a file, by its path relative to the store's folder."""
    # The patterns exclude each other but for leftovers, which stand last and begin with a dot or `tmp`.
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(place)), Kind.FOREIGN)


def existing(root: Path) -> Path:
    """Returns a store that exists already: inspecting one must not create it.

    Raises:
        StoreError: If the folder holds no store.
    """
    if not any((root / top).is_dir() for top in TOPS):
        raise StoreError(f"{root} holds no store: none of {', '.join(TOPS)} is there; name it by --store DIR")
    return root


def walk(root: Path) -> Iterator[Item]:
    """Yields every file of a store, sorted, except for the quarantine and its manifest.

    Top-level folders may be links, to another disk for instance. No other link is followed.
    Files that are deleted in the meantime are skipped.
    """
    # Sorted, because the order of a folder differs between file systems, and equal stores give equal archives.
    with os.scandir(root) as entries:
        names = sorted(entry.name for entry in entries)
    for name in names:
        path = root / name
        if name in TOPS and path.is_dir():
            yield from _below(root, path)
        elif name not in (QUARANTINE, MANIFEST):
            yield from _item(root, path)


def _below(root: Path, folder: Path) -> Iterator[Item]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries)
    except FileNotFoundError:
        return
    for name in names:
        yield from _item(root, folder / name)


def _item(root: Path, path: Path) -> Iterator[Item]:
    # lstat and not stat: a link that leads out of the store must not be followed, nor read, nor deleted through.
    try:
        stats = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(stats.st_mode):
        yield from _below(root, path)
        return
    place = path.relative_to(root).as_posix()
    # By the type first: a socket, a pipe or a device with the name of an entry would block whoever opens it.
    if stat.S_ISLNK(stats.st_mode):
        kind = Kind.LINK
    elif stat.S_ISREG(stats.st_mode):
        kind = kind_of(place)
    else:
        kind = Kind.FOREIGN
    # ctime cannot be set by a copy, as mtime can.
    yield Item(root, place, kind, stats.st_size, stats.st_mtime_ns, max(stats.st_mtime_ns, stats.st_ctime_ns))


_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def read_manifest(path: Path) -> dict[str, str]:
    """Returns the hash of each path; empty if there is no manifest.

    Raises:
        StoreError: If a line is invalid, or a path is a duplicate.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError as error:
        raise StoreError(
            f"{path} is damaged; delete it, or write it again by lgclip store verify --manifest"
        ) from error
    sums: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        # With a place twice it would be open which sum counts.
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise StoreError(
                f"{path}, line {number}: not `SHA256  PLACE`, or a place that occurs twice; "
                "delete it, or write it again by lgclip store verify --manifest"
            )
        sums[match[2]] = match[1]
    return sums


def write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """Writes a manifest atomically."""
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{sums[place]}  {place}\n" for place in sorted(sums))


def forget(root: Path, places: set[str]) -> None:
    """Removes paths from a store's manifest, if there is one."""
    sums = read_manifest(root / MANIFEST)
    if places & sums.keys():
        write_manifest(root / MANIFEST, {place: sums[place] for place in sums.keys() - places})


def amount(files: int, size: int) -> str:
    """Returns the formatted number of files and bytes."""
    noun = "file" if files == 1 else "files"
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size >= factor:
            return f"{files} {noun}, {size / factor:.1f} {unit}"
    return f"{files} {noun}, {size} bytes"
