"""Tests `workers=auto`: what is chosen for which machine, and that the batches stay the same."""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_encoder, make_image_folder
from lightning import Trainer
from torch.utils.data import DataLoader

from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.encoder.views import SharedViews
from lgclip.runtime import cores
from lgclip.stages import measured_loader
from lgclip.stages.extract import real_stream
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.measured_loader import LoadTimes, Machine, MeasuredLoader, choose_workers, this_machine
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.stages.streams import Streams

CHEAP = LoadTimes(alone=0.010, threads=0.002, used=0.0005)
"""Next to a GPU: an image takes 10 ms of a core, and half a millisecond of the GPU."""


class Numbers:
    """Holds numbers that take a time to load; a process that is no worker counts how many it loads."""

    def __init__(self, count: int, seconds: float = 0.0) -> None:
        self._count = count
        self._seconds = seconds

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        time.sleep(self._seconds)
        return index

    def __getitems__(self, batch: Sequence[int]) -> list[int]:
        return [self[index] for index in batch]


def batches(count: int, size: int, machine: Machine, seconds: float = 0.0) -> tuple[list[list[int]], list[int]]:
    """Returns the batches of a measured loader, and the numbers of workers that it reported."""
    chosen: list[int] = []
    loader = MeasuredLoader(Numbers(count, seconds), size, machine, chosen.append, collate_fn=torch.tensor)
    loaded = [batch.tolist() for batch in loader]
    assert len(loaded) == len(loader)
    return loaded, chosen


@pytest.mark.parametrize(
    ("images", "cores", "expected"),
    [
        (100_000, 32, 16),  # 20 would be enough
        (100_000, 8, 7),  # one is the model's
        (100_000, 2, 0),  # one process takes 10 ms an image, threads 2
        (1_000, 32, 0),  # 2.5 s of work: starting processes takes longer
    ],
)
def test_gpu_gets_as_many_workers_as_keep_it_busy(images: int, cores: int, expected: int) -> None:
    assert choose_workers(CHEAP, images, Machine(cores, busy_cores=1)) == expected


def test_no_more_workers_than_the_model_needs() -> None:
    times = LoadTimes(alone=0.010, threads=0.002, used=0.004)
    assert choose_workers(times, 100_000, Machine(32, busy_cores=1)) == 3, "they load an image in 3.3 ms"


def test_model_on_all_cores_gets_no_workers() -> None:
    times = LoadTimes(alone=0.010, threads=0.005, used=0.015)
    assert choose_workers(times, 1_000_000, Machine(2, busy_cores=2)) == 0


def test_free_cores_are_used() -> None:
    """Checks a CPU of which the model uses one core of 16, so that a single thread would load."""
    times = LoadTimes(alone=0.010, threads=0.010, used=0.020)
    assert choose_workers(times, 10_000, Machine(16, busy_cores=1)) == 1


def test_shared_memory_limits_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert choose_workers(CHEAP, 100_000, Machine(32, 1, most_workers=6)) == 6
    monkeypatch.setattr(measured_loader, "_SHARED_MEMORY", tmp_path)
    free = measured_loader.shutil.disk_usage(tmp_path).free
    usage = type(measured_loader.shutil.disk_usage(tmp_path))(free, 0, 64 * 2**20)
    monkeypatch.setattr(measured_loader.shutil, "disk_usage", lambda path: usage)
    batch = torch.zeros(10, 3, 224, 224)  # 6 MB
    assert measured_loader._room_for(([], batch, {})) == 2
    monkeypatch.setattr(measured_loader, "_SHARED_MEMORY", tmp_path / "nowhere")
    assert measured_loader._room_for(batch) == measured_loader.MAX_WORKERS


@pytest.mark.parametrize("count", [0, 1, 12, 13, 40])
def test_batches_are_those_of_one_process(count: int) -> None:
    loaded, _ = batches(count, 4, Machine(1, 1))
    images: Any = Numbers(count)
    assert loaded == [batch.tolist() for batch in DataLoader(images, batch_size=4, collate_fn=torch.tensor)]


def test_measurement_reports_its_choice(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=measured_loader.__name__):
        assert batches(12, 4, Machine(8, 1))[1] == [], "nothing is left after the measured batches"
        assert not caplog.records
        assert batches(40, 4, Machine(8, 1))[1] == [0]
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == ["workers=auto"]
    assert "0, for 28 more images" in caplog.text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")  # this machine may be small
def test_slow_images_are_loaded_by_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_loader, "START_SECONDS", 0.0)
    loaded, chosen = batches(40, 4, Machine(4, 1), seconds=0.02)
    assert loaded == [list(range(start, start + 4)) for start in range(0, 40, 4)]
    assert chosen == [3]


@pytest.mark.parametrize(
    ("content", "expected"), [("max 100000", 8), ("400000 100000", 4), ("50000 100000", 1), ("no limit at all", 8)]
)
def test_cores_of_a_container(content: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "_QUOTA", tmp_path / "cpu.max")
    assert cores.usable_cores() == 8
    (tmp_path / "cpu.max").write_text(content)
    assert cores.usable_cores() == expected


def test_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured_loader, "usable_cores", lambda: 16)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 32)
    assert this_machine(torch.device("cuda"), 4) == Machine(4, 1)
    assert this_machine(torch.device("cpu"), 2) == Machine(8, 8)
    assert this_machine(torch.device("cpu"), 32) == Machine(1, 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")
def test_measured_workers_give_the_same_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encodes without workers, with `workers=auto`, and with that where it chooses some."""
    encoder = OpenClip(str(make_encoder(tmp_path / "encoder")), precision="fp32", batch_size=2)
    dataset = Folder(str(make_image_folder(tmp_path / "pictures")))
    features: list[torch.Tensor] = []
    used: list[int | None] = []
    quiet()
    for name, workers in (("none", 0), ("auto", None), ("chosen", None)):
        if name == "chosen":
            monkeypatch.setattr(measured_loader, "choose_workers", lambda times, images, machine: 2)
        stream = real_stream(dataset, encoder, SquareCrops(), tmp_path / f"store_{name}")
        trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
        data = Streams([stream], 3, SharedViews(encoder, SquareCrops()), 2, workers)
        stages = Stages(trainer)
        stages.complete("features", FeatureExtractionStage(encoder, data), len(stream.ids), data)
        features.append(stream.features())
        used.append(stages.stage_stats[0].workers)
    assert used == [0, 0, 2]
    assert torch.equal(features[1], features[0])
    assert torch.equal(features[2], features[0])
