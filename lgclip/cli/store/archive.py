"""Exports a store, or what some runs need of it, to one archive, and imports it on another machine."""

import errno
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import IO

from lgclip.cli.store.entry_checks import fault_in
from lgclip.cli.store.gc import needed_by, with_companions
from lgclip.cli.store.inventory import (
    COMPANIONS,
    ENTRIES,
    MANIFEST,
    Item,
    Kind,
    amount,
    existing,
    read_manifest,
    walk,
    write_manifest,
)
from lgclip.datasets.archive import unpack
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.atomic import atomic_write
from lgclip.store.keys import digest_of
from lgclip.store.root import StoreError

ABOUT = "ARCHIVE.json"
"""Member of an archive that describes it."""

_MAX_ABOUT_BYTES = 4096

FORMAT = {"lgclip": "store", "format": 1, "schema": STORE_SCHEMA}
"""Content of `ABOUT`."""


def export(root: Path, out: Path, runs: Sequence[Path] = ()) -> Iterator[str]:
    """Writes a store, or what some runs need of it, to a tar archive, atomically.

    Every file is checked as `verify.verify` does before the archive is started. Equal stores give equal archives.

    Args:
        root: The store's folder.
        out: The archive to write, `.tar`.
        runs: Folders of finished runs, or of sweeps; none for the complete store.

    Yields:
        A line on what was written.

    Raises:
        ValueError: If there is no store, a run cannot be read or lacks something, a file is faulty, or one changes
            while it is read.
    """
    if out.suffix.lower() != ".tar":
        raise StoreError(f"{out}: name an archive to write that ends in .tar; PNG and features hardly compress")
    # All checks and sums before the first byte: a faulty file should not cost the writing of a large archive.
    items = chosen(existing(root), runs)
    sums = dict[str, str]()
    for item in items:
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{item.path}: {fault}; see lgclip store verify --repair. Nothing was written")
        sums[item.place] = digest_of(item.path)
    if not items:
        raise StoreError(f"{root} holds nothing to export")
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        # The description comes first, so that a reader knows what the archive is without reading all of it.
        manifest = "".join(f"{sums[item.place]}  {item.place}\n" for item in items).encode()
        for name, content in ((ABOUT, json.dumps(FORMAT).encode()), (MANIFEST, manifest)):
            tar.addfile(_member(name, len(content)), io.BytesIO(content))
        for item in items:
            _pack(tar, item, sums[item.place])
    size = sum(item.size for item in items)
    yield f"{out}: {amount(len(items), size)}, sha256 {digest_of(out)}"


def chosen(root: Path, runs: Sequence[Path]) -> list[Item]:
    """Returns the sorted files that are moved to another machine.

    Args:
        root: The store's folder.
        runs: Folders of finished runs or of sweeps, and saved classifiers, whose entries are moved; none for all.

    Raises:
        ValueError: If a run cannot be read or lacks something, or the store holds what is no entry.
    """
    entries: list[Item] = []
    companions: list[Item] = []
    used = needed_by(runs, root) if runs else None
    for item in walk(root):
        if item.kind in COMPANIONS:
            companions.append(item)
        elif item.kind in ENTRIES:
            if used is None or used.needs(item):
                entries.append(item)
        elif item.kind != Kind.LEFTOVER:
            raise StoreError(f"{item.path}: {fault_in(item)}; move it away. Nothing was written")
    # The list of shards would name shards that are not in the archive; it is made again where they are placed.
    companions = [item for item in companions if item.kind != Kind.LIST]
    if used is not None:
        companions, _ = with_companions(entries, companions)
    chosen = entries + companions
    return sorted(chosen, key=lambda item: item.place)


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # no owner, no time: equal stores give equal archives
    info.size = size
    info.mode = 0o644
    return info


# tarfile takes any object with `read`. Summing what it reads, not the file once more, leaves no gap in which another
# process could change the file unseen.
class _Summed:
    """Computes the hash of a file while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _pack(tar: tarfile.TarFile, item: Item, expected: str) -> None:
    with item.path.open("rb") as file:
        summed = _Summed(file)
        try:
            tar.addfile(_member(item.place, item.size), summed)  # pyright: ignore[reportArgumentType]
        except OSError as error:
            if error.errno is not None:
                raise
            # tarfile says "unexpected end of data", without an errno: the file has become shorter. It may end where
            # the sum fits, so the sum is spoiled.
            summed.digest.update(b"cut")
        if summed.digest.hexdigest() != expected:
            raise StoreError(f"{item.path} changes while it is read: export again when no run is at work")
    tar.getmembers().clear()  # tarfile keeps them all


def import_archive(root: Path, archive: Path) -> Iterator[str]:
    """Imports the content of an `export` into a store.

    It is unpacked next to the store's entries, compared with its manifest and checked as `verify.verify`
    does before the first file is placed. Existing equal files stay; a cost log gets its missing lines, and this
    machine's measurements of towers stay. If placing fails, files that were placed are removed again.

    Args:
        root: The store's folder, created if needed.
        archive: The archive.

    Yields:
        A line on what was placed.

    Raises:
        ValueError: If the archive is damaged, unsafe, of another type or schema, or holds an entry that is in the
            store with other bytes. The store is then unchanged.
    """
    if not archive.is_file():
        raise StoreError(f"{archive}: no such file")
    # Inside the store's folder, so that placing is a rename on the same disk and takes no second copy.
    root.mkdir(parents=True, exist_ok=True)
    temporary = Path(mkdtemp(dir=root, prefix=".import."))
    try:
        unpack(archive, temporary)
        sums = _checked(archive, temporary)
        items = [item for item in walk(temporary) if item.place != ABOUT]
        fresh = _fresh(root, items, sums)
        _place(root, fresh)
        # A log of costs grows in each store on its own; neither is wrong, so their lines are united.
        new = {item.place for item in fresh}
        for item in items:
            if item.kind == Kind.COST_LOG and item.place not in new:
                _add_lines(item.path, root / item.place)
        # Logs and measurements are each machine's own, so their sums need not be those of the archive.
        old = read_manifest(root / MANIFEST)
        lasting = {item.place: sums[item.place] for item in items if item.kind not in (Kind.COST_LOG, Kind.TOWERS)}
        write_manifest(root / MANIFEST, {**old, **lasting})
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(item.size for item in fresh)
    yield f"{root}: {amount(len(fresh), size)} placed, {len(items) - len(fresh)} were there"


def _checked(archive: Path, temporary: Path) -> dict[str, str]:
    """Checks every file of an unpacked archive; returns their hashes."""
    try:
        # The file of an export has 60 bytes; only so much is read, whatever is there.
        with (temporary / ABOUT).open("rb") as file:
            about = json.loads(file.read(_MAX_ABOUT_BYTES).decode())
    except (OSError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("lgclip") != "store":
        raise StoreError(f"{archive} is no archive of a store: it holds no {ABOUT} by lgclip store export")
    # Keys of another schema are made of other inputs: no run of this version would find the entries.
    if about != FORMAT:
        versions = {name: about.get(name) for name in ("format", "schema")}
        raise StoreError(
            f"{archive}: {versions}, this package reads {FORMAT}: export it with the same version of lgclip"
        )
    sums = read_manifest(temporary / MANIFEST)
    checked = set[str]()
    for item in walk(temporary):
        if item.place == ABOUT:
            continue
        # A list of what is allowed, not of what is forbidden: links, and places where no entry lies, are refused.
        if item.kind not in ENTRIES | COMPANIONS:
            raise StoreError(f"{archive}: {item.place!r} is {fault_in(item)}; nothing was placed")
        if sums.get(item.place) != digest_of(item.path):
            raise StoreError(f"{archive}: {item.place} differs from its manifest; nothing was placed, get it again")
        # The sum shows that the file is what was packed, not that it is sound: anyone can write a manifest.
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{archive}: {item.place}: {fault}; nothing was placed")
        checked.add(item.place)
    lacking = sorted(sums.keys() - checked)
    if lacking or not checked:
        raise StoreError(f"{archive} lacks {len(lacking)} files of its manifest, first {lacking[:1]}; get it again")
    return sums


def _fresh(root: Path, items: Sequence[Item], sums: Mapping[str, str]) -> list[Item]:
    """Returns the items that are not in the store yet.

    Raises:
        StoreError: If an entry exists with other bytes.
    """
    fresh = []
    conflicts = []
    for item in items:
        target = root / item.place
        if not target.exists():
            fresh.append(item)
        # Same key and other bytes: a diffusion model on another GPU, or prompts that have been added to. To choose
        # between them is the user's part.
        elif item.kind not in (Kind.COST_LOG, Kind.TOWERS) and digest_of(target) != sums[item.place]:
            conflicts.append(item.place)
    if conflicts:
        raise StoreError(
            f"{len(conflicts)} entries are in {root} with other bytes: {', '.join(conflicts[:5])}; nothing was placed. "
            "Move them away to take those of the archive, or import into a separate store by --store DIR"
        )
    return fresh


def _place(root: Path, fresh: Sequence[Item]) -> None:
    placed: list[Path] = []
    try:
        for item in fresh:
            target = root / item.place
            target.parent.mkdir(parents=True, exist_ok=True)
            item.path.touch()  # its age counts from now on, not from when it was packed
            _move(item.path, target)
            placed.append(target)
    # BaseException: Ctrl-C must not leave half an archive either.
    except BaseException:
        for target in placed:
            target.unlink(missing_ok=True)
        raise


def _move(path: Path, target: Path) -> None:
    try:
        path.replace(target)
    except OSError as error:
        if error.errno != errno.EXDEV:  # the folder of images, for instance, is a link to another disk
            raise
        with atomic_write(target) as temporary:
            shutil.copyfile(path, temporary)


def _add_lines(path: Path, target: Path) -> None:
    """Adds the missing lines to a cost log."""
    # By whole lines, so that a second import of the same archive adds nothing.
    existing = set(target.read_bytes().splitlines())
    lacking = [line for line in path.read_bytes().splitlines() if line not in existing]
    with target.open("ab", buffering=0) as file:  # one call, as `cost_log.append`
        file.write(b"".join(line + b"\n" for line in lacking))
