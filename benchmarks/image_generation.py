"""Measures image generation (B5): `python benchmarks/image_generation.py`, five minutes on two cores.

B5a and B5b use the package's small pipeline, from prompts to PNG files.

- B5a is compared with a loop over the classes that reloads the pipeline for each and generates one image at a time, as
  the official release of LGCLIP does.
- B5b is compared with the same pipeline, loaded once, called with the same batch size.
- B5c is compared with the forward passes of the U-Net and the VAE only, of a larger pipeline with random weights; these
  give no image to compare.
- B5d is the bare pipeline, compared with the loop of B5a.

The noise is the same on both sides, so the images are equal; a pixel may differ by one gray level, because another
batch size changes the rounding.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Row, alternate, measure_seconds, save_row
from staging import PreloadedDiffuser, build_stages

from lgclip.datasets.embedded import Shapes
from lgclip.datasets.image_decoding import read_image
from lgclip.diffuser.base import LoadedPipeline, SyntheticImages, noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.stages.images import CPU_IMAGES, ImageGenerationStage
from lgclip.store.keys import local_folder
from lgclip.types import Prompt, TargetClass

COMMAND = "python benchmarks/image_generation.py"
SMALL = Diffuser(  # as conf/diffuser/tiny.yaml
    model="tiny:diffuser", steps=10, guidance=3.0, size=64, batch_size=30, precision="fp32", channels_last=True
)
CLASSES = 6
IMAGES_PER_CLASS = 10
EQUALITY = "pixels of every image, within one gray level"
LARGER = {"steps": 4, "guidance": 7.5, "size": 256, "batch_size": 4, "precision": "fp32"}


def preload(diffuser: Diffuser, pipeline: LoadedPipeline) -> PreloadedDiffuser:
    """Returns a diffuser whose pipeline is already in memory."""
    return PreloadedDiffuser(pipeline, diffuser.inputs(), diffuser.batch_size, diffuser.size, diffuser.retries)


def generate(
    diffuser: Diffuser | PreloadedDiffuser, root: Path, target_classes: list[TargetClass], prompts: list[Prompt]
) -> SyntheticImages:
    """Generates the images of prompts by the stage of a run."""
    stage = ImageGenerationStage(diffuser, root, target_classes, prompts, seed=0)
    build_stages().complete("images", stage, len(prompts))
    return stage.synthetic_images()


def seed_generators(prompts: list[Prompt]) -> list[torch.Generator]:
    """Returns generators of the noise that a run uses."""
    return [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in prompts]


def generate_by_class(folder: Path, prompts: list[Prompt]) -> None:
    """Generates one image at a time, with the pipeline reloaded for every class."""
    for class_index in dict.fromkeys(prompt.class_index for prompt in prompts):
        pipeline = load_plain_pipeline()
        for index, prompt in enumerate(prompts):
            if prompt.class_index == class_index:
                images = pipeline(prompt.text, generator=seed_generators([prompt]), **build_arguments(SMALL)).images
                images[0].save(folder / f"{index}.png")


def generate_in_batches(pipeline: Any, folder: Path, prompts: list[Prompt]) -> None:
    """Generates images by a bare pipeline, with the batch size of a run."""
    for start in range(0, len(prompts), CPU_IMAGES):
        batch = prompts[start : start + CPU_IMAGES]
        images = pipeline(
            [prompt.text for prompt in batch], generator=seed_generators(batch), **build_arguments(SMALL)
        ).images
        for index, image in enumerate(images, start):
            image.save(folder / f"{index}.png")


def load_plain_pipeline() -> Any:
    """Returns the small pipeline as diffusers loads it."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(local_folder(SMALL.model)), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def build_arguments(diffuser: Diffuser) -> dict[str, Any]:
    """Returns the arguments of a pipeline's call."""
    return {
        "num_inference_steps": diffuser.steps,
        "guidance_scale": diffuser.guidance,
        "height": diffuser.size,
        "width": diffuser.size,
    }


def check_images(synthetic_images: SyntheticImages, folder: Path) -> None:
    """Checks that both sides generated the same images.

    Raises:
        SystemExit: If a pixel differs by more than one gray level.
    """
    pairs = [
        (synthetic_images.image(index), read_image(folder / f"{index}.png"))
        for index in range(len(synthetic_images.ids))
    ]
    differences = np.stack([np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)) for a, b in pairs])
    changed = (differences > 0).mean()
    print(f"{len(pairs)} images: maximum difference {differences.max()} gray levels, in {changed:.4%} of the values")
    if differences.max() > 1:
        raise SystemExit("the two sides generate different images")


def folder_factory(work: Path) -> Callable[[], Path]:
    """Returns a function that creates a new folder in each call."""
    paths = (work / str(number) for number in range(1000))

    def create_folder() -> Path:
        path = next(paths)
        path.mkdir(parents=True)
        return path

    return create_folder


def measure_class_loop(work: Path) -> None:
    """Measures B5a and B5d."""
    target_classes = list(Shapes().target_classes[:CLASSES])
    create_folder = folder_factory(work)
    prompts = [
        Prompt(s, f"a photo of a {s.name}.", repeat) for s in target_classes for repeat in range(IMAGES_PER_CLASS)
    ]
    reference_images = create_folder()
    pipeline = load_plain_pipeline()
    generate_by_class(reference_images, prompts)
    check_images(generate(SMALL, create_folder(), target_classes, prompts), reference_images)

    def measure_baseline() -> float:
        return measure_seconds(lambda: generate_by_class(create_folder(), prompts))

    seconds = alternate(
        lambda: measure_seconds(lambda: generate(SMALL, create_folder(), target_classes, prompts)),
        measure_baseline,
        rounds=3,
    )
    bare_seconds = alternate(
        lambda: measure_seconds(lambda: generate_in_batches(pipeline, create_folder(), prompts)),
        measure_baseline,
        rounds=3,
    )
    images = f"{len(prompts)} images of {CLASSES} classes"
    reference = "pipeline reloaded for every class, batch size 1"
    task = f"{images}, small pipeline, prompts to files"
    save_row(Row("B5a", task, reference, ">= 3", "s", *seconds, EQUALITY, COMMAND))
    task = f"{images}, bare pipeline in memory, batch size of lgclip"
    save_row(Row("B5d", task, reference, "", "s", *bare_seconds, "as B5a", COMMAND))


def measure_bare_pipeline(work: Path) -> None:
    """Measures B5b, with as many images as the default run generates."""
    target_classes = list(Shapes().target_classes)
    create_folder = folder_factory(work)
    prompts = [Prompt(s, f"{phrase} {s.name}.", 0) for s in target_classes for phrase in phrases()]
    pipeline = load_plain_pipeline()
    diffuser = preload(SMALL, SMALL.load(torch.device("cpu")))
    reference_images = create_folder()
    generate_in_batches(pipeline, reference_images, prompts)
    check_images(generate(diffuser, create_folder(), target_classes, prompts), reference_images)
    seconds = alternate(
        lambda: measure_seconds(lambda: generate(diffuser, create_folder(), target_classes, prompts)),
        lambda: measure_seconds(lambda: generate_in_batches(pipeline, create_folder(), prompts)),
        rounds=3,
    )
    task = f"{len(prompts)} images of {len(prompts)} prompts, small pipeline in memory, prompts to files"
    reference = f"bare pipeline, batch size {CPU_IMAGES} as in lgclip"
    save_row(Row("B5b", task, reference, ">= 1.0", "s", *seconds, EQUALITY, COMMAND))


def phrases() -> Iterator[str]:
    """Yields the beginnings of ten prompts."""
    for number in range(IMAGES_PER_CLASS):
        yield f"photo {number} of a"


def save_larger_pipeline(folder: Path) -> Diffuser:
    """Saves a Stable Diffusion pipeline with random weights, and returns its diffuser."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    torch.manual_seed(0)
    small = load_plain_pipeline()
    widths = (32, 64, 64, 64)
    parts: dict[str, Any] = {
        **small.components,
        "unet": UNet2DConditionModel(
            sample_size=32,
            block_out_channels=(96, 192, 384, 384),
            cross_attention_dim=small.text_encoder.config.hidden_size,
        ),
        "vae": AutoencoderKL(
            block_out_channels=widths,  # pyright: ignore[reportArgumentType]
            down_block_types=("DownEncoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
            up_block_types=("UpDecoderBlock2D",) * len(widths),  # pyright: ignore[reportArgumentType]
            layers_per_block=2,
            sample_size=256,
        ),
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder)
    return Diffuser(model=str(folder), **LARGER)


def run_forward_passes(pipeline: Any, diffuser: Diffuser, images: int) -> None:
    """Runs the forward passes of as many images, and nothing else."""
    unet = pipeline.unet
    vae = pipeline.vae
    size = (diffuser.size or 0) // pipeline.vae_scale_factor
    batch_size = int(diffuser.batch_size)
    with torch.inference_mode():
        for start in range(0, images, batch_size):
            n = min(batch_size, images - start)
            latents = torch.randn(n, unet.config.in_channels, size, size)
            tokens = torch.randn(2 * n, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim)
            for step in range(diffuser.steps or 0):
                unet(torch.cat([latents, latents]), step, encoder_hidden_states=tokens)
            vae.decode(latents)


def measure_larger_pipeline(work: Path) -> None:
    """Measures B5c."""
    diffuser = save_larger_pipeline(work / "larger")
    pipeline: Any = diffuser.load(torch.device("cpu"))
    preloaded = preload(diffuser, pipeline)
    target_classes = list(Shapes().target_classes[:2])
    prompts = [Prompt(s, f"a photo of a {s.name}.", r) for s in target_classes for r in range(4)]
    folders = (work / f"larger-{number}" for number in range(1000))
    seconds = alternate(
        lambda: measure_seconds(lambda: generate(preloaded, next(folders), target_classes, prompts)),
        lambda: measure_seconds(lambda: run_forward_passes(pipeline.pipeline, diffuser, len(prompts))),
        rounds=3,
    )
    parameters = sum(parameter.numel() for parameter in pipeline.pipeline.unet.parameters()) / 1e6
    task = (
        f"{len(prompts)} images of {diffuser.size} pixels, U-Net of {parameters:.0f} M parameters in memory, "
        "prompts to files"
    )
    save_row(
        Row(
            "B5c",
            task,
            "forward passes of its U-Net and VAE only",
            ">= 0.9",
            "s",
            *seconds,
            "nothing: forward passes only make no image; steps, batch size and shapes are the same",
            COMMAND,
        )
    )


def main() -> None:
    """Measures and saves the rows."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as name:
        measure_class_loop(Path(name) / "classes")
        measure_bare_pipeline(Path(name) / "prompts")
        measure_larger_pipeline(Path(name))


if __name__ == "__main__":
    main()
