"""Prompts to images: any text-to-image pipeline of diffusers, one noise a picture."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8

from lgclip.batch import Prompt
from lgclip.identity import NOT_AN_INPUT, SCHEMA, WEIGHTS, inputs_of, key_of, local_folder


class Brush(Protocol):
    """A diffuser that is ready to draw, its pipeline in memory."""

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        """One image a prompt."""
        ...


@dataclass(frozen=True)
class Diffuser:
    """A text-to-image pipeline that AutoPipelineForText2Image can load.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; of no use for a folder.
        steps: Denoising steps.
        guidance: Classifier-free guidance scale; 1 is none.
        size: Height and width of the images in pixels.
        negative_prompt: What not to draw.
        batch_size: Images drawn at once.

    Raises:
        ValueError: If a number is out of range or `model` names a folder that is not there.
    """

    model: str = field(metadata=WEIGHTS)
    revision: str | None = None
    steps: int = 50
    guidance: float = 7.5
    size: int = 512
    negative_prompt: str | None = None
    batch_size: int = field(default=16, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"diffuser.{name}={getattr(self, name)}: it must be at least 1")
        if self.size < 8 or self.size % 8:
            raise ValueError(f"diffuser.size={self.size}: it must be a multiple of 8 pixels")
        if not self.guidance >= 0:
            raise ValueError(f"diffuser.guidance={self.guidance}: it must be at least 0")
        local_folder(self.model)

    def inputs(self) -> dict[str, object]:
        """Everything that an image depends on besides its prompt and its noise."""
        return {"diffuser": inputs_of(self), "schema": SCHEMA}

    def load(self, device: torch.device) -> Brush:
        """The pipeline on `device`."""
        from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()  # the stage has a bar of its own
        transformers_logging.disable_progress_bar()
        pipeline: Any = AutoPipelineForText2Image.from_pretrained(
            local_folder(self.model) or self.model,
            revision=self.revision,
            dtype=torch.float32 if device.type == "cpu" else torch.bfloat16,
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)

        def draw(prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
            noises = [torch.Generator().manual_seed(noise_seed(prompt, seed)) for prompt in prompts]
            with torch.inference_mode():
                drawn = pipeline(
                    prompt=[prompt.text for prompt in prompts],
                    negative_prompt=None if self.negative_prompt is None else [self.negative_prompt] * len(prompts),
                    num_inference_steps=self.steps,
                    guidance_scale=self.guidance,
                    height=self.size,
                    width=self.size,
                    generator=noises,
                    output_type="np",
                ).images
            return (drawn * 255).round().astype("uint8")

        return draw


def noise_seed(prompt: Prompt, seed: int) -> int:
    """Seed of an image's noise: of its class, sentence, repeat and the run's seed, nothing else."""
    text = f"{seed}/{prompt.class_index}/{prompt.repeat}/{prompt.text}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def image_id(diffuser_key: str, prompt: Prompt, seed: int) -> str:
    """Content key of one synthetic image."""
    return key_of({"diffuser": diffuser_key, "seed": seed, **prompt._asdict()})


def image_prompts(texts: Sequence[Sequence[str]], prompts_per_class: int, images_per_prompt: int) -> list[Prompt]:
    """The images to draw: each class's first prompts, each `images_per_prompt` times.

    Image j of a prompt has the same noise whatever the two numbers are, so a larger set holds the
    smaller one's images.

    Args:
        texts: Sentences of each class.
        prompts_per_class: How many of them to use.
        images_per_prompt: Images of each.
    """
    wanted: list[Prompt] = []
    for class_index, sentences in enumerate(texts):
        repeats: dict[str, int] = {}
        for text in sentences[:prompts_per_class]:
            for _ in range(images_per_prompt):
                wanted.append(Prompt(class_index, text, repeats.setdefault(text, 0)))
                repeats[text] += 1
    return wanted
