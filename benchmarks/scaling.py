"""More devices: `python benchmarks/scaling.py`, in five minutes on two cores (B11).

B11a is the drawing and encoding of one run by two processes with a thread each, beside one process with two threads;
the run's figures are compared first. B11b simulates 64 devices: each takes its share of the images from the loaders
that a run has, and stores a feature of each; every image must be there once. What is measured is the merge, which reads
them all and puts them in order, per image: at 16 times as many images it should be the same.
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
WORLD = 64
SIZES = (10_007, 40_009, 160_001)
"""Numbers of images, none a multiple of the number of devices."""
WIDTH, CLASSES = 512, 1000
DRAWN = 1511
ROUNDS = 3


def run(processes: int, work: Path) -> tuple[float, dict[str, Any]]:
    """Seconds of drawing and encoding in a run from nothing, and its figures."""
    work.mkdir()
    cores = len(os.sched_getaffinity(0))
    options = ["llm=template", "prompts_per_class=5", "trainer.accelerator=cpu", f"trainer.devices={processes}"]
    options += ["trainer.strategy=ddp"] if processes > 1 else []
    options += ["logger=none", f"paths.store={work / 'store'}", f"hydra.run.dir={work / 'run'}"]
    threads = {"OMP_NUM_THREADS": str(max(1, cores // processes))}
    command = [sys.executable, "evaluate.py", *options]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, env={**os.environ, **threads})
    result = json.loads((work / "run" / "result.json").read_text(encoding="utf-8"))
    spent = sum(stage["seconds"] for stage in result["stages"] if stage["stage"] in ("images", "features"))
    return spent, {name: result[name] for name in ("metrics", "baselines")}


def processes_row(work: Path) -> None:
    """B11a."""
    sides: dict[int, list[float]] = {1: [], 2: []}
    figures = []
    for turn in range(ROUNDS):
        for processes in (2, 1):
            spent, said = run(processes, work / f"{processes}-{turn}")
            sides[processes].append(spent)
            figures.append(said)
    if any(said != figures[0] for said in figures):
        raise SystemExit("two processes give other figures than one")
    save_row(
        Row(
            number="B11a",
            task="150 images drawn, they and 1,200 encoded, by 2 processes of 1 thread",
            reference="1 process of 2 threads",
            aim="",
            unit="s",
            measured=sides[2],
            baselines=sides[1],
            equality="metrics of the run and of the methods beside",
            command=COMMAND,
        )
    )


def of_rank(rank: int) -> SimpleNamespace:
    """What a share is made of: which device this is, and of how many."""
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(global_rank=rank, is_global_zero=rank == 0, world_size=WORLD, strategy=strategy)


def sharded(n: int, root: Path) -> Stream:
    """A stream whose features 64 devices have stored, each those of its share."""
    ids = [content_key({"image": number}) for number in range(n)]
    pixel = Image.new("RGB", (1, 1))
    store = FeatureStore(root, {"encoder": "none"}, {"source": "simulated"})
    stream = Stream("real", ids, [at % CLASSES for at in range(n)], ["whole"], store, lambda at: pixel)
    data = Streams([stream], CLASSES, lambda image, image_id: torch.zeros(1, 3, 1, 1), batch_size=1024)
    made: list[tuple[list[str], torch.Tensor]] = []
    for rank in range(WORLD):
        data.trainer = of_rank(rank)  # pyright: ignore[reportAttributeAccessIssue]
        (loader,) = data.predict_dataloader()
        for batch in loader:
            torch.manual_seed(len(made))
            made.append((batch.ids, normalize(torch.randn(len(batch.ids), 1, WIDTH), dim=-1)))
    taken = [name for names, _ in made for name in names]
    if sorted(taken) != sorted(ids):
        raise SystemExit(f"{n} images over {WORLD} devices: {len(taken)} were taken, {len(set(taken))} of them once")
    for names, features in made:
        store.add(names, ["whole"], features)
    place = {name: at for at, name in enumerate(ids)}
    expected = torch.empty(n, 1, WIDTH)
    expected[[place[name] for name in taken]] = torch.cat([features for _, features in made])
    if not torch.equal(stream.features(), expected):
        raise SystemExit(f"{n} images over {WORLD} devices: the merge is not what was stored")
    return stream


def merge(root: Path, stream: Stream) -> None:
    """What every device does before the evaluation: the features of all, in order."""
    store = FeatureStore(root, {"encoder": "none"}, {"source": "simulated"})
    gathered, n = FeatureCollector(CLASSES, WIDTH), len(stream.ids)
    features, labels = store.take(stream.ids, stream.views)[:, 0], torch.tensor(stream.labels)
    for rank in range(WORLD):  # as they come from the devices
        places = shard_indices(of_rank(rank), n, ROWS_PER_BATCH)  # pyright: ignore[reportArgumentType]
        share = torch.tensor(places, dtype=torch.long)
        gathered.update(features[share], labels[share], share)
    together, of = gathered.compute()
    if not (torch.equal(together, features) and torch.equal(of, labels)):
        raise SystemExit("what was gathered is not in order")


def drawing_shares() -> None:
    """Every image is generated by one device."""
    target_classes = list(Shapes().target_classes)
    prompts = [Prompt(target_classes[at % len(target_classes)], f"number {at}", 0) for at in range(DRAWN)]
    with tempfile.TemporaryDirectory() as name:
        synthetic_images = ImageGenerationStage(
            Diffuser(model="tiny:diffuser"), Path(name), target_classes, prompts, seed=0
        )
        taken: list[int] = []
        for rank in range(WORLD):
            synthetic_images._trainer = of_rank(rank)  # pyright: ignore[reportAttributeAccessIssue]
            taken += [at for batch in synthetic_images.predict_dataloader() for at in batch]
    if sorted(taken) != list(range(DRAWN)):
        raise SystemExit(f"{DRAWN} images to draw over {WORLD} devices: {len(taken)} were taken")
    print(f"{DRAWN} images to draw over {WORLD} devices: each taken once")


def shards_row(work: Path) -> None:
    """B11b."""
    each: dict[int, list[float]] = {}
    for n in SIZES:
        stream = sharded(n, work / str(n))
        taken = [measure_seconds(lambda n=n, stream=stream: merge(work / str(n), stream)) for _ in range(ROUNDS)]
        each[n] = [1e6 * one / n for one in taken]
        print(f"{n:>8,} images over {WORLD} devices: none missing or doubled, merged in {min(taken):.2f} s")
    save_row(
        Row(
            number="B11b",
            task=f"merging {SIZES[-1]:,} features of {WORLD} devices, per image",
            reference=f"{SIZES[0]:,} features, per image",
            aim="",
            unit="us",
            measured=each[SIZES[-1]],
            baselines=each[SIZES[0]],
            equality="every image taken once, every feature in its place, for each number of images",
            command=COMMAND,
            inverse=True,
        )
    )


def main() -> None:
    """Measures and saves the rows."""
    drawing_shares()
    with tempfile.TemporaryDirectory() as name:
        shards_row(Path(name))
        processes_row(Path(name))


if __name__ == "__main__":
    main()
