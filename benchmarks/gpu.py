"""Measures how much of one GPU's speed lgclip reaches: `python benchmarks/gpu.py`, about half an hour.

Random weights are enough to measure speed, so nothing is downloaded. First measures the FLOP/s of bf16 matrix products,
then the fraction of it that image generation (G1) and encoding (G2) reach with the project's code; the cost of the
files between both (G3); after how many images compilation pays off (G4); and the sweep of 225 cells with the package's
models (G5).

`--device cpu --small` runs every part with tiny models as a smoke test. Rows are saved only if measured on a GPU.
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
from gpu_models import (
    PIPELINES,
    SMALL_PIPELINES,
    TEXT,
    TOWERS,
    PipelineConfig,
    build_pipeline,
    build_sampler,
    build_tower,
)
from torch.nn.functional import normalize

from lgclip.encoder.precision import arithmetic
from lgclip.encoder.profiling import flops_of
from lgclip.stages.images import ImageGenerationStage
from lgclip.types import Prompt, TargetClass

ROOT = Path(__file__).resolve().parent.parent
COMMAND = "python benchmarks/gpu.py"
ROUNDS = 3
NO_CHECK = "nothing: random weights, speed only"


@dataclass(frozen=True)
class Setup:
    """Holds the device and the size of the models.

    Attributes:
        device: A GPU, or the CPU for a smoke test.
        small: Whether the models are tiny.
    """

    device: torch.device
    small: bool

    @property
    def dtype(self) -> torch.dtype:
        """Returns the precision of the pipelines."""
        return torch.bfloat16 if self.device.type == "cuda" else torch.float32

    @property
    def pipelines(self) -> Sequence[PipelineConfig]:
        """Returns the pipelines that are measured."""
        return SMALL_PIPELINES if self.small else PIPELINES

    def measure(self, call: Callable[[], object]) -> float:
        """Returns the seconds of a call until the device has finished."""

        def call_and_wait() -> None:
            call()
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)

        return measure_seconds(call_and_wait)

    def measure_rounds(self, call: Callable[[], object]) -> list[float]:
        """Returns the seconds of each round, after one of warm-up."""
        return [self.measure(call) for _ in range(ROUNDS + 1)][1:]

    def save_row(self, row: Row) -> None:
        """Saves a row that a GPU measured; rows of a CPU are only printed."""
        if self.device.type == "cuda":
            save_row(row, torch.cuda.get_device_name(self.device))
        else:
            print(f"{row.number} {row.task} | {row.reference} | {row.ratio:.3g}, not saved: no GPU")


def measure_peak(setup: Setup) -> float:
    """Returns the FLOP/s of the fastest of several matrix products."""
    n = 128 if setup.small else 8192
    a, b = (torch.randn(n, n, device=setup.device, dtype=torch.bfloat16) for _ in range(2))
    times = setup.measure_rounds(lambda: [a @ b for _ in range(10)])
    flops_per_second = 10 * 2 * n**3 / min(times)
    print(f"bf16 matrix product of {n}: {flops_per_second / 1e12:.4g} TFLOP/s")
    return flops_per_second


@dataclass(frozen=True)
class Throughput:
    """Holds the measurements of image generation or encoding.

    Attributes:
        task: Description for the table.
        flops: FLOPs of one image.
        images: Number of images of a round.
        seconds: Seconds of each round.
    """

    task: str
    flops: float
    images: int
    seconds: list[float]


def save_utilization(setup: Setup, number: str, aim: str, throughput: Throughput, peak: float) -> None:
    """Saves the row that compares the FLOP/s of a task with the peak."""
    rate = throughput.images / statistics.median(throughput.seconds)
    task = f"{throughput.task}: {rate:.3g} images/s, {throughput.flops / 1e9:.4g} GFLOPs each"
    measured = [throughput.flops * throughput.images / seconds / 1e12 for seconds in throughput.seconds]
    peaks = [peak / 1e12] * len(measured)
    setup.save_row(Row(number, task, "bf16 matrix product", aim, "TFLOP/s", measured, peaks, NO_CHECK, COMMAND, True))


def build_prompts(n: int) -> list[Prompt]:
    """Returns the prompts of `n` images of one class."""
    return [Prompt(TargetClass(0, "thing"), TEXT, repeat) for repeat in range(n)]


def count_image_flops(pipeline: Any, config: PipelineConfig, device: torch.device) -> float:
    """Returns the FLOPs of one image, extrapolated from one and two denoising steps."""

    def count_flops(steps: int) -> int:
        sampler = build_sampler(pipeline, config, device, steps)
        sampler(build_prompts(1), 0)  # encodes the prompt, which is not counted
        return flops_of(lambda: torch.from_numpy(sampler(build_prompts(1), 0)))

    one_step = count_flops(1)
    two_steps = count_flops(2)
    return one_step + (config.steps - 1) * (two_steps - one_step)


def measure_generation(setup: Setup, peak: float) -> None:
    """Measures G1: each pipeline."""
    for letter, config in zip("abcd", setup.pipelines, strict=False):
        pipeline = build_pipeline(config, setup.device, setup.dtype)
        sampler = build_sampler(pipeline, config, setup.device)
        flops = count_image_flops(pipeline, config, setup.device)
        times = setup.measure_rounds(lambda sampler=sampler, n=config.batch: sampler(build_prompts(n), 0))
        task = f"generation, {config.name} size, {config.steps} steps, {config.size} px, batch {config.batch}"
        save_utilization(setup, f"G1{letter}", ">= 0.4", Throughput(task, flops, config.batch, times), peak)
        del pipeline, sampler
        if setup.device.type == "cuda":
            torch.cuda.empty_cache()


def measure_encoding(setup: Setup, peak: float) -> None:
    """Measures G2: each tower, in the precision of a run on this device."""
    precision = "bf16" if setup.device.type == "cuda" else "fp32"
    for letter, name in zip("abc", [None] if setup.small else TOWERS, strict=False):
        model = build_tower(name, setup.device)
        batch = 4 if setup.small else 256
        pixels = torch.randn(batch, 3, *model.visual.image_size, device=setup.device)
        encode = build_encoder(model, setup.device, precision)
        flops = flops_of(lambda encode=encode, pixels=pixels: encode(pixels[:1]))
        times = setup.measure_rounds(lambda encode=encode, pixels=pixels: encode(pixels))
        task = f"encoding, {name or 'small'}, {precision}, batch {batch}"
        aim = ">= 0.5" if name == "ViT-L-14" else ""
        save_utilization(setup, f"G2{letter}", aim, Throughput(task, flops, batch, times), peak)


def build_encoder(model: Any, device: torch.device, precision: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a function from pixels to unit features, as in `lgclip.encoder.open_clip`."""

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            with arithmetic(precision, device):
                features = model.encode_image(pixels.to(device))
            return normalize(features.float(), dim=-1)

    return encode


def measure_files(setup: Setup) -> None:
    """Measures G3: images are generated and encoded, with and without the image store.

    Raises:
        SystemExit: If the random weights generate an image that a run rejects, or the features differ.
    """
    from open_clip.transform import image_transform
    from PIL import Image
    from staging import PreloadedDiffuser, build_stages

    config = setup.pipelines[0]
    model = build_tower(None if setup.small else "ViT-L-14", setup.device)
    encode = build_encoder(model, setup.device, "bf16" if setup.device.type == "cuda" else "fp32")
    transform: Any = image_transform(model.visual.image_size, is_train=False)
    sampler = build_sampler(build_pipeline(config, setup.device, setup.dtype), config, setup.device)
    prompts = build_prompts(2 * config.batch if setup.small else 16 * config.batch)
    batches = [prompts[start : start + config.batch] for start in range(0, len(prompts), config.batch)]

    def encode_images(images: list[Image.Image]) -> torch.Tensor:
        parts = [images[start : start + 64] for start in range(0, len(images), 64)]
        return torch.cat([encode(torch.stack([transform(image) for image in part])) for part in parts])

    def run_without_files() -> torch.Tensor:
        return encode_images([Image.fromarray(pixels) for batch in batches for pixels in sampler(batch, 0)])

    def run_with_files(root: Path) -> torch.Tensor:
        stage = ImageGenerationStage(
            PreloadedDiffuser(sampler, {"benchmark": "gpu"}, config.batch), root, [TargetClass(0, "thing")], prompts, 0
        )
        build_stages("gpu" if setup.device.type == "cuda" else "cpu").complete("images", stage, len(prompts))
        synthetic_images = stage.synthetic_images()
        return encode_images([synthetic_images.image(index) for index in range(len(synthetic_images.ids))])

    with tempfile.TemporaryDirectory() as name:
        roots = (Path(name) / str(number) for number in range(100))
        try:
            difference = (run_with_files(next(roots)) - run_without_files()).abs().max().item()
        except ValueError as error:  # random weights may generate an image that a run rejects
            raise SystemExit(f"generation with encoding cannot be measured: {error}") from error
        if difference > 1e-2:  # another batch size changes a few pixels by one gray level
            raise SystemExit(f"features with and without files differ by up to {difference}")
        with_files = setup.measure_rounds(lambda: run_with_files(next(roots)))
        without = setup.measure_rounds(run_without_files)
    task = f"{len(prompts)} images, {config.name} size, generated, stored as files and encoded"
    equality = f"features, maximum difference {difference:.1g}"
    setup.save_row(Row("G3", task, "the same without files", "", "s", with_files, without, equality, COMMAND))


def measure_compilation(setup: Setup) -> None:
    """Measures G4: time per image with compiled blocks, and the number of images until compilation pays off."""
    config = setup.pipelines[0]
    if not setup.small:
        config = replace(config, steps=20)
    pipeline = build_pipeline(config, setup.device, setup.dtype)
    sampler = build_sampler(pipeline, config, setup.device)
    prompts = build_prompts(config.batch)
    plain = [seconds / len(prompts) for seconds in setup.measure_rounds(lambda: sampler(prompts, 0))]
    # Inductor needs a C++ compiler, which a machine for a smoke test may lack.
    pipeline.unet.compile_repeated_blocks(**({"backend": "eager"} if setup.small else {}))
    compile_seconds = setup.measure(lambda: sampler(prompts, 0))
    compiled = [seconds / len(prompts) for seconds in setup.measure_rounds(lambda: sampler(prompts, 0))]
    gain = statistics.median(plain) - statistics.median(compiled)
    break_even = f"after {compile_seconds / gain:.0f} images" if gain > 0 else "never"
    task = (
        f"one image, {config.name} size, {config.steps} steps, compiled in {compile_seconds:.0f} s, "
        f"pays off {break_even}"
    )
    setup.save_row(Row("G4", task, "not compiled", "", "s", compiled, plain, NO_CHECK, COMMAND))


def measure_sweep(setup: Setup) -> None:
    """Measures G5: a sweep with the package's models, from an empty store and with everything stored."""
    counts, scales, rules = "1,2", "single", "mean"
    if not setup.small:
        counts, rules = ",".join(map(str, range(1, 16))), "mean,mean_similarity,nearest"
        scales = "single,multi,ten,official_code,paper"
    sweep_overrides = [f"prompts_per_class={counts}", f"scales={scales}", f"prototype={rules}"]
    trainer = ["trainer.accelerator=gpu" if setup.device.type == "cuda" else "trainer.accelerator=cpu", "logger=none"]
    small = ["dataset=digits", "llm=template", "diffuser.steps=1"] if setup.small else []
    with tempfile.TemporaryDirectory() as name:

        def run_sweep(folder: str) -> float:
            folders = [f"paths.store={name}/store", f"hydra.sweep.dir={name}/{folder}"]
            command = [sys.executable, "evaluate.py", "-m", *sweep_overrides, *trainer, *small, *folders]
            return measure_seconds(lambda: subprocess.run(command, cwd=ROOT, check=True, capture_output=True))

        cold = run_sweep("cold")
        warm = run_sweep("warm")
        cells = len(list(Path(name, "warm").glob("*/result.json")))
    task = f"sweep of {cells} cells, the package's models, all stored"
    setup.save_row(Row("G5", task, "nothing stored", "", "s", [warm], [cold], "nothing", COMMAND))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs every part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="where to run")
    parser.add_argument("--small", action="store_true", help="tiny models, as a smoke test of every part")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device here; --device cpu --small shows that every part works", file=sys.stderr)
        return 1
    if options.device == "cpu" and not options.small:
        print("error: models of full size need a GPU; add --small", file=sys.stderr)
        return 1
    setup = Setup(torch.device(options.device), options.small)
    peak = measure_peak(setup)
    measure_generation(setup, peak)
    measure_encoding(setup, peak)
    measure_files(setup)
    measure_compilation(setup)
    measure_sweep(setup)
    return 0


if __name__ == "__main__":
    sys.exit(main())
