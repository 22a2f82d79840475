"""What the tests of a store's custody share: a store's files by kind, and what a command says."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from worlds import stored

from lgclip.inventory import Kind, walk
from lgclip.store import StoreError

DAY = 86_400 * 10**9


def files(root: Path, kind: Kind) -> list[Path]:
    """The files of one kind in a store."""
    return [item.path for item in walk(root) if item.kind == kind]


def fails(lines: Iterator[str], match: str = "") -> list[str]:
    """What a command says before it fails."""
    said = []
    with pytest.raises(StoreError, match=match or None):
        said.extend(lines)
    return said


def age(root: Path, days: float) -> None:
    """Makes everything in a store so many days old."""
    at = time.time_ns() - int(days * DAY)
    for path in root.rglob("*"):
        os.utime(path, ns=(at, at))


def entries(root: Path) -> dict[str, bytes]:
    """A store's files but its ledgers, its manifest and what is in quarantine."""
    return {
        name: data
        for name, data in stored(root).items()
        if not name.startswith(("quarantine/", "MANIFEST", "features"))
    } | {name: data for name, data in stored(root / "features").items() if not name.endswith("towers.json")}
