"""Reads the file of an offline W&B run."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 1 << 15


def read_records(path: Path) -> Iterator[Any]:
    """Yields the complete records of a run's file: LevelDB's log of protobufs after a header of 7 bytes.

    W&B's service may still be writing the file: a record whose end is not there yet ends the iteration.
    """
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it)

    data = path.read_bytes()
    offset = 7
    entry = b""
    while offset < len(data):
        if BLOCK - offset % BLOCK < 7:  # too short for a head: the rest of the block is padding
            offset += BLOCK - offset % BLOCK
            continue
        if offset + 7 > len(data):
            return
        size = int.from_bytes(data[offset + 4 : offset + 6], "little")
        kind = data[offset + 6]
        if offset + 7 + size > len(data):
            return
        entry += data[offset + 7 : offset + 7 + size]
        offset += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(entry)
            yield record
            entry = b""


def read_finished(path: Path, seconds: float = 30) -> list[Any]:
    """Returns the records of a finished run; the service writes the last of them after `finish` has returned."""
    for _ in range(int(seconds / 0.02)):
        entries = list(read_records(path))
        if entries and entries[-1].WhichOneof("record_type") == "exit":
            return entries
        time.sleep(0.02)
    raise AssertionError(f"{path} has no end after {seconds} s")


@dataclass(frozen=True)
class OfflineRun:
    """Holds a finished offline run.

    Attributes:
        folder: Where its files lie.
        records: Its records.
    """

    folder: Path
    records: list[Any]

    def records_of(self, kind: str) -> list[Any]:
        """Returns the records of a kind."""
        return [getattr(record, kind) for record in self.records if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> Any:
        """Returns the record of the run."""
        return self.records_of("run")[-1]

    @property
    def exit_code(self) -> int:
        """Returns the exit code."""
        (ended,) = self.records_of("exit")
        return ended.exit_code

    @property
    def config(self) -> dict[str, Any]:
        """Returns the config."""
        updates = []
        for run in self.records_of("run"):
            for update in run.config.update:
                updates.append(update)
        updates += [update for config in self.records_of("config") for update in config.update]
        return {update.key: json.loads(update.value_json) for update in updates}

    @property
    def summary(self) -> dict[str, Any]:
        """Returns the summary as the service shows it: the last value of each key."""
        updates = []
        for summary in self.records_of("summary"):
            for update in summary.update:
                updates.append(update)
        return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}

    @property
    def history(self) -> dict[str, Any]:
        """Returns the logged values by key."""
        items = []
        for history in self.records_of("history"):
            for item in history.item:
                items.append(item)
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    def table(self, key: str) -> dict[str, Any]:
        """Returns columns and data of a table."""
        return json.loads((self.folder / "files" / self.history[f"{key}/path"]).read_text(encoding="utf-8"))

    @property
    def artifacts(self) -> dict[str, dict[str, Path]]:
        """Returns the files of each artifact by type."""
        return {
            artifact.type: {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
            for artifact in self.records_of("artifact")
        }


def offline_runs(folder: Path) -> list[OfflineRun]:
    """Returns the W&B runs below a folder in order of their start."""
    return [OfflineRun(path.parent, read_finished(path)) for path in sorted(folder.rglob("run-*.wandb"))]
