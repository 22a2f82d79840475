"""A store, or what some runs need of it, as one archive: written on one machine, checked and placed on another."""

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

from lgclip.datasets.archive import unpack
from lgclip.identity import SCHEMA, digest_of
from lgclip.inspection import fault_in
from lgclip.inventory import (
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
from lgclip.retention import used_by, with_companions
from lgclip.store import StoreError
from lgclip.whole import write_whole

ABOUT = "ARCHIVE.json"
"""Member of an archive that says what it is."""

FORMAT = {"lgclip": "store", "format": 1, "schema": SCHEMA}
"""Content of `ABOUT`."""


def export(root: Path, out: Path, runs: Sequence[Path] = ()) -> Iterator[str]:
    """Writes a store, or what some runs need of it, to a tar archive, whole or not at all.

    Every file is checked as `verification.verify` does before the archive is begun. Equal stores give equal archives.

    Args:
        root: The store's folder.
        out: The archive to write, `.tar`.
        runs: Folders of finished runs, or of sweeps; none for the whole store.

    Yields:
        A line on what was written.

    Raises:
        ValueError: If there is no store, a run cannot be read or lacks something, a file is faulty, or one changes
            while it is read.
    """
    if out.suffix.lower() != ".tar":
        raise StoreError(f"{out}: name an archive to write that ends in .tar; PNG and features hardly compress")
    items, sums = _chosen(existing(root), runs), dict[str, str]()
    for item in items:
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{item.path}: {fault}; see lgclip store verify --repair. Nothing was written")
        sums[item.place] = digest_of(item.path)
    if not items:
        raise StoreError(f"{root} holds nothing to export")
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(out) as temporary, tarfile.open(temporary, "w", format=tarfile.PAX_FORMAT) as tar:
        manifest = "".join(f"{sums[item.place]}  {item.place}\n" for item in items).encode()
        for name, content in ((ABOUT, json.dumps(FORMAT).encode()), (MANIFEST, manifest)):
            tar.addfile(_member(name, len(content)), io.BytesIO(content))
        for item in items:
            _pack(tar, item, sums[item.place])
    size = sum(item.size for item in items)
    yield f"{out}: {amount(len(items), size)}, sha256 {digest_of(out)}"


def _chosen(root: Path, runs: Sequence[Path]) -> list[Item]:
    """What goes into an archive, sorted."""
    entries: list[Item] = []
    companions: list[Item] = []
    used = used_by(runs, root, whole=True) if runs else None
    for item in walk(root):
        if item.kind in COMPANIONS:
            companions.append(item)
        elif item.kind in ENTRIES:
            if used is None or used.needs(item):
                entries.append(item)
        elif item.kind != Kind.LEFTOVER:
            raise StoreError(f"{item.path}: {fault_in(item)}; move it away. Nothing was written")
    companions = [item for item in companions if item.kind != Kind.LIST]  # it would list what is not there
    chosen = entries + (companions if used is None else with_companions(entries, companions)[0])
    return sorted(chosen, key=lambda item: item.place)


def _member(name: str, size: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)  # no owner, no time: equal stores give equal archives
    info.size, info.mode = size, 0o644
    return info


class _Summed:
    """A file that is summed up while it is read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

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
            summed.digest.update(b"cut")  # tarfile says "unexpected end of data"
        if summed.digest.hexdigest() != expected:
            raise StoreError(f"{item.path} changes while it is read: export again when no run is at work")
    tar.getmembers().clear()  # tarfile keeps them all


def import_archive(root: Path, archive: Path) -> Iterator[str]:
    """Places what `export` has written into a store.

    All of it is unpacked beside the store's entries, held against its manifest and checked as `verification.verify`
    does before the first file is placed. What is there already and equal stays; a ledger gets the lines that it
    lacks, and what this machine has measured of towers stays. If placing fails, what was placed is taken away again.

    Args:
        root: The store's folder, made if it is not there.
        archive: The archive.

    Yields:
        A line on what was placed.

    Raises:
        ValueError: If the archive is damaged, hostile, of another kind or schema, or holds an entry that is in the
            store with other bytes. The store is then as it was.
    """
    if not archive.is_file():
        raise StoreError(f"{archive}: no such file")
    root.mkdir(parents=True, exist_ok=True)
    aside = Path(mkdtemp(dir=root, prefix=".import."))
    try:
        unpack(archive, aside)
        sums = _checked(archive, aside)
        items = [item for item in walk(aside) if item.place != ABOUT]
        fresh = _fresh(root, items, sums)
        _place(root, fresh)
        new = {item.place for item in fresh}
        for item in items:
            if item.kind == Kind.LEDGER and item.place not in new:
                _add_lines(item.path, root / item.place)
        old = read_manifest(root / MANIFEST)
        lasting = {item.place: sums[item.place] for item in items if item.kind not in (Kind.LEDGER, Kind.TOWERS)}
        write_manifest(root / MANIFEST, {**old, **lasting})
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    size = sum(item.size for item in fresh)
    yield f"{root}: {amount(len(fresh), size)} placed, {len(items) - len(fresh)} were there"


def _checked(archive: Path, aside: Path) -> dict[str, str]:
    """The sums of an archive whose every file is what it should be."""
    try:
        about = json.loads((aside / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        about = None
    if not isinstance(about, dict) or about.get("lgclip") != "store":
        raise StoreError(f"{archive} is no archive of a store: it holds no {ABOUT} by lgclip store export")
    if about != FORMAT:
        told = {name: about.get(name) for name in ("format", "schema")}
        raise StoreError(f"{archive}: {told}, this package reads {FORMAT}: export it with the same version of lgclip")
    sums, seen = read_manifest(aside / MANIFEST), set[str]()
    for item in walk(aside):
        if item.place == ABOUT:
            continue
        if item.kind not in ENTRIES | COMPANIONS:
            raise StoreError(f"{archive}: {item.place!r} is {fault_in(item)}; nothing was placed")
        if sums.get(item.place) != digest_of(item.path):
            raise StoreError(f"{archive}: {item.place} is not what its manifest says; nothing was placed, get it again")
        fault = fault_in(item)
        if fault is not None:
            raise StoreError(f"{archive}: {item.place}: {fault}; nothing was placed")
        seen.add(item.place)
    lacking = sorted(sums.keys() - seen)
    if lacking or not seen:
        raise StoreError(f"{archive} lacks {len(lacking)} files of its manifest, first {lacking[:1]}; get it again")
    return sums


def _fresh(root: Path, items: Sequence[Item], sums: Mapping[str, str]) -> list[Item]:
    """What is not in the store yet.

    Raises:
        StoreError: If an entry is there with other bytes.
    """
    fresh, other = [], []
    for item in items:
        there = root / item.place
        if not there.exists():
            fresh.append(item)
        elif item.kind not in (Kind.LEDGER, Kind.TOWERS) and digest_of(there) != sums[item.place]:
            other.append(item.place)
    if other:
        raise StoreError(
            f"{len(other)} entries are in {root} with other bytes: {', '.join(other[:5])}; nothing was placed. "
            "Move them away to take those of the archive, or import into a store of its own by --store DIR"
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
        with write_whole(target) as temporary:
            shutil.copyfile(path, temporary)


def _add_lines(path: Path, target: Path) -> None:
    """Adds the lines of a ledger that another lacks."""
    known = set(target.read_bytes().splitlines())
    lacking = [line for line in path.read_bytes().splitlines() if line not in known]
    with target.open("ab", buffering=0) as file:  # one call, as `ledger.append`
        file.write(b"".join(line + b"\n" for line in lacking))
