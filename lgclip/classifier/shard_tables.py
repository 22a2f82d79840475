"""Classifies shard by shard, one table each: an interrupted command goes on, and several machines share the work."""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.classifier.files import save_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import RECORD
from lgclip.classifier.tables import prediction_rows, write_table
from lgclip.datasets.image_shards import SHARD_SUFFIXES
from lgclip.store.atomic import write_json
from lgclip.store.keys import digest_of, file_stamp


@dataclass(frozen=True)
class ShardTables:
    """Describes the tables of some shards.

    Next to each table, `TABLE.json` says which classifier and which shard it is of, and counts its rows. It is written
    after the table: a table without it is not complete.

    Args:
        folder: Folder of the tables.
        table_format: `csv`, `jsonl` or `parquet`.
        top: Number of most probable classes with columns of their own.
        part: Index and number of the processes that share the shards, from 0.
    """

    folder: Path
    table_format: str = "parquet"
    top: int = 1
    part: tuple[int, int] = (0, 1)

    def classify(self, classifier: ImageClassifier, shards: Sequence[Path]) -> Iterator[str]:
        """Classifies the images of each shard, unless its table is there.

        Args:
            classifier: The classifier.
            shards: The shards; all processes get all of them.

        Yields:
            A line per shard, and the sum.

        Raises:
            ValueError: If two shards have one name, or one is damaged; all others are classified first.
        """
        tables = self._tables(shards)
        key = _key_of(classifier)
        index, parts = self.part
        counts: Counter[str] = Counter()
        damaged: list[str] = []
        for shard, table in list(zip(shards, tables, strict=True))[index::parts]:
            about = {"classifier": key, "top": self.top, "shard": _stamp_of(shard)}
            done = _finished(table, about)
            if done is not None:
                counts.update(done)
                counts["reused"] += 1
                continue
            try:
                done = self._write(classifier, shard, table)
            except ValueError as error:
                damaged.append(str(error))
                yield f"{shard}: not classified"
                continue
            write_json(_record_of(table), {**about, "counts": done})
            counts.update(done)
            yield f"{table}: {done['images']} images, {done['unreadable']} of them could not be read"
        taken = len(tables[index::parts]) - len(damaged)
        yield (
            f"{self.folder}: {counts['images']} images of {taken} shards, {counts['reused']} of them before; "
            f"{counts['rejected']} images rejected, {counts['unreadable']} could not be read"
        )
        if damaged:
            raise ValueError("; ".join(damaged))

    def _tables(self, shards: Sequence[Path]) -> list[Path]:
        """Returns the table of each shard."""
        tables = [self.folder / f"{_stem(shard)}.{self.table_format}" for shard in shards]
        for table, count in Counter(tables).items():
            if count > 1:
                raise ValueError(
                    f"{table}: {count} shards would write this table; classify them into different folders"
                )
        return tables

    def _write(self, classifier: ImageClassifier, shard: Path, table: Path) -> dict[str, int]:
        counts = {"images": 0, "unreadable": 0, "rejected": 0}

        def rows() -> Iterator[Mapping[str, Any]]:
            for row in prediction_rows(classifier.classify(shard, top=self.top), self.top):
                counts["images"] += 1
                counts["unreadable"] += row["error"] is not None
                counts["rejected"] += bool(row["rejected"])
                yield row

        write_table(table, rows(), self.table_format, self.top)
        return counts


def _stem(shard: Path) -> str:
    for suffix in SHARD_SUFFIXES:
        if shard.name.lower().endswith(suffix):
            return shard.name[: -len(suffix)]
    return shard.name


def _record_of(table: Path) -> Path:
    return table.with_name(f"{table.name}.json")


def _finished(table: Path, about: Mapping[str, Any]) -> dict[str, int] | None:
    """Returns the counts of a complete table of the same classifier and shard; None for any other."""
    try:
        record = json.loads(_record_of(table).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not table.is_file() or not isinstance(record, dict):
        return None
    counts = record.pop("counts", None)
    return counts if record == about and isinstance(counts, dict) else None


def _stamp_of(shard: Path) -> dict[str, int]:
    """Describes a shard without reading it: one that was replaced is classified again."""
    stamp = file_stamp(shard)
    return {"bytes": stamp.size, "modified": shard.stat().st_mtime_ns}


def _key_of(classifier: ImageClassifier) -> str:
    """Returns a hash of all that a prediction depends on: of the record that is saved, which names the tensors too."""
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(classifier, Path(folder) / "classifier")
        return digest_of(Path(folder) / "classifier" / RECORD)
