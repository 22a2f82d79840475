"""Provides helpers of the store's tests: files by kind, and the output of a command."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from factories import read_store

from lgclip.cli.store.inventory import Kind, walk
from lgclip.store.root import StoreError

DAY = 86_400 * 10**9


def files_of_kind(root: Path, kind: Kind) -> list[Path]:
    """Returns the files of one kind in a store."""
    return [item.path for item in walk(root) if item.kind == kind]


def collect_failure(lines: Iterator[str], match: str = "") -> list[str]:
    """Returns the lines a command prints before it fails."""
    printed = []
    with pytest.raises(StoreError, match=match or None):
        printed.extend(lines)
    return printed


def make_older(root: Path, days: float) -> None:
    """Makes everything in a store so many days older."""
    timestamp = time.time_ns() - int(days * DAY)
    for path in root.rglob("*"):
        os.utime(path, ns=(timestamp, timestamp))


def read_entries(root: Path) -> dict[str, bytes]:
    """Returns a store's files except its cost logs, manifest and quarantine."""
    return {
        name: data
        for name, data in read_store(root).items()
        if not name.startswith(("quarantine/", "MANIFEST", "features"))
    } | {name: data for name, data in read_store(root / "features").items() if not name.endswith("towers.json")}
