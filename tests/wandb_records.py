"""What an offline run of W&B holds, read from its own file."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

BLOCK = 1 << 15


def records(path: Path) -> Iterator[Any]:
    """The records of a run's file: LevelDB's log of protobufs, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it)

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # too short for a head: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def finished(path: Path, seconds: float = 30) -> list[Any]:
    """The records of a run that was finished; its service writes the last of them after `finish` has returned."""
    for _ in range(int(seconds / 0.02)):
        found = list(records(path))
        if found and found[-1].WhichOneof("record_type") == "exit":
            return found
        time.sleep(0.02)
    raise AssertionError(f"{path} has no end after {seconds} s")


@dataclass(frozen=True)
class Offline:
    """A finished offline run.

    Attributes:
        folder: Where its files lie.
        found: Its records.
    """

    folder: Path
    found: list[Any]

    def of(self, kind: str) -> list[Any]:
        """The records of a kind."""
        return [getattr(record, kind) for record in self.found if record.WhichOneof("record_type") == kind]

    @property
    def run(self) -> Any:
        """What the run says of itself."""
        return self.of("run")[-1]

    @property
    def exit_code(self) -> int:
        """How it ended."""
        (ended,) = self.of("exit")
        return ended.exit_code

    @property
    def config(self) -> dict[str, Any]:
        """Its config."""
        updates = [update for run in self.of("run") for update in run.config.update]
        updates += [update for config in self.of("config") for update in config.update]
        return {update.key: json.loads(update.value_json) for update in updates}

    @property
    def summary(self) -> dict[str, Any]:
        """Its summary, as the service shows it: the last that was said of a key."""
        updates = [update for summary in self.of("summary") for update in summary.update]
        return {update.key or "/".join(update.nested_key): json.loads(update.value_json) for update in updates}

    @property
    def history(self) -> dict[str, Any]:
        """What was logged, by its key."""
        items = [item for history in self.of("history") for item in history.item]
        return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}

    def table(self, key: str) -> dict[str, Any]:
        """Columns and data of a table."""
        return json.loads((self.folder / "files" / self.history[f"{key}/path"]).read_text(encoding="utf-8"))

    @property
    def artifacts(self) -> dict[str, dict[str, Path]]:
        """The files of each artifact, by its type."""
        return {
            made.type: {entry.path: Path(entry.local_path) for entry in made.manifest.contents}
            for made in self.of("artifact")
        }


def offline_runs(folder: Path) -> list[Offline]:
    """The W&B runs below a folder, in the order in which they began."""
    return [Offline(path.parent, finished(path)) for path in sorted(folder.rglob("run-*.wandb"))]
