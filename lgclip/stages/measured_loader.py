"""Chooses the number of worker processes from the load times of the first batches: `workers=auto`."""

import logging
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Subset

from lgclip.runtime.cores import usable_cores
from lgclip.runtime.loader_workers import worker_settings

log = logging.getLogger(__name__)

MEASURED_BATCHES = 3
"""Batches that are loaded in this process before the number of workers is chosen; the first one warms up."""

MAX_WORKERS = 16
"""Maximum number of workers; each takes some 500 MB."""

MIN_GAIN = 0.1
"""Fraction of the remaining time that workers must save: less is within the error of the prediction."""

START_SECONDS = 4.0
"""Seconds until worker processes return a first batch: they import torch and the encoder's library.
Between what was measured with a warm fork server (1.5) and at its first start on a busy machine (10)
(`python benchmarks/loader_workers.py`)."""

_MEASURED_ITEMS = 16
_SHARED_MEMORY = Path("/dev/shm")
_BATCHES_PER_WORKER = 4
"""Batches of one worker in shared memory: two that wait, one that it writes, and one that is read."""


class Images(Sized, Protocol):
    """Holds images that are loaded one by one, or several together by threads."""

    def __getitem__(self, index: int) -> Any: ...
    def __getitems__(self, batch: Sequence[int]) -> list[Any]: ...


@dataclass(frozen=True)
class LoadTimes:
    """Holds the seconds that one image takes.

    Attributes:
        alone: To load it with a single thread, as a worker process does.
        threads: To load it with the threads of this process, as without workers.
        used: To compute on it, such as a forward pass.
    """

    alone: float
    threads: float
    used: float


@dataclass(frozen=True)
class Machine:
    """Describes what workers share with the model.

    Attributes:
        cores: Number of cores for this process and its workers.
        busy_cores: Number of cores that the model uses: on a CPU all threads of torch, next to a GPU one.
        most_workers: Maximum number of workers for which there is shared memory.
    """

    cores: int
    busy_cores: int
    most_workers: int = MAX_WORKERS


def choose_workers(times: LoadTimes, images: int, machine: Machine) -> int:
    """Returns the smallest number of worker processes that keeps the model busy; 0 where they save nothing.

    Without workers an image takes `threads + used`. With `w` of them loading and the model overlap: an image takes
    `used` or `alone / w`, whichever is longer. That holds for workers with cores of their own: on those of the model
    both get slower.

    Args:
        times: Seconds per image.
        images: Number of images that are still to be loaded.
        machine: Cores and memory.
    """
    best = 0
    least = images * (times.threads + times.used) * (1 - MIN_GAIN)
    for workers in range(1, min(machine.most_workers, machine.cores - machine.busy_cores) + 1):
        seconds = START_SECONDS + images * max(times.used, times.alone / workers)
        if seconds < least:
            best = workers
            least = seconds
    return best


def this_machine(device: torch.device, processes: int) -> Machine:
    """Returns the cores of each of several equal processes.

    Args:
        device: Device of the model.
        processes: Number of the run's processes on this machine.
    """
    cores = max(1, usable_cores() // processes)
    busy = min(cores, torch.get_num_threads()) if device.type == "cpu" else 1
    return Machine(cores, busy)


class MeasuredLoader:
    """Loads the first batches in this process, and the others by as many workers as these call for.

    The batches are the same for any number of workers. It is iterated once, and while it waits for the next batch to be
    asked for, the model computes.

    Args:
        dataset: The images.
        batch_size: Number of images per batch.
        machine: Cores for the workers; those that the model uses.
        report: Is called with the number of workers that was chosen.
        settings: Further arguments of torch's loader; `collate_fn` is one of them.
    """

    def __init__(
        self,
        dataset: Images,
        batch_size: int,
        machine: Machine,
        report: Callable[[int], None] = lambda workers: None,
        **settings: Any,
    ) -> None:
        self.dataset = dataset
        self._batch_size = batch_size
        self._machine = machine
        self._report = report
        self._settings = settings

    def __len__(self) -> int:
        return math.ceil(len(self.dataset) / self._batch_size)

    def __iter__(self) -> Iterator[Any]:
        size = self._batch_size
        measured = MEASURED_BATCHES * size
        if len(self.dataset) <= measured:
            yield from self._loader(0, 0)
            return
        collate = self._settings["collate_fn"]
        batch = collate(self.dataset.__getitems__(range(size)))
        yield batch
        alone: list[float] = []
        threads: list[float] = []
        used = 0.0
        for start in range(size, measured, size):
            items, single, threaded = self._timed_items(range(start, start + size))
            alone += single
            threads += threaded
            batch = collate(items)
            begin = time.perf_counter()
            yield batch
            used += time.perf_counter() - begin
        times = LoadTimes(_mean(alone), _mean(threads), used / (measured - size))
        remaining = len(self.dataset) - measured
        machine = Machine(
            self._machine.cores, self._machine.busy_cores, min(self._machine.most_workers, _room_for(batch))
        )
        workers = min(choose_workers(times, remaining, machine), -(-remaining // size))
        log.info(
            "workers=auto: %d, for %d more images: one takes %.1f ms to load (%.1f ms by threads) and %.1f ms to "
            "compute, on %d cores",
            workers, remaining, 1000 * times.alone, 1000 * times.threads, 1000 * times.used, machine.cores,
        )  # fmt: skip
        self._report(workers)
        yield from self._loader(measured, workers)

    def _timed_items(self, places: range) -> tuple[list[Any], list[float], list[float]]:
        """Loads some images one by one and the others by threads; also returns the seconds of each image."""
        single = places[: min(_MEASURED_ITEMS, (len(places) + 1) // 2)]
        threaded = places[len(single) :]
        begin = time.perf_counter()
        items = [self.dataset[place] for place in single]
        middle = time.perf_counter()
        if threaded:
            items += self.dataset.__getitems__(threaded)
        end = time.perf_counter()
        alone = (middle - begin) / len(single)
        threads = (end - middle) / len(threaded) if threaded else alone
        return items, [alone] * len(single), [threads] * max(1, len(threaded))

    def _loader(self, start: int, workers: int) -> DataLoader[Any]:
        remaining: Any = Subset(self.dataset, range(start, len(self.dataset)))  # pyright: ignore[reportArgumentType]
        return DataLoader(remaining, batch_size=self._batch_size, **self._settings, **worker_settings(workers))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _room_for(batch: Any) -> int:
    """Returns for how many workers there is shared memory, by which batches are passed on.

    A container often has only 64 MB of it, and a worker that finds none is killed.
    """
    if not _SHARED_MEMORY.is_dir():
        return MAX_WORKERS
    size = sum(tensor.nbytes for tensor in _tensors(batch))
    return shutil.disk_usage(_SHARED_MEMORY).free // max(1, _BATCHES_PER_WORKER * size)


def _tensors(batch: Any) -> Iterator[torch.Tensor]:
    if isinstance(batch, torch.Tensor):
        yield batch
    elif isinstance(batch, list | tuple):
        for part in batch:
            yield from _tensors(part)
