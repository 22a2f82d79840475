"""Classifies shards by the workers of a Ray cluster: one task per shard, whose table comes back to this process.

Ray Core's tasks and not its actors, as for the stages of a run (see `lgclip.stages.ray_executor`): a shard takes
minutes, needs no order, and Ray itself deals a task again whose machine is lost. A worker keeps its classifier from one
task to the next.
"""

import io
import os
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from lgclip.classifier.files import save_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.shard_labels import UnknownLabelError
from lgclip.classifier.shard_tables import TableSettings
from lgclip.datasets.shard_files import ShardFile
from lgclip.stages.ray_cluster import (
    ENDPOINTS,
    RayCluster,
    alive_nodes,
    check_installed,
    check_versions,
    has_gpus,
    software_versions,
)
from lgclip.store.atomic import atomic_write

_TRIES = 3
"""Number of times that a shard of a lost worker is dealt again, before it counts as damaged."""

_AHEAD = 2
"""Tasks per CPU of the cluster that wait or run: finished tables are kept in memory until they are written."""


class ShardTable(NamedTuple):
    """Holds a worker's result for a shard.

    Attributes:
        content: Bytes of the table; empty if there is none.
        counts: As `TableSettings.write` returns them.
        error: Reason why there is no table; empty if there is one.
        is_unknown_label: Whether a label is no class of the classifier.
    """

    content: bytes
    counts: dict[str, Any]
    error: str = ""
    is_unknown_label: bool = False


def classify_by_ray(
    classifier: ImageClassifier, settings: TableSettings, pairs: Sequence[tuple[ShardFile, Path]]
) -> Iterator[tuple[ShardFile, Path, dict[str, Any] | str]]:
    """Yields shard, table and counts of each table as it is written, or why it cannot be.

    Args:
        classifier: The classifier; it is sent with its encoder.
        settings: What the tables hold.
        pairs: Shard and table's file of each.

    Raises:
        ValueError: If Ray is not installed, there is no cluster, its machines have other versions, or a label is
            unknown.
    """
    check_installed("--executor ray", "--executor local")
    # Before the cluster: an encoder that cannot be saved cannot be sent.
    with tempfile.TemporaryDirectory() as folder:
        packed = save_classifier(classifier, Path(folder) / "classifier.zip", with_encoder=True).read_bytes()
    cluster = RayCluster()
    cluster.connect()
    try:
        yield from _dealt(packed, settings, pairs)
    finally:
        cluster.close()


def _dealt(
    packed: bytes, settings: TableSettings, pairs: Sequence[tuple[ShardFile, Path]]
) -> Iterator[tuple[ShardFile, Path, dict[str, Any] | str]]:
    import ray
    from ray.exceptions import RayError

    task: Any = ray.remote(num_cpus=1, num_gpus=int(has_gpus()), max_retries=_TRIES)(classify_shard)
    reference = ray.put(packed)
    environment = {name: os.environ[name] for name in ENDPOINTS if name in os.environ}
    waiting = list(reversed(pairs))
    running: dict[Any, tuple[ShardFile, Path]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < _AHEAD * _cpus():
                shard, table = waiting.pop()
                running[task.remote(reference, settings, shard, software_versions(), environment)] = (shard, table)
            finished, _ = ray.wait(list(running), num_returns=1)
            shard, table = running.pop(finished[0])
            try:
                result: ShardTable = ray.get(finished[0])
            except RayError as error:
                lines = str(error).strip().splitlines()
                yield shard, table, f"{shard.where}: its worker was lost or failed ({lines[-1]})"
                continue
            if result.is_unknown_label:
                raise UnknownLabelError(result.error)
            if result.error:
                yield shard, table, result.error
                continue
            table.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(table) as temporary:
                temporary.write_bytes(result.content)
            yield shard, table, result.counts
    finally:
        for unfinished in running:
            ray.cancel(unfinished, force=True)


def _cpus() -> int:
    """Returns the CPUs of the cluster now: machines join and leave."""
    return max(1, int(sum(node["Resources"].get("CPU", 0.0) for node in alive_nodes())))


def classify_shard(
    packed: bytes,
    settings: TableSettings,
    shard: ShardFile,
    versions: Mapping[str, str],
    environment: Mapping[str, str],
) -> ShardTable:
    """Classifies one shard; runs on a machine of the cluster.

    Args:
        packed: The saved classifier.
        settings: What the table holds.
        shard: The shard.
        versions: Versions of the run's own process.
        environment: Environment variables that name the server of an object store.
    """
    os.environ.update(environment)
    try:
        check_versions(versions)
        shard = shard.on_this_machine()
        with tempfile.TemporaryDirectory() as folder:
            table = Path(folder) / "table"
            counts = settings.write(_loaded(packed), shard, table)
            return ShardTable(table.read_bytes(), counts)
    except ValueError as error:
        return ShardTable(b"", {}, str(error), isinstance(error, UnknownLabelError))


@lru_cache(maxsize=1)
def _loaded(packed: bytes) -> ImageClassifier:
    """Returns the classifier with its encoder in memory; of the same bytes only once in a process."""
    from lgclip.classifier.loading import load_classifier

    # The encoder's files are not needed any more once it is loaded. Ray ends its workers without Python's own end, at
    # which a folder that stays would be deleted.
    with tempfile.TemporaryDirectory() as folder:
        with zipfile.ZipFile(io.BytesIO(packed)) as archive:
            archive.extractall(folder)
        classifier = load_classifier(Path(folder))
        classifier.load_encoder()
    return classifier
