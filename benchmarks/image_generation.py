"""Drawing against the ways it is usually done: `python benchmarks/image_generation.py`, in five minutes on two cores (B5).

B5a and B5b draw with the package's small pipeline, prompts to PNG files. B5a stands beside a loop over the classes
that loads the pipeline again for each and draws an image at a time, as the official release of LGCLIP does; B5b
beside the same pipeline, loaded once, called with as many at once. The noise is the same, so the images are: a pixel
may differ by one grey level, since another batch rounds otherwise. B5c stands beside the forward passes of the U-Net
and the VAE alone, of a larger pipeline with random weights; those have no image to compare. B5d is the bare
pipeline beside the loop of B5a.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from comparison import Row, alternate, measure_seconds, save_row
from staging import Loaded, stages_on

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
CLASSES, EACH = 6, 10
EQUAL = "pixels of every image, to one grey level"
LARGER = {"steps": 4, "guidance": 7.5, "size": 256, "batch_size": 4, "precision": "fp32"}


def loaded(diffuser: Diffuser, brush: LoadedPipeline) -> Loaded:
    """A diffuser whose pipeline is in memory already."""
    return Loaded(brush, diffuser.inputs(), diffuser.batch_size, diffuser.size, diffuser.retries)


def draw(
    painter: Diffuser | Loaded, root: Path, target_classes: list[TargetClass], prompts: list[Prompt]
) -> SyntheticImages:
    """Draws what is wanted as a run does."""
    synthetic_images = ImageGenerationStage(painter, root, target_classes, prompts, seed=0)
    stages_on().complete("images", synthetic_images, len(prompts))
    return synthetic_images.synthetic_images()


def generators(prompts: list[Prompt]) -> list[torch.Generator]:
    """The noise that ours uses."""
    return [torch.Generator().manual_seed(noise_seed(prompt, 0)) for prompt in prompts]


def class_by_class(folder: Path, prompts: list[Prompt]) -> None:
    """The pipeline loaded for every class, an image at a time."""
    for class_index in dict.fromkeys(prompt.class_index for prompt in prompts):
        pipeline = plain_pipeline()
        for at, prompt in enumerate(prompts):
            if prompt.class_index == class_index:
                images = pipeline(prompt.text, generator=generators([prompt]), **called(SMALL)).images
                images[0].save(folder / f"{at}.png")


def bare(pipeline: Any, folder: Path, prompts: list[Prompt]) -> None:
    """A pipeline in passes as large as ours."""
    for start in range(0, len(prompts), CPU_IMAGES):
        batch = prompts[start : start + CPU_IMAGES]
        images = pipeline([prompt.text for prompt in batch], generator=generators(batch), **called(SMALL)).images
        for at, image in enumerate(images, start):
            image.save(folder / f"{at}.png")


def plain_pipeline() -> Any:
    """The small pipeline as diffusers loads it."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    pipeline: Any = StableDiffusionPipeline.from_pretrained(str(local_folder(SMALL.model)), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def called(diffuser: Diffuser) -> dict[str, Any]:
    """What a pipeline is called with."""
    return {
        "num_inference_steps": diffuser.steps,
        "guidance_scale": diffuser.guidance,
        "height": diffuser.size,
        "width": diffuser.size,
    }


def check(synthetic_images: SyntheticImages, folder: Path) -> None:
    """Stops unless both drew the same."""
    pairs = [(synthetic_images.image(at), read_image(folder / f"{at}.png")) for at in range(len(synthetic_images.ids))]
    apart = np.stack([np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16)) for a, b in pairs])
    print(f"{len(pairs)} images: at most {apart.max()} grey levels apart, in {(apart > 0).mean():.4%} of the values")
    if apart.max() > 1:
        raise SystemExit("the two ways draw different images")


def folders(work: Path) -> Callable[[], Path]:
    """Makes a new folder whenever it is called."""
    fresh = (work / str(number) for number in range(1000))

    def folder() -> Path:
        made = next(fresh)
        made.mkdir(parents=True)
        return made

    return folder


def class_loop_rows(work: Path) -> None:
    """B5a, and B5d."""
    target_classes, folder = list(Shapes().target_classes[:CLASSES]), folders(work)
    prompts = [Prompt(s, f"a photo of a {s.name}.", repeat) for s in target_classes for repeat in range(EACH)]
    theirs, pipeline = folder(), plain_pipeline()
    class_by_class(theirs, prompts)
    check(draw(SMALL, folder(), target_classes, prompts), theirs)

    def baselines() -> float:
        return measure_seconds(lambda: class_by_class(folder(), prompts))

    a = alternate(lambda: measure_seconds(lambda: draw(SMALL, folder(), target_classes, prompts)), baselines, rounds=3)
    d = alternate(lambda: measure_seconds(lambda: bare(pipeline, folder(), prompts)), baselines, rounds=3)
    kind, against = f"{len(prompts)} images of {CLASSES} classes", "loaded for every class, batch 1"
    ours = f"{kind}, the small pipeline, prompts to files"
    save_row(Row("B5a", ours, against, ">= 3", "s", *a, EQUAL, COMMAND))
    bare_one = f"{kind}, the bare pipeline in memory, as many at once as ours"
    save_row(Row("B5d", bare_one, against, "", "s", *d, "as B5a", COMMAND))


def bare_row(work: Path) -> None:
    """B5b, of as many images as the default run draws."""
    target_classes, folder = list(Shapes().target_classes), folders(work)
    prompts = [Prompt(s, f"{how} {s.name}.", 0) for s in target_classes for how in wordings()]
    pipeline, ours, theirs = plain_pipeline(), loaded(SMALL, SMALL.load(torch.device("cpu"))), folder()
    bare(pipeline, theirs, prompts)
    check(draw(ours, folder(), target_classes, prompts), theirs)
    b = alternate(
        lambda: measure_seconds(lambda: draw(ours, folder(), target_classes, prompts)),
        lambda: measure_seconds(lambda: bare(pipeline, folder(), prompts)),
        rounds=3,
    )
    kind = f"{len(prompts)} images of as many prompts, the small pipeline in memory, prompts to files"
    save_row(Row("B5b", kind, f"the bare pipeline, {CPU_IMAGES} at once as ours", ">= 1.0", "s", *b, EQUAL, COMMAND))


def wordings() -> Iterator[str]:
    """Ten prompts of a class."""
    for number in range(EACH):
        yield f"photo {number} of a"


def larger_pipeline(folder: Path) -> Diffuser:
    """A Stable Diffusion pipeline of 40 million parameters with random weights, saved."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

    torch.manual_seed(0)
    small, widths = plain_pipeline(), (32, 64, 64, 64)
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


def forwards(pipeline: Any, diffuser: Diffuser, images: int) -> None:
    """The forward passes of as many images, and nothing else."""
    unet, vae, size = pipeline.unet, pipeline.vae, (diffuser.size or 0) // pipeline.vae_scale_factor
    at_once = int(diffuser.batch_size)
    with torch.inference_mode():
        for start in range(0, images, at_once):
            n = min(at_once, images - start)
            latents = torch.randn(n, unet.config.in_channels, size, size)
            words = torch.randn(2 * n, pipeline.tokenizer.model_max_length, unet.config.cross_attention_dim)
            for step in range(diffuser.steps or 0):
                unet(torch.cat([latents, latents]), step, encoder_hidden_states=words)
            vae.decode(latents)


def larger_row(work: Path) -> None:
    """B5c."""
    diffuser = larger_pipeline(work / "larger")
    brush: Any = diffuser.load(torch.device("cpu"))
    painter, target_classes = loaded(diffuser, brush), list(Shapes().target_classes[:2])
    prompts = [Prompt(s, f"a photo of a {s.name}.", r) for s in target_classes for r in range(4)]
    fresh = (work / f"larger-{number}" for number in range(1000))
    c = alternate(
        lambda: measure_seconds(lambda: draw(painter, next(fresh), target_classes, prompts)),
        lambda: measure_seconds(lambda: forwards(brush.pipeline, diffuser, len(prompts))),
        rounds=3,
    )
    unet = sum(parameter.numel() for parameter in brush.pipeline.unet.parameters()) / 1e6
    save_row(
        Row(
            "B5c",
            f"{len(prompts)} images of {diffuser.size} pixels, U-Net of {unet:.0f} M parameters in memory, to files",
            "its U-Net and VAE forwards alone",
            ">= 0.9",
            "s",
            *c,
            "nothing: forwards alone make no image; steps, batch and shapes are the same",
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
        class_loop_rows(Path(name) / "classes")
        bare_row(Path(name) / "prompts")
        larger_row(Path(name))


if __name__ == "__main__":
    main()
