"""Speed on one GPU as a share of its own: `python benchmarks/gpu.py`, in about half an hour.

Random weights do for speed, so nothing is downloaded. Measured first: what the device's matrix units reach in bf16.
Then what of that drawing and encoding reach, through the project's own code; what the files between them cost; after
how many images compilation has paid; and the sweep of 225 cells with the package's models.

`--device cpu --small` runs every part with tiny models, to see that it works. Figures are kept from a GPU alone.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from comparison import Row, measure_seconds, save_row
from gpu_models import DRAWERS, SMALL_DRAWERS, TEXT, TOWERS, Drawer, brush_of, pipeline_of, tower_of
from torch.nn.functional import normalize

from lgclip.encoder.precision import arithmetic
from lgclip.encoder.profiling import flops_of
from lgclip.stages.images import ImageGenerationStage
from lgclip.types import Prompt, TargetClass

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/gpu.py"
ROUNDS = 3
NOTHING = "nothing: random weights, speed alone"


@dataclass(frozen=True)
class Bench:
    """Where it runs, and how large.

    Attributes:
        device: A GPU, or the CPU to see that it works.
        small: Whether with tiny models.
    """

    device: torch.device
    small: bool

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def drawers(self) -> Sequence[Drawer]:
        return SMALL_DRAWERS if self.small else DRAWERS

    def timed(self, call: Callable[[], object]) -> float:
        """Seconds until the device has done it."""

        def whole() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return measure_seconds(whole)

    def times(self, call: Callable[[], object]) -> list[float]:
        """Seconds of each round, after one that does not count."""
        return [self.timed(call) for _ in range(ROUNDS + 1)][1:]

    def told(self, row: Row) -> None:
        """Keeps what a GPU measured; a CPU's figures are only shown."""
        if self.device.type == "cuda":
            save_row(row, torch.cuda.get_device_name(self.device))
        else:
            print(f"{row.number} {row.ours} | {row.against} | {row.ratio:.3g}, not kept: no GPU")


def peak(bench: Bench) -> float:
    """FLOP/s of the best of some matrix products."""
    n = 128 if bench.small else 8192
    a, b = (torch.randn(n, n, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    times = bench.times(lambda: [a @ b for _ in range(10)])
    reached = 10 * 2 * n**3 / min(times)
    print(f"bf16 matrix product of {n}: {reached / 1e12:.4g} TFLOP/s")
    return reached


def share(
    bench: Bench, number: str, what: str, aim: str, flops: float, images: int, times: list[float], most: float
) -> None:
    """One row: the FLOP/s that something reaches, beside the most that there is."""
    rate = images / statistics.median(times)
    ours = f"{what}: {rate:.3g} images/s, {flops / 1e9:.4g} GFLOPs each"
    reached = [flops * images / one / 1e12 for one in times]
    baselines = [most / 1e12] * len(reached)
    bench.told(Row(number, ours, "bf16 matrix product", aim, "TFLOP/s", reached, baselines, NOTHING, COMMAND, True))


def wanted(n: int) -> list[Prompt]:
    """Images of one prompt."""
    return [Prompt(TargetClass(0, "thing"), TEXT, repeat) for repeat in range(n)]


def flops_of_image(pipeline: Any, drawer: Drawer, device: torch.device) -> float:
    """FLOPs of one image: a step's from two runs, times the steps, and what stands around them."""

    def of(steps: int) -> int:
        brush = brush_of(pipeline, drawer, device, steps)
        brush(wanted(1), 0)  # the prompt is encoded
        return flops_of(lambda: torch.from_numpy(brush(wanted(1), 0)))

    one, two = of(1), of(2)
    return one + (drawer.steps - 1) * (two - one)


def synthetic_images(bench: Bench, most: float) -> None:
    """G1: each pipeline."""
    for place, drawer in enumerate(bench.drawers, 1):
        pipeline = pipeline_of(drawer, bench.device, bench.dtype)
        brush, flops = brush_of(pipeline, drawer, bench.device), flops_of_image(pipeline, drawer, bench.device)
        times = bench.times(lambda brush=brush, n=drawer.batch: brush(wanted(n), 0))
        what = f"drawing, {drawer.name} size, {drawer.steps} steps, {drawer.size} px, batch {drawer.batch}"
        share(bench, f"G1{'abcd'[place - 1]}", what, ">= 0.4", flops, drawer.batch, times, most)
        del pipeline, brush
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def encoding(bench: Bench, most: float) -> None:
    """G2: each tower, in the arithmetic that a run has on this device."""
    precision = "bf16" if bench.device.type == "cuda" else "fp32"
    for place, name in enumerate([None] if bench.small else TOWERS):
        model, batch = tower_of(name, bench.device), 4 if bench.small else 256
        pixels = torch.randn(batch, 3, *model.visual.image_size, device=bench.device)
        encode = encoder(model, bench.device, precision)
        flops = flops_of(lambda encode=encode, pixels=pixels: encode(pixels[:1]))
        times = bench.times(lambda encode=encode, pixels=pixels: encode(pixels))
        what = f"encoding, {name or 'small'}, {precision}, batch {batch}"
        share(bench, f"G2{'abc'[place]}", what, ">= 0.5" if name == "ViT-L-14" else "", flops, batch, times, most)


def encoder(model: Any, device: torch.device, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Pixels to unit features, as `lgclip.encoder.open_clip` does."""

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            with arithmetic(precision, device):
                features = model.encode_image(pixels.to(device))
            return normalize(features.float(), dim=-1)

    return encode


def files(bench: Bench) -> None:
    """G3: drawn, then encoded, through the image store and past it."""
    from open_clip.transform import image_transform
    from PIL import Image
    from staging import build_stages

    drawer = bench.drawers[0]
    model = tower_of(None if bench.small else "ViT-L-14", bench.device)
    encode = encoder(model, bench.device, "bf16" if bench.device.type == "cuda" else "fp32")
    see: Any = image_transform(model.visual.image_size, is_train=False)
    brush = brush_of(pipeline_of(drawer, bench.device, bench.dtype), drawer, bench.device)
    prompts = wanted(2 * drawer.batch if bench.small else 16 * drawer.batch)
    batches = [prompts[at : at + drawer.batch] for at in range(0, len(prompts), drawer.batch)]

    def encoded(images: list[Image.Image]) -> torch.Tensor:
        rows = range(0, len(images), 64)
        return torch.cat([encode(torch.stack([see(one) for one in images[at : at + 64]])) for at in rows])

    def past() -> torch.Tensor:
        return encoded([Image.fromarray(one) for batch in batches for one in brush(batch, 0)])

    def through(root: Path) -> torch.Tensor:
        stage = ImageGenerationStage(
            Loaded(brush, {"benchmark": "gpu"}, drawer.batch), root, [TargetClass(0, "thing")], prompts, 0
        )
        build_stages("gpu" if bench.device.type == "cuda" else "cpu").complete("images", stage, len(prompts))
        synthetic_images = stage.synthetic_images()
        return encoded([synthetic_images.image(at) for at in range(len(synthetic_images.ids))])

    with tempfile.TemporaryDirectory() as name:
        fresh = (Path(name) / str(number) for number in range(100))
        try:
            apart = (through(next(fresh)) - past()).abs().max().item()
        except ValueError as error:  # random weights may draw what no run keeps
            raise SystemExit(f"draw -> encode cannot be measured: {error}") from error
        if apart > 1e-2:  # a pass of another size makes a grey level of the last bit here and there
            raise SystemExit(f"images of files have other features: {apart}")
        with_files = bench.times(lambda: through(next(fresh)))
        without = bench.times(past)
    what = f"{len(prompts)} images, {drawer.name} size, drawn, kept as files and encoded"
    equal = f"features, at most {apart:.1g} apart"
    bench.told(Row("G3", what, "the same without files", "", "s", with_files, without, equal, COMMAND))


def compiling(bench: Bench) -> None:
    """G4: an image with compiled blocks, and how many it takes until the compilation has paid."""
    drawer = replace(bench.drawers[0], steps=bench.drawers[0].steps if bench.small else 20)
    pipeline = pipeline_of(drawer, bench.device, bench.dtype)
    brush, prompts = brush_of(pipeline, drawer, bench.device), wanted(drawer.batch)
    plain = [one / len(prompts) for one in bench.times(lambda: brush(prompts, 0))]
    # Inductor needs a compiler, which the machine that only sees that this works may lack.
    pipeline.unet.compile_repeated_blocks(**({"backend": "eager"} if bench.small else {}))
    spent = bench.timed(lambda: brush(prompts, 0))
    compiled = [one / len(prompts) for one in bench.times(lambda: brush(prompts, 0))]
    gain = statistics.median(plain) - statistics.median(compiled)
    paid = f"{spent / gain:.0f} images" if gain > 0 else "never"
    what = f"an image, {drawer.name} size, {drawer.steps} steps, compiled in {spent:.0f} s, paid back after {paid}"
    bench.told(Row("G4", what, "not compiled", "", "s", compiled, plain, NOTHING, COMMAND))


def grid(bench: Bench) -> None:
    """G5: a sweep with the package's models, from nothing and with everything stored."""
    counts, scales, rules = "1,2", "single", "mean"
    if not bench.small:
        counts, rules = ",".join(map(str, range(1, 16))), "mean,mean_similarity,nearest"
        scales = "single,multi,ten,official_code,paper"
    swept = [f"prompts_per_class={counts}", f"scales={scales}", f"prototype={rules}"]
    where = ["trainer.accelerator=gpu" if bench.device.type == "cuda" else "trainer.accelerator=cpu", "logger=none"]
    small = ["dataset=digits", "llm=template", "diffuser.steps=1"] if bench.small else []
    with tempfile.TemporaryDirectory() as name:

        def sweep(folder: str) -> float:
            places = [f"paths.store={name}/store", f"hydra.sweep.dir={name}/{folder}"]
            command = [sys.executable, "evaluate.py", "-m", *swept, *where, *small, *places]
            return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))

        nothing, stored = sweep("cold"), sweep("warm")
        cells = len(list(Path(name, "warm").glob("*/result.json")))
    what = f"sweep of {cells} cells, the package's models, all stored"
    bench.told(Row("G5", what, "nothing stored", "", "s", [stored], [nothing], "nothing", COMMAND))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    parser.add_argument("--small", action="store_true", help="tiny models, to see that every part works")
    given = parser.parse_args(arguments)
    if given.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here; --device cpu --small shows that every part works", file=sys.stderr)
        return 1
    if given.device == "cpu" and not given.small:
        print("error: models of full size need a GPU; add --small", file=sys.stderr)
        return 1
    bench = Bench(torch.device(given.device), given.small)
    most = peak(bench)
    synthetic_images(bench, most)
    encoding(bench, most)
    files(bench)
    compiling(bench)
    grid(bench)
    return 0


if __name__ == "__main__":
    sys.exit(main())
