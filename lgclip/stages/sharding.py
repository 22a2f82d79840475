"""Divides the missing items of a stage into shards, and decides what happens to a shard that fails.

A shard is a list of complete groups, and a group is one forward pass or several. The passes of a stage are therefore
the same as in one process, and with them the last bits of what is stored.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader, Dataset

from lgclip.runtime.loader_workers import worker_settings

MAX_TRIES = 3
"""Failures of a shard before it is divided, or the loss of its actor before that counts as a failure."""

MAX_POISONED = 20
"""Number of items that fail for good after which a stage ends: more have a common cause."""


class Shard(NamedTuple):
    """Names some of a stage's missing items.

    Attributes:
        loader: Index of the loader that provides them.
        places: Their indices in that loader's items.
    """

    loader: int
    places: list[int]


class Failure(NamedTuple):
    """Describes an error of a worker.

    Attributes:
        kind: Name of the exception's class.
        message: Its message.
        trace: Its traceback.
        is_explained: Whether the message is written for the user, as that of a `ValueError` is.
    """

    kind: str
    message: str
    trace: str = ""
    is_explained: bool = False

    def __str__(self) -> str:
        if self.is_explained:
            return self.message
        return f"{self.kind}: {self.message}"


class ShardSource(Protocol):
    """Provides the batches of a shard: a stage, or its data module."""

    def shard_loader(self, loader: int, places: Sequence[int]) -> Iterable[Any]:
        """Returns the batches of some items, as the stage's `predict_step` takes them.

        Args:
            loader: Index of the loader.
            places: Indices of the items.
        """
        ...

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Moves a batch to a device."""
        ...


class ShardedStage(LightningModule):
    """Describes a stage whose missing items can be computed in shards, by several processes.

    Each process has a copy of the stage with its own model. What a copy computes it writes to the store itself.
    """

    unit = "thing"

    @property
    def is_sharded(self) -> bool:
        """Returns whether it is worth while: not for work that takes no device."""
        return True

    @abstractmethod
    def missing_by_loader(self) -> list[list[int]]:
        """Returns the indices of missing items for each loader."""

    @abstractmethod
    def group_size(self, loader: int, device: str) -> int:
        """Returns the number of items of a loader after which a pass ends, and a file where that is possible.

        Args:
            loader: Index of the loader.
            device: Type of the device that computes: `cpu` or `cuda`.
        """

    @abstractmethod
    def item_name(self, loader: int, place: int) -> str:
        """Returns the name of an item for errors: the class and the prompt, or the file."""

    @abstractmethod
    def content_keys(self) -> list[str]:
        """Returns the keys of the models, computed now: another machine may have other weights, or precisions."""

    def reread_store(self) -> None:
        """Reads what other processes have added to the store since it was read last."""
        return

    def drop_queue(self) -> None:
        """Forgets items that wait for a complete pass, after an error."""
        return

    def finish_shards(self, trainer: Trainer) -> None:
        """Ends the stage in the run's own process, when every shard is done.

        Args:
            trainer: Trainer of the run's own process.
        """
        return


class _Batches:
    """Holds the batches of the shard that is loaded now."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class ReusableLoader:
    """Loads shard after shard by the same worker processes, which take seconds to start.

    Args:
        dataset: All items of a loader; it is sent to the worker processes once.
        batch_size: Number of items per batch.
        workers: Number of worker processes, at least one.
        settings: Further arguments of torch's loader.
    """

    def __init__(self, dataset: "Dataset[Any]", batch_size: int, workers: int, **settings: Any) -> None:
        self._size = batch_size
        self._sampler = _Batches()
        # torch's `persistent_workers` keeps the processes, and asks its sampler again for each pass.
        self._loader: DataLoader[Any] = DataLoader(
            dataset, batch_sampler=self._sampler, persistent_workers=True, **worker_settings(workers), **settings
        )

    def load(self, indices: Sequence[int]) -> Iterator[Any]:
        """Returns the batches of some items."""
        self._sampler.batches = [list(indices[i : i + self._size]) for i in range(0, len(indices), self._size)]
        return iter(self._loader)


@dataclass(eq=False)
class Job:
    """Holds a shard that is still to be computed.

    Attributes:
        shard: The shard.
        failures: How often it has failed, including failures of the shard that it was a part of.
        losses: How often its worker was lost since its last failure.
        avoided: Workers on which it has failed.
    """

    shard: Shard
    failures: int = 0
    losses: int = 0
    avoided: set[int] = field(default_factory=set)

    @property
    def is_repeated(self) -> bool:
        """Returns whether it was tried before."""
        return bool(self.failures or self.losses)


class ShardQueue:
    """Deals out the missing items of a stage.

    New shards get smaller towards the end, so that all workers end together. A shard that fails is tried again, on
    another worker if there is one. After `MAX_TRIES` failures it is divided into halves, and so on until the item that
    fails is found; that item is left out. All others are computed.

    Args:
        missing: Indices of the missing items of each loader.
        groups: Group size of each loader.
        largest: Maximum number of items per shard; a group may be larger.

    Attributes:
        poisoned: Items that failed for good, with their last failure, by loader and index.
    """

    def __init__(self, missing: Sequence[Sequence[int]], groups: Sequence[int], largest: int) -> None:
        # As arrays: a million integers take 8 MB, in a list 40.
        self._missing = [np.asarray(places, dtype=np.int64) for places in missing]
        self._groups = list(groups)
        self._largest = largest
        self._loader = 0
        self._start = 0
        self._again: deque[Job] = deque()
        self.poisoned: dict[tuple[int, int], Failure] = {}

    @property
    def waiting(self) -> int:
        """Returns the number of items that are not dealt out."""
        fresh = sum(len(places) for places in self._missing[self._loader :]) - self._start
        return fresh + sum(len(job.shard.places) for job in self._again)

    @property
    def is_given_up(self) -> bool:
        """Returns whether so many items have failed that the stage ends."""
        return len(self.poisoned) >= MAX_POISONED

    def shards_left(self) -> int:
        """Returns a number of workers beyond which some would have no work: shards that wait, or groups."""
        shards = len(self._again)
        for loader in range(self._loader, len(self._missing)):
            start = self._start if loader == self._loader else 0
            shards += -(-(len(self._missing[loader]) - start) // self._groups[loader])
        return shards

    def take(self, worker: int, workers: Sequence[int]) -> Job | None:
        """Returns the next shard for a worker; None if there is none for it.

        Args:
            worker: The worker.
            workers: All workers that are there.
        """
        for job in self._again:
            # Where it has failed on all of them, any will do.
            if worker not in job.avoided or set(workers) <= job.avoided:
                self._again.remove(job)
                return job
        shard = self._next_shard(len(workers))
        return None if shard is None else Job(shard)

    def _next_shard(self, workers: int) -> Shard | None:
        while self._loader < len(self._missing) and self._start >= len(self._missing[self._loader]):
            self._loader += 1
            self._start = 0
        if self._loader == len(self._missing):
            return None
        places = self._missing[self._loader]
        group = self._groups[self._loader]
        # A quarter of each worker's fraction: the last shards are small, and all workers end at about the same time.
        fair = (len(places) - self._start) // (4 * max(1, workers))
        size = max(1, min(self._largest, fair) // group) * group
        selected = places[self._start : self._start + size]
        self._start += size
        return Shard(self._loader, selected.tolist())

    def put_back(self, job: Job) -> None:
        """Returns a shard that was not begun to the queue."""
        self._again.appendleft(job)

    def lose(self, job: Job, worker: int, failure: Failure) -> None:
        """Returns the shard of a lost worker to the queue: the machine may be at fault, or the shard."""
        job.losses += 1
        if job.losses < MAX_TRIES:
            self._again.appendleft(job)
            return
        job.losses = 0
        job.failures = max(job.failures, MAX_TRIES - 1)
        self.fail(job, worker, failure)

    def fail(self, job: Job, worker: int, failure: Failure) -> None:
        """Returns a failed shard to the queue: it is tried again, divided, or its only item is left out."""
        job.failures += 1
        job.avoided.add(worker)
        if job.failures < MAX_TRIES:
            self._again.appendleft(job)
            return
        loader, places = job.shard
        if len(places) == 1:
            self.poisoned[loader, places[0]] = failure
            return
        group = self._groups[loader]
        middle = len(places) // 2
        # Between two groups as long as there are several.
        if middle > group:
            middle = middle // group * group
        for half in (places[middle:], places[:middle]):
            self._again.appendleft(Job(Shard(loader, half), job.failures))


def poisoned_error(title: str, stage: ShardedStage, poisoned: Mapping[tuple[int, int], Failure], untried: int) -> str:
    """Builds the error for items that failed for good.

    Args:
        title: Name of the stage.
        stage: The stage.
        poisoned: The items with their failures.
        untried: Number of further items that were not tried any more.
    """
    named = [
        f"{stage.item_name(loader, place)}: {' '.join(str(failure).split())[:500]}"
        for (loader, place), failure in list(poisoned.items())[:5]
    ]
    more = f"; and {len(poisoned) - 5} more" if len(poisoned) > 5 else ""
    remark = "all others are stored"
    if untried:
        remark = f"{untried} were not tried any more, since so many failed"
    unit = stage.unit
    noun = unit if len(poisoned) == 1 else f"{unit}es" if unit.endswith("s") else f"{unit}s"
    return (
        f"{title}: {len(poisoned)} {noun} failed {MAX_TRIES} times: {'; '.join(named)}{more}; {remark}. The same "
        "command tries again"
    )
