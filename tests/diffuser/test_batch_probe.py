"""Tests the measurement behind `diffuser.batch_size=auto`, with a meter whose bytes are known."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.diffuser.batch_probe import LARGEST_BATCH, MEMORY_FRACTION, CudaMeter, memory_meter, probe_batch_size
from lgclip.diffuser.pipeline import Diffuser

GB = 2**30


@dataclass
class Device:
    """Simulates a device: its memory, and what a batch of so many images takes.

    Attributes:
        memory: Free bytes.
        peak_of: Bytes of a batch.
        batches: The batches so far.
    """

    memory: int
    peak_of: Callable[[int], int]
    batches: list[int] = field(default_factory=list)

    def generate(self, images: int) -> None:
        self.batches.append(images)
        if self.peak_of(images) > self.memory:
            raise torch.OutOfMemoryError("CUDA out of memory")

    def free(self) -> int:
        return self.memory

    def peak(self, call: Callable[[], object]) -> int:
        call()
        return self.peak_of(self.batches[-1])

    def probe(self) -> int:
        return probe_batch_size(self.generate, self)


@pytest.mark.parametrize(
    ("memory", "fixed", "per_image", "expected"),
    [
        (24 * GB, GB, 4 * GB, 4),  # 17 of 20.4
        (24 * GB, GB, 5 * GB, 2),  # 21 of 20.4 would be over
        (139 * GB, GB, 4 * GB, 16),
        (139 * GB, GB, GB // 2, LARGEST_BATCH),
        (8 * GB, 0, 6 * GB, 1),
        (8 * GB, 0, 7 * GB, 1),  # more than the fraction, and it fits
        (24 * GB, 12 * GB, GB // 2, 16),  # offloaded weights are part of each pass
    ],
)
def test_largest_batch_that_fits(memory: int, fixed: int, per_image: int, expected: int) -> None:
    device = Device(memory, lambda n: fixed + n * per_image)
    assert device.probe() == expected
    assert set(device.batches) <= {1, 2}, "larger ones are extrapolated"


@given(fixed=st.integers(0, 20 * GB), per_image=st.integers(GB // 16, 20 * GB), memory=st.integers(21 * GB, 139 * GB))
def test_batch_is_the_largest_power_of_two(fixed: int, per_image: int, memory: int) -> None:
    device = Device(memory, lambda n: fixed + n * per_image)
    if device.peak_of(1) > memory:
        with pytest.raises(ValueError, match="one image does not fit"):
            device.probe()
        return
    size = device.probe()
    assert LARGEST_BATCH % size == 0
    budget = int(MEMORY_FRACTION * memory)
    assert size == 1 or device.peak_of(size) <= budget
    assert size == LARGEST_BATCH or device.peak_of(2 * size) > budget


def test_growth_behind_another_peak_is_found() -> None:
    """With slicing, the peak is the decoding of one image until a batch of latents takes more."""
    device = Device(24 * GB, lambda n: max(4 * GB, n * GB))
    assert device.probe() == 16
    assert device.batches == [1, 1, 2, 4, 8]


def test_batch_that_fits_only_once_is_not_extrapolated() -> None:
    device = Device(24 * GB, lambda n: 2 * GB if n == 1 else 23 * GB)
    assert device.probe() == 1


def test_two_that_do_not_fit_leave_one() -> None:
    device = Device(8 * GB, lambda n: n * 5 * GB)
    assert device.probe() == 1


def test_one_that_does_not_fit_is_an_error_with_a_way_out() -> None:
    with pytest.raises(ValueError, match=r"batch_size=auto: one image does not fit .* diffuser\.offload=model"):
        Device(8 * GB, lambda n: n * 9 * GB).probe()


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail(images: int) -> None:
        raise RuntimeError("the device is gone")

    with pytest.raises(RuntimeError, match="device is gone"):
        probe_batch_size(fail, Device(GB, lambda n: n))


def test_cpu_is_not_measured() -> None:
    assert memory_meter(torch.device("cpu")) is None
    assert isinstance(memory_meter(torch.device("cuda")), CudaMeter)


def test_cuda_meter_counts_what_a_call_adds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only torch's counters are simulated."""
    allocated = 5 * GB
    peak = [0]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10 * GB, 24 * GB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 7 * GB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: allocated)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peak.__setitem__(0, allocated))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peak[0])
    meter = CudaMeter(torch.device("cuda"))
    assert meter.free() == 12 * GB
    assert meter.peak(lambda: peak.__setitem__(0, 9 * GB)) == 4 * GB


@pytest.mark.parametrize("value", ["many", "AUTO", ""])
def test_unknown_batch_size_is_rejected(value: str) -> None:
    with pytest.raises(ValueError, match=rf"diffuser\.batch_size={value}: choose a number of at least 1, or auto"):
        Diffuser("tiny:diffuser", batch_size=value)


def test_batch_size_is_in_no_key() -> None:
    assert Diffuser("tiny:diffuser", batch_size="auto").inputs() == Diffuser("tiny:diffuser").inputs()
