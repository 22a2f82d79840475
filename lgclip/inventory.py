"""What lies in a store, file by file, told from its place alone; and the list of sha256 sums of it."""

import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from lgclip.ledger import LEDGER
from lgclip.shard_index import MANIFEST as SHARDS
from lgclip.store import StoreError
from lgclip.whole import write_whole

QUARANTINE = "quarantine"
"""Folder of a store where faulty files are moved to."""

MANIFEST = "MANIFEST.sha256"
"""List of sums in a store's folder, as `sha256sum -c` reads it."""

HOUR = 3600 * 10**9
"""In nanoseconds: a temporary file that is younger is being written, perhaps."""

TOPS = ("adapters", "captions", "features", "images", "prompts", "prompts_learned", "students")
"""Folders of a store that hold its entries."""


class Kind(StrEnum):
    """What a file of a store is."""

    PROMPTS = "prompts"
    CAPTIONS = "captions"
    IMAGE = "image"
    MARKER = "fault marker"
    """Stands in place of an image that could not be used."""
    SHARD = "shard"
    """A tar file of images and markers, see `tar_store`."""
    FINDINGS = "findings"
    """What is wrong with images that lie elsewhere, see `diffuser.folder`."""
    FEATURES = "features"
    STUDENT = "student"
    """Its weights, or what is told of it."""
    ADAPTER = "adapter"
    """As of a student, of what was tuned of a diffusion model."""
    LEARNT = "learnt prompt"
    """As of a student, of soft prompts."""
    CHECKPOINT = "checkpoint"
    """Of what is being learnt."""
    INPUTS = "inputs"
    TOWERS = "towers"
    LEDGER = "ledger"
    INDEX = "index"
    """Of a shard."""
    LIST = "list of shards"
    LEFTOVER = "leftover"
    """A temporary file: one that is being written now, or whose writing was cut short."""
    LINK = "link"
    FOREIGN = "foreign"
    """Anything else."""


ENTRIES = {
    Kind.PROMPTS, Kind.CAPTIONS, Kind.IMAGE, Kind.MARKER, Kind.SHARD, Kind.FINDINGS, Kind.FEATURES,
    Kind.STUDENT, Kind.ADAPTER, Kind.LEARNT, Kind.CHECKPOINT,
}  # fmt: skip
"""What a run makes and finds again."""

COMPANIONS = {Kind.INPUTS, Kind.TOWERS, Kind.LEDGER, Kind.INDEX, Kind.LIST}
"""What is told of entries; worth nothing without them."""

CHANGING = {Kind.LEDGER, Kind.LIST, Kind.CHECKPOINT}
"""What runs write to again; no manifest holds its sum."""

_KEY = "[0-9a-f]{32}"
_PLACES = {
    Kind.PROMPTS: rf"prompts/{_KEY}\.json",
    Kind.CAPTIONS: rf"captions/{_KEY}/{_KEY}\.json",
    Kind.IMAGE: rf"images/{_KEY}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.png",
    Kind.MARKER: rf"images/{_KEY}/([0-9a-f]{{2}})/\1[0-9a-f]{{30}}\.fault\.json",
    Kind.SHARD: rf"images/{_KEY}/shards/{_KEY}\.tar",
    Kind.INDEX: rf"images/{_KEY}/shards/{_KEY}\.safetensors",
    Kind.LIST: rf"images/{_KEY}/shards/{re.escape(SHARDS)}",
    Kind.FINDINGS: rf"images/{_KEY}/{_KEY}\.json",
    Kind.FEATURES: rf"features/{_KEY}/{_KEY}/{_KEY}\.safetensors",
    Kind.STUDENT: rf"students/{_KEY}/(model\.safetensors|student\.json)",
    Kind.ADAPTER: rf"adapters/{_KEY}/(pytorch_lora_weights\.safetensors|lora\.json)",
    Kind.LEARNT: rf"prompts_learned/{_KEY}/((text|visual)\.safetensors|learner\.json)",
    Kind.CHECKPOINT: rf"((students|adapters)/{_KEY}/checkpoints/last"
    rf"|prompts_learned/{_KEY}/checkpoints/(rounds|\d\d+/last))\.safetensors",
    Kind.INPUTS: rf"((captions|images)/{_KEY}|features/{_KEY}/{_KEY})/inputs\.json",
    Kind.TOWERS: rf"features/{_KEY}/towers\.json",
    Kind.LEDGER: rf"(prompts/{_KEY}\.|(captions|images)/{_KEY}/|features/{_KEY}/{_KEY}/){re.escape(LEDGER)}",
    # As `whole.write_whole`, an import, and `store.open_root` (at the top alone) name what they write to.
    # The second is safetensors' own, beside ours.
    Kind.LEFTOVER: r"(.*/)?\.[^/]{1,40}\.[a-z0-9_]{8}(/.*)?|(.*/)?\.tmp[A-Za-z0-9]{6}|tmp[a-z0-9_]{8}",
}
_KINDS = [(kind, re.compile(pattern, re.DOTALL)) for kind, pattern in _PLACES.items()]


@dataclass(frozen=True)
class Item:
    """A file of a store.

    Attributes:
        root: The store's folder.
        place: Where it lies below, with `/`.
        kind: What it is.
        size: In bytes.
        changed: Time of its last change, in nanoseconds since 1970.
        came: When it came to lie here: the same, or later if it was copied with its times.
    """

    root: Path
    place: str
    kind: Kind
    size: int
    changed: int
    came: int

    @property
    def path(self) -> Path:
        """The file."""
        return self.root / self.place

    @property
    def parts(self) -> list[str]:
        """The parts of its place."""
        return self.place.split("/")


def kind_of(place: str) -> Kind:
    """What a file is, by its place below the store's folder."""
    return next((kind for kind, pattern in _KINDS if pattern.fullmatch(place)), Kind.FOREIGN)


def existing(root: Path) -> Path:
    """A store that is there already: what is looked at is not made by looking.

    Raises:
        StoreError: If the folder holds no store.
    """
    if not any((root / top).is_dir() for top in TOPS):
        raise StoreError(f"{root} holds no store: none of {', '.join(TOPS)} is there; name it by --store DIR")
    return root


def walk(root: Path) -> Iterator[Item]:
    """Every file of a store, sorted; not those in quarantine, and not its manifest.

    The folders at the top may be links, to another disk for instance. No other link is followed.
    What goes away in the meantime is passed over.
    """
    with os.scandir(root) as found:
        names = sorted(entry.name for entry in found)
    for name in names:
        path = root / name
        if name in TOPS and path.is_dir():
            yield from _below(root, path)
        elif name not in (QUARANTINE, MANIFEST):
            yield from _item(root, path)


def _below(root: Path, folder: Path) -> Iterator[Item]:
    try:
        with os.scandir(folder) as found:
            names = sorted(entry.name for entry in found)
    except FileNotFoundError:
        return
    for name in names:
        yield from _item(root, folder / name)


def _item(root: Path, path: Path) -> Iterator[Item]:
    try:
        stats = path.lstat()
    except FileNotFoundError:
        return
    if stat.S_ISDIR(stats.st_mode):
        yield from _below(root, path)
        return
    place = path.relative_to(root).as_posix()
    kind = Kind.LINK if stat.S_ISLNK(stats.st_mode) else kind_of(place)
    if kind != Kind.LINK and not stat.S_ISREG(stats.st_mode):
        kind = Kind.FOREIGN
    yield Item(root, place, kind, stats.st_size, stats.st_mtime_ns, max(stats.st_mtime_ns, stats.st_ctime_ns))


_LINE = re.compile(r"([0-9a-f]{64})  (.+)")


def read_manifest(path: Path) -> dict[str, str]:
    """The sum of each place; empty if there is no manifest.

    Raises:
        StoreError: If a line is not one of a manifest, or a place stands in it twice.
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
        match = _LINE.fullmatch(line)
        if match is None or match[2] in sums:
            raise StoreError(
                f"{path}, line {number}: not `SHA256  PLACE`, or a place that stands there twice; "
                "delete it, or write it again by lgclip store verify --manifest"
            )
        sums[match[2]] = match[1]
    return sums


def write_manifest(path: Path, sums: Mapping[str, str]) -> None:
    """Writes a manifest, whole or not at all."""
    with write_whole(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{sums[place]}  {place}\n" for place in sorted(sums))


def forget(root: Path, places: set[str]) -> None:
    """Takes places out of a store's manifest, if there is one."""
    sums = read_manifest(root / MANIFEST)
    if places & sums.keys():
        write_manifest(root / MANIFEST, {place: sums[place] for place in sums.keys() - places})


def amount(files: int, size: int) -> str:
    """How many files and bytes, for the eye."""
    unit = next((unit for unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if size >= unit[0]), (1, "bytes"))
    return f"{files} {'file' if files == 1 else 'files'}, {size / unit[0]:.{0 if unit[0] == 1 else 1}f} {unit[1]}"
