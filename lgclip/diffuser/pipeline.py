"""Prompts to images: any text-to-image pipeline of diffusers, one noise a picture."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lgclip.batch import Prompt
from lgclip.diffuser.base import Brush, noise_seed
from lgclip.identity import NOT_AN_INPUT, SCHEMA, WEIGHTS, inputs_of, local_folder


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
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
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
