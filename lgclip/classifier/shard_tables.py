"""Classifies shard by shard, one table each: an interrupted command goes on, and several machines share the work."""

import json
import tempfile
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lgclip.classifier.files import save_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import RECORD
from lgclip.classifier.shard_labels import ClassCounts, ShardLabels, UnknownLabelError
from lgclip.classifier.sources import ListedImage
from lgclip.classifier.tables import prediction_rows, write_table
from lgclip.datasets.image_shards import SHARD_SUFFIXES, shard_images
from lgclip.datasets.shard_files import ShardFile
from lgclip.store.atomic import write_json
from lgclip.store.keys import digest_of


@dataclass(frozen=True)
class TableSettings:
    """Holds the settings that the content of a table depends on besides classifier and shard.

    Attributes:
        table_format: `csv`, `jsonl` or `parquet`.
        top: Number of most probable classes with columns of their own.
        labels: Where the true class of an image is; None for images without labels.
    """

    table_format: str = "parquet"
    top: int = 1
    labels: ShardLabels | None = None

    def write(self, classifier: ImageClassifier, shard: ShardFile, table: Path) -> dict[str, Any]:
        """Classifies the images of a shard, and writes its table atomically.

        Args:
            classifier: The classifier.
            shard: The shard.
            table: The table's file.

        Returns:
            `images`, `unreadable`, `rejected`, the number of each; with labels also `classes`, the number of images and
            of correct predictions of each class.

        Raises:
            ValueError: If the shard is damaged, or a label is no class of the classifier.
        """
        counts = {"images": 0, "unreadable": 0, "rejected": 0}
        classes = ClassCounts()
        # The label of each image that is being classified: predictions come in the order of the images.
        waiting: deque[str] = deque()

        def images() -> Iterator[tuple[str, ListedImage]]:
            for image in shard_images(shard, self.labels.fields if self.labels else None):
                if self.labels:
                    waiting.append(self.labels.class_of(image, classifier.class_names))
                yield image.where, image

        def rows() -> Iterator[Mapping[str, Any]]:
            for row in prediction_rows(classifier.classify_listed(images(), top=self.top), self.top):
                counts["images"] += 1
                counts["unreadable"] += row["error"] is not None
                counts["rejected"] += bool(row["rejected"])
                if not self.labels:
                    yield row
                    continue
                true_class = waiting.popleft()
                if row["error"] is None:
                    classes.add(true_class, is_correct=row["label"] == true_class)
                yield {**row, "true_label": true_class}

        write_table(table, rows(), self.table_format, self.top, ["true_label"] if self.labels else [])
        return {**counts, "classes": dict(classes.counts)} if self.labels else counts

    def inputs(self) -> dict[str, Any]:
        """Returns the settings as the record of a table has them."""
        labels = {"labels": self.labels.inputs()} if self.labels else {}
        return {"top": self.top, **labels}


@dataclass(frozen=True)
class ShardTables:
    """Describes the tables of some shards.

    Next to each table, `TABLE.json` says which classifier and which shard it is of, and counts its rows. It is written
    after the table: a table without it is not complete.

    Args:
        folder: Folder of the tables.
        settings: Settings of the tables.
        part: Index and number of the processes that share the shards, from 0.
        uses_ray: Whether the workers of a Ray cluster classify the shards.
    """

    folder: Path
    settings: TableSettings = field(default_factory=TableSettings)
    part: tuple[int, int] = (0, 1)
    uses_ray: bool = False

    def classify(self, classifier: ImageClassifier, shards: Sequence[ShardFile]) -> Iterator[str]:
        """Classifies the images of each shard that has no table yet.

        Args:
            classifier: The classifier.
            shards: The shards; all processes get all of them.

        Yields:
            A line per shard, and the sum.

        Raises:
            ValueError: If two shards have one name, a label is unknown, or a shard is damaged; in the last case all
                others are classified first.
        """
        tables = self._tables(shards)
        key = _key_of(classifier)
        index, parts = self.part
        total: Counter[str] = Counter()
        classes = ClassCounts()
        missing: list[tuple[ShardFile, Path, dict[str, Any]]] = []
        selected = list(zip(shards, tables, strict=True))[index::parts]
        for shard, table in selected:
            about = {"classifier": key, **self.settings.inputs(), "shard": _stamp_of(shard)}
            counts = _finished(table, about)
            if counts is None:
                missing.append((shard, table, about))
                continue
            total["reused"] += 1
            classes.update(counts.pop("classes", {}))
            total.update(counts)
        damaged: list[str] = []
        pairs = [(shard, table) for shard, table, _ in missing]
        abouts = {table: about for _, table, about in missing}
        for shard, table, counts in self._computed(classifier, pairs):
            if isinstance(counts, str):
                damaged.append(counts)
                yield f"{shard.where}: not classified"
                continue
            write_json(_record_of(table), {**abouts[table], "counts": counts})
            yield f"{table}: {counts['images']} images, {counts['unreadable']} of them could not be read"
            classes.update(counts.pop("classes", {}))
            total.update(counts)
        yield (
            f"{self.folder}: {total['images']} images of {len(selected) - len(damaged)} shards, {total['reused']} of "
            f"them before; {total['rejected']} images rejected, {total['unreadable']} could not be read"
        )
        if self.settings.labels and classes.counts:
            yield str(classes)
        if damaged:
            raise ValueError("; ".join(damaged))

    def _computed(
        self, classifier: ImageClassifier, pairs: Sequence[tuple[ShardFile, Path]]
    ) -> Iterator[tuple[ShardFile, Path, dict[str, Any] | str]]:
        """Yields shard, table and counts of each table that is written, or why it cannot be."""
        if self.uses_ray and pairs:
            from lgclip.classifier.ray_tables import classify_by_ray

            yield from classify_by_ray(classifier, self.settings, pairs)
            return
        with _fetched_ahead([shard for shard, _ in pairs]) as ahead:
            for shard, table in pairs:
                ahead()
                try:
                    yield shard, table, self.settings.write(classifier, shard, table)
                except UnknownLabelError:
                    raise
                except ValueError as error:
                    yield shard, table, str(error)

    def _tables(self, shards: Sequence[ShardFile]) -> list[Path]:
        """Returns the table of each shard."""
        tables = [self.folder / f"{_stem(shard)}.{self.settings.table_format}" for shard in shards]
        for table, count in Counter(tables).items():
            if count > 1:
                raise ValueError(
                    f"{table}: {count} shards would write this table; classify them into different folders"
                )
        return tables


@contextmanager
def _fetched_ahead(shards: Sequence[ShardFile]) -> Iterator[Any]:
    """Provides a function that is called before each shard, and downloads the next one meanwhile."""
    following = iter(shards[1:])

    with ThreadPoolExecutor(1) as downloader:

        def ahead() -> None:
            shard = next(following, None)
            if shard is not None and shard.location is not None:
                # An error is raised again where the shard is opened.
                downloader.submit(shard.fetch)

        yield ahead


def _stem(shard: ShardFile) -> str:
    for suffix in SHARD_SUFFIXES:
        if shard.name.lower().endswith(suffix):
            return shard.name[: -len(suffix)]
    return shard.name


def _record_of(table: Path) -> Path:
    return table.with_name(f"{table.name}.json")


def _finished(table: Path, about: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the counts of a complete table of the same classifier and shard; None for any other."""
    try:
        record = json.loads(_record_of(table).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None
    if not table.is_file() or not isinstance(record, dict):
        return None
    counts = record.pop("counts", None)
    return counts if record == about and isinstance(counts, dict) else None


def _stamp_of(shard: ShardFile) -> dict[str, Any]:
    """Describes a shard without reading it: one that was replaced is classified again."""
    if shard.location is not None:
        return {"bytes": shard.size, "version": shard.version}
    return {"bytes": shard.size, "modified": shard.path.stat().st_mtime_ns}


def _key_of(classifier: ImageClassifier) -> str:
    """Returns a hash of all that a prediction depends on: of the record that is saved, which names the tensors too."""
    with tempfile.TemporaryDirectory() as folder:
        save_classifier(classifier, Path(folder) / "classifier")
        return digest_of(Path(folder) / "classifier" / RECORD)
