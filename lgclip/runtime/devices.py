"""Describes the devices of a run: names, peak memory, sharding of work and consistency of their configs."""

import threading
from pathlib import Path
from typing import Protocol

import torch
from lightning import Callback, LightningModule, Trainer

_STATUS = Path("/proc/self/status")
_EVERY = 0.05
"""Seconds between two samples of a process's memory."""


def device_name(device: torch.device) -> str:
    """Returns the name of a device, such as `cpu` or `NVIDIA H200`."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return device.type


class Peak:
    """Measures the peak memory in use while the block runs.

    On a CUDA device it is the memory that torch allocated there. On a CPU it is the resident memory of this process,
    without the processes that decode images: the system's own peak if that rose during the block. If it did not, the
    process had been larger before, and the maximum of samples is used instead. (Linux can reset its peak, but then
    another tool that measures the whole process would report too little.)

    Args:
        device: Device on which the block computes.

    Attributes:
        bytes: The peak, once the block has ended; None before that, and where it is unknown (without /proc).
        source: `device`, `process` or `samples`; None if unknown.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._end = threading.Event()
        self._samples = [0]
        self.bytes: int | None = None
        self.source: str | None = None

    def __enter__(self) -> "Peak":
        if self._device.type == "cuda":
            if torch.cuda.is_initialized():  # else there is no peak yet, and a cached run need not wake the device
                torch.cuda.reset_peak_memory_stats(self._device)
        elif _STATUS.exists():
            self._before = _resident("VmHWM")
            self._watch = threading.Thread(target=self._sample, name="memory", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
            self.source = "device"
        elif _STATUS.exists():
            self._end.set()
            self._watch.join()
            peak = _resident("VmHWM")
            # The system's peak is exact, but of the whole life of the process: it is this block's only if it rose.
            if peak > self._before:
                self.bytes = peak
                self.source = "process"
            else:
                self.bytes = max(self._samples)
                self.source = "samples"

    def _sample(self) -> None:
        while True:
            # Only the largest is held: an hour of samples would itself take memory.
            self._samples.append(max(self._samples.pop(), _resident("VmRSS")))
            if self._end.wait(_EVERY):
                return


# psutil was considered: on Linux it reports current memory and not the peak, which a stage reports.
def _resident(name: str) -> int:
    """Returns one memory value of this process, in bytes."""
    # A line such as "VmRSS:     123 kB"; the kernel means 1,024 bytes.
    text = _STATUS.read_text(encoding="ascii", errors="replace")
    return 1024 * int(text.partition(f"{name}:")[2].split(maxsplit=1)[0])


class Rank(Protocol):
    """Stores the index of this device and the number of devices, as reported by Lightning's trainer."""

    @property
    def global_rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


def shard_indices(trainer: Rank, n: int, size: int) -> list[int]:
    """Returns the indices out of `n` that this device processes: groups of `size` neighbors, dealt round-robin.

    A group is one forward pass, or several. A pass therefore has the same rows at the same positions on any number of
    devices, and its output is bit-identical: a matrix product of another height, or a row at another position in it,
    may round differently. This costs no time where passes are filled up anyway.

    Args:
        trainer: Trainer of this device.
        n: Number of items.
        size: Group size.
    """
    places: list[int] = []
    for start in range(0, n, size)[trainer.global_rank :: trainer.world_size]:
        places += range(start, min(start + size, n))
    return places


class ConfigConsistencyCheck(Callback):
    """Compares the configs of all devices before the first stage.

    Each process composes its own config; if one evaluated another job's config, the results would be mixed.

    Args:
        key: `run_key` of this process's config.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._agreed = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Compares the keys of all devices; each device sees all keys, so that all of them stop.

        Raises:
            ValueError: If two differ.
        """
        # Once a run: `setup` is called again by every stage, and the keys cannot change in between.
        if self._agreed or trainer.world_size == 1:
            return
        keys: list[str] = [""] * trainer.world_size
        torch.distributed.all_gather_object(keys, self._key)
        different = [rank for rank, key in enumerate(keys) if key != keys[0]]
        if different:
            raise ValueError(
                f"processes {different} of {trainer.world_size} have another config than process 0: they were started "
                "with other arguments, or files of conf/ changed in between; start all of them again"
            )
        self._agreed = True
