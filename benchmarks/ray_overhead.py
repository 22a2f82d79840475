"""Measures the overhead of Ray (B20): `python benchmarks/ray_overhead.py`, minutes on two cores; needs `lgclip[ray]`.

Images of 2,184 classes x 50, a tenth of ImageNet-21k's 21,841 (`--full` for all), by a diffuser that takes no time, so
that only the executor and the store remain. No image may be missing.

- B20a: idle time of all workers per image, compared with 2% of the 20 ms that a fast diffusion model takes.
- B20b: growth of the driver's memory per image, compared with the pixels of one image of 64 x 64: results that travel
  through the driver would take at least that.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from comparison import Row, save_row
from lightning import Trainer

from lgclip.diffuser.base import GeneratedBatch, ImageGenerator, image_prompts
from lgclip.stages.executor import StageRun, Work
from lgclip.stages.images import ImageGenerationStage
from lgclip.stages.ray_executor import RayExecutor
from lgclip.stages.runner import StageBar, quiet
from lgclip.types import Prompt, TargetClass

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/ray_overhead.py --full"
CLASSES, PER_CLASS = 21_841, 50
IMAGE_MS, WORKERS = 20.0, 2
PIXELS = 64 * 64 * 3


@dataclass(frozen=True)
class StubDiffuser(ImageGenerator):
    """Generates the same image immediately, for any prompt."""

    key_name: ClassVar[str] = "StubDiffuser"
    needs_prompts: ClassVar[bool] = True

    batch_size: int | str = 32
    size: int | None = 64
    retries: int = 0

    def inputs(self) -> dict[str, object]:
        return {"diffuser": self.key_name}

    def load(self, device: torch.device) -> "StubDiffuser":
        return self

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        """Returns the same black and white image for each prompt."""
        pixels = np.zeros((len(prompts), 8, 8, 3), dtype=np.uint8)
        pixels[:, ::2] = 255
        return GeneratedBatch(pixels, [None] * len(prompts))

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> np.ndarray:
        return self.generate(prompts, seed, ()).pixels


def peak_memory() -> int:
    """Returns the peak resident memory of this process in bytes, without what it shares with Ray's object store."""
    text = Path("/proc/self/status").read_text(encoding="ascii")
    values = {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if line.endswith("kB")}
    return 1024 * (values["VmHWM:"] - values["RssShmem:"])


def measure(classes: int, store: Path) -> dict[str, float]:
    """Generates the images of `classes` classes, and returns time and memory."""
    quiet()
    store.mkdir(parents=True)
    names = [TargetClass(index, f"class {index}") for index in range(classes)]
    texts = [[f"a photo of a {target_class.name}"] for target_class in names]
    stage = ImageGenerationStage(StubDiffuser(), store, names, image_prompts(names, texts, 1, PER_CLASS), seed=0)
    stage.store.in_shards = True
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    executor = RayExecutor(actors=WORKERS)
    count = len(stage.prompts)
    work = Work("cpu", 1)
    try:
        executor.prepare(store)
        start = time.perf_counter()
        executor.compute(StageRun("images", stage, None, trainer, lambda: None), work)
        seconds = time.perf_counter() - start
    finally:
        executor.close()
    busy = sum(work.spent.values())
    if stage.missing():
        raise SystemExit("images are missing")
    return {"images": count, "seconds": seconds, "busy": busy, "memory": peak_memory()}


def measure_in_new_process(classes: int) -> dict[str, float]:
    """Returns the result of `measure` in a new process."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--classes", str(classes), "--store", str(Path(folder) / "store")]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": "local", "OMP_NUM_THREADS": "1"}
        process = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(process.stdout.splitlines()[-1])


def main() -> None:
    """Measures and saves the rows; with `--store` measures once and prints the result."""
    parser = argparse.ArgumentParser(description=COMMAND)
    parser.add_argument("--full", action="store_true", help="all classes, in about 15 minutes")
    parser.add_argument("--classes", type=int)
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    if options.store is not None:
        print(json.dumps(measure(options.classes, options.store)))
        return
    many = CLASSES if options.full else CLASSES // 10
    small, large = (measure_in_new_process(classes) for classes in (many // 10, many))
    for run in (small, large):
        print(", ".join(f"{name} {value:,.1f}" for name, value in run.items()), flush=True)
    overhead = 1000 * (WORKERS * large["seconds"] - large["busy"]) / large["images"]
    growth = (large["memory"] - small["memory"]) / (large["images"] - small["images"])
    print(f"overhead {overhead:.3f} ms an image, {overhead / IMAGE_MS:.2%} of {IMAGE_MS:g} ms")
    print(f"driver {large['memory'] / 1e6:.0f} MB, {growth:.0f} bytes more an image")
    images = (
        f"{large['images']:,.0f} images of a diffuser that takes no time, written to shards by {WORKERS} Ray workers"
    )
    save_row(
        Row(
            number="B20a",
            task=f"{images}: idle worker time per image, startup included",
            reference=f"{IMAGE_MS:g} ms, the time of a fast diffusion model per image",
            aim="<= 0.02",
            unit="ms",
            measured=[overhead],
            baselines=[IMAGE_MS],
            equality="no image is missing",
            command=COMMAND,
            inverse=True,
        )
    )
    save_row(
        Row(
            number="B20b",
            task=f"as B20a: growth of the driver's memory, {small['images']:,.0f} to {large['images']:,.0f} images",
            reference="pixels of a 64 x 64 image",
            aim="<= 0.1",
            unit="B per image",
            measured=[growth],
            baselines=[float(PIXELS)],
            equality="as B20a",
            command=COMMAND,
            inverse=True,
        )
    )


if __name__ == "__main__":
    main()
