"""Measures scaling to more devices (B11): `python benchmarks/scaling.py`, five minutes on two cores.

- B11a: image generation and encoding of a run by two processes with one thread each, compared with one process with two
  threads. The metrics of the runs are compared first.
- B11b: 64 simulated devices. Each takes its shard of the images from the loaders of a run, and stores one feature per
  image; every image must be stored once. Measured is the merge, which reads all features and puts them in order: its
  time per image should be the same for 16 times as many images.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from comparison import Row, measure_seconds, save_row
from PIL import Image
from torch.nn.functional import normalize

from lgclip.datasets.embedded import Shapes
from lgclip.diffuser.pipeline import Diffuser
from lgclip.methods.feature_collector import FeatureCollector
from lgclip.runtime.devices import shard_indices
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.streams import ROWS_PER_BATCH, Stream, Streams
from lgclip.store.features import FeatureStore
from lgclip.store.keys import content_key
from lgclip.types import Prompt

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/scaling.py"
DEVICES = 64
"""Number of simulated devices."""

SIZES = (10_007, 40_009, 160_001)
"""Numbers of images, none a multiple of the number of devices."""

WIDTH, CLASSES = 512, 1000
GENERATED = 1511
"""Number of generated images whose sharding is checked."""

ROUNDS = 3


def run(processes: int, work: Path) -> tuple[float, dict[str, Any]]:
    """Runs from an empty store; returns the seconds of image generation and encoding, and the metrics."""
    work.mkdir()
    cores = len(os.sched_getaffinity(0))
    options = ["llm=template", "prompts_per_class=5", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    options += ["trainer.strategy=ddp"] if processes > 1 else []
    options += ["logger=none", f"paths.store={work / 'store'}", f"hydra.run.dir={work / 'run'}"]
    threads = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    command = [sys.executable, "evaluate.py", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **threads})
    result = json.loads((work / "run" / "result.json").read_text(encoding="utf-8"))
    elapsed = sum(stage["seconds"] for stage in result["stages"] if stage["stage"] in ("images", "features"))
    return elapsed, {name: result[name] for name in ("metrics", "baselines")}


def measure_processes(work: Path) -> None:
    """Measures B11a."""
    times: dict[int, list[float]] = {1: [], 2: []}
    metrics = []
    for turn in range(ROUNDS):
        for processes in (2, 1):
            elapsed, values = run(processes, work / f"{processes}-{turn}")
            times[processes].append(elapsed)
            metrics.append(values)
    if any(values != metrics[0] for values in metrics):
        raise SystemExit("metrics of two processes differ from those of one")
    save_row(
        Row(
            number="B11a",
            task="150 images generated, these and 1,200 real ones encoded, by 2 processes of 1 thread",
            reference="1 process of 2 threads",
            aim="",
            unit="s",
            measured=times[2],
            baselines=times[1],
            equality="metrics of the run and its baselines",
            command=COMMAND,
        )
    )


def simulate_trainer(rank: int) -> SimpleNamespace:
    """Returns the attributes of a trainer that sharding reads: the rank and the number of devices."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, is_global_zero=rank == 0, world_size=DEVICES, strategy=strategy)


def store_shards(count: int, root: Path) -> Stream:
    """Returns a stream of `count` features, stored by the simulated devices, each for its shard.

    Raises:
        SystemExit: If an image is missing, stored twice, or not at its index.
    """
    ids = [content_key({"image": number}) for number in range(count)]
    pixel = Image.new("RGB", (1, 1))
    store = FeatureStore(root, {"encoder": "none"}, {"source": "simulated"})
    stream = Stream("real", ids, [index % CLASSES for index in range(count)], ["full"], store, lambda index: pixel)
    data = Streams([stream], CLASSES, lambda image, image_id: torch.zeros(1, 3, 1, 1), batch_size=1024)
    shards: list[tuple[list[str], torch.Tensor]] = []
    for rank in range(DEVICES):
        data.trainer = simulate_trainer(rank)  # pyright: ignore[reportAttributeAccessIssue]
        (loader,) = data.predict_dataloader()
        for batch in loader:
            torch.manual_seed(len(shards))
            shards.append((batch.ids, normalize(torch.randn(len(batch.ids), 1, WIDTH), dim=-1)))
    loaded = [name for names, _ in shards for name in names]
    if sorted(loaded) != sorted(ids):
        raise SystemExit(
            f"{count} images over {DEVICES} devices: {len(loaded)} were loaded, {len(set(loaded))} different ones"
        )
    for names, features in shards:
        store.add(names, ["full"], features)
    indices = {name: index for index, name in enumerate(ids)}
    expected = torch.empty(count, 1, WIDTH)
    expected[[indices[name] for name in loaded]] = torch.cat([features for _, features in shards])
    if not torch.equal(stream.features(), expected):
        raise SystemExit(f"{count} images over {DEVICES} devices: the merge differs from the stored features")
    return stream


def merge(root: Path, stream: Stream) -> None:
    """Merges the features of all devices in order, as every device does before the evaluation."""
    store = FeatureStore(root, {"encoder": "none"}, {"source": "simulated"})
    collector = FeatureCollector(CLASSES, WIDTH)
    features = store.take(stream.ids, stream.views)[:, 0]
    labels = torch.tensor(stream.labels)
    for rank in range(DEVICES):  # in the order in which devices send them
        shard = shard_indices(simulate_trainer(rank), len(stream.ids), ROWS_PER_BATCH)  # pyright: ignore[reportArgumentType]
        indices = torch.tensor(shard, dtype=torch.long)
        collector.update(features[indices], labels[indices], indices)
    merged_features, merged_labels = collector.compute()
    if not (torch.equal(merged_features, features) and torch.equal(merged_labels, labels)):
        raise SystemExit("the merged features are not in order")


def check_generation_shards() -> None:
    """Checks that every image is generated by exactly one device.

    Raises:
        SystemExit: If an image is missing or generated twice.
    """
    target_classes = list(Shapes().target_classes)
    prompts = [Prompt(target_classes[index % len(target_classes)], f"number {index}", 0) for index in range(GENERATED)]
    with tempfile.TemporaryDirectory() as name:
        stage = ImageGenerationStage(Diffuser(model="tiny:diffuser"), Path(name), target_classes, prompts, seed=0)
        assigned: list[int] = []
        for rank in range(DEVICES):
            stage._trainer = simulate_trainer(rank)  # pyright: ignore[reportAttributeAccessIssue]
            assigned += [index for batch in stage.predict_dataloader() for index in batch]
    if sorted(assigned) != list(range(GENERATED)):
        raise SystemExit(f"{GENERATED} images to generate over {DEVICES} devices: {len(assigned)} were assigned")
    print(f"{GENERATED} images to generate over {DEVICES} devices: each assigned once")


def measure_merge(work: Path) -> None:
    """Measures B11b."""
    microseconds: dict[int, list[float]] = {}
    for n in SIZES:
        stream = store_shards(n, work / str(n))
        times = [measure_seconds(lambda n=n, stream=stream: merge(work / str(n), stream)) for _ in range(ROUNDS)]
        microseconds[n] = [1e6 * elapsed / n for elapsed in times]
        print(f"{n:>8,} images over {DEVICES} devices: none missing or duplicated, merged in {min(times):.2f} s")
    save_row(
        Row(
            number="B11b",
            task=f"merging {SIZES[-1]:,} features of {DEVICES} devices, per image",
            reference=f"{SIZES[0]:,} features, per image",
            aim="",
            unit="us",
            measured=microseconds[SIZES[-1]],
            baselines=microseconds[SIZES[0]],
            equality="each image assigned once, each feature at its index, for every number of images",
            command=COMMAND,
            inverse=True,
        )
    )


def main() -> None:
    """Measures and saves the rows."""
    check_generation_shards()
    with tempfile.TemporaryDirectory() as name:
        measure_merge(Path(name))
        measure_processes(Path(name))


if __name__ == "__main__":
    main()
