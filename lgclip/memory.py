"""What a stage runs on, and how much memory it had in use at most."""

import threading
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_EVERY = 0.05
"""Seconds between two looks at a process's memory."""


def device_name(device: torch.device) -> str:
    """What a device is called, such as `cpu` or `NVIDIA H200`."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


class Peak:
    """The most memory that was in use while the block ran.

    On a CUDA device it is what torch had allocated there. On a CPU it is the resident memory of this process, which
    leaves out the processes that decode images: the system's own peak if that rose during the block. If it did not,
    the process had once been larger, and the largest of samples stands for it. (Linux can set its peak back, but
    then whoever measures the whole process is told too little.)

    Args:
        device: Where the block computes.

    Attributes:
        bytes: The peak, once the block has ended; None before, and where nothing is known: without /proc.
        source: `device`, `process` or `samples`; None if nothing is known.
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
            self._watch = threading.Thread(target=self._look, name="memory", daemon=True)
            self._watch.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._device.type == "cuda":
            self.bytes, self.source = torch.cuda.max_memory_allocated(self._device), "device"
        elif _STATUS.exists():
            self._end.set()
            self._watch.join()
            peak = _resident("VmHWM")
            rose = peak > self._before
            self.bytes, self.source = (peak, "process") if rose else (max(self._samples), "samples")

    def _look(self) -> None:
        while True:
            self._samples.append(max(self._samples.pop(), _resident("VmRSS")))
            if self._end.wait(_EVERY):
                return


def _resident(name: str) -> int:
    """One of the process's figures, in bytes."""
    text = _STATUS.read_text(encoding="ascii", errors="replace")
    return 1024 * int(text.partition(f"{name}:")[2].split(maxsplit=1)[0])
