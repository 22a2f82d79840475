"""Generates images with a loaded pipeline: checks its arguments against its call, and its images for faults."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lgclip.diffuser.base import GeneratedBatch
from lgclip.diffuser.image_checks import faults_of
from lgclip.diffuser.prompt_embeddings import PromptEmbeddings
from lgclip.types import Prompt

OURS = ("prompt", "negative_prompt", "generator", "latents", "output_type", "return_dict", "num_images_per_prompt",
        "num_inference_steps", "guidance_scale", "height", "width", "callback_on_step_end",
        "callback_on_step_end_tensor_inputs")  # fmt: skip
"""Arguments of a pipeline's call that have their own field, or are not configurable."""


def arguments_of(
    pipeline: Any, settings: Mapping[str, Any], negative: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of every call of a pipeline.

    Args:
        pipeline: A pipeline of diffusers.
        settings: Argument and value of each field of the config, by the field's name; a value of None
            is left to the pipeline.
        negative: The negative prompt, if there is one.
        options: Further arguments by name.

    Raises:
        ValueError: If the pipeline does not take one: everything in the key must affect the image.
    """
    kind = type(pipeline).__name__
    parameters = inspect.signature(pipeline.__call__).parameters
    arguments: dict[str, Any] = {}
    for field, (value, *names) in settings.items():
        if value is None:
            continue
        # One field may be several arguments, as `size` is the height and the width.
        for name in names:
            if name not in parameters:
                raise ValueError(f"diffuser.{field}={value}: {kind} takes no {name}; set it to null")
            arguments[name] = value
    for name, value in options.items():
        if name not in parameters:
            raise ValueError(f"diffuser.options.{name}={value}: {kind} takes no {name}")
        arguments[name] = value
    if negative is not None:
        if "negative_prompt" not in parameters:
            raise ValueError(f"diffuser.negative_prompt={negative!r}: {kind} takes none; set it to null")
        # Flux is distilled with guidance and takes a negative prompt without using it, unless real classifier-free
        # guidance is switched on by a scale above 1.
        if (
            "true_cfg_scale" in parameters
            and not options.get("true_cfg_scale", parameters["true_cfg_scale"].default) > 1
        ):
            raise ValueError(
                f"diffuser.negative_prompt={negative!r}: {kind} uses it only with "
                "diffuser.options.true_cfg_scale above 1"
            )
    return arguments


class SamplingPipeline:
    """Generates images with a pipeline of diffusers.

    Args:
        pipeline: The pipeline, on its device.
        device: Device of the pipeline.
        arguments: Arguments of every call.
        negative: The negative prompt, if there is one.
        noise: Seed of the noise of an attempt at a prompt.
        size: Required height and width of the images; None accepts any.
    """

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        arguments: Mapping[str, Any],
        negative: str | None,
        noise: Callable[[Prompt, int, int], int],
        size: int | None,
    ) -> None:
        self.pipeline = pipeline
        self._arguments = dict(arguments)
        self._noise = noise
        self._size = size
        self.texts = PromptEmbeddings(pipeline, device, negative, arguments)
        parameters = inspect.signature(pipeline.__call__).parameters
        # The latents are checked where the pipeline allows it: a decoder may turn NaN into pixels that look right.
        watched = "callback_on_step_end" in parameters and "latents" in getattr(pipeline, "_callback_tensor_inputs", ())
        self._watched = watched

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        return self.generate(prompts, seed, [0] * len(prompts)).pixels

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        # Noise is sampled on the CPU whatever the device, one generator per image: the same seed gives other numbers on
        # a GPU, and one generator for all would tie an image to its place in the batch.
        seeds = [self._noise(prompt, seed, attempt) for prompt, attempt in zip(prompts, attempts, strict=True)]
        generators = [torch.Generator().manual_seed(number) for number in seeds]
        latest: dict[str, Any] = {}

        def watch(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latest.update(tensors)
            return {}

        watching: dict[str, Any] = {}
        if self._watched:
            watching = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["latents"]}
        # A safety checker casts NaN to bytes on its way, which NumPy would warn of.
        with torch.inference_mode(), np.errstate(invalid="ignore"):
            output = self.pipeline(
                **self._arguments,
                **self.texts([prompt.text for prompt in prompts]),
                **watching,
                generator=generators,
                output_type="pt",
            )
            images = output.images
            if "latents" in latest:
                finite = torch.isfinite(latest["latents"]).flatten(1).all(dim=1).tolist()
            else:
                finite = [True] * len(prompts)
            flagged = getattr(output, "nsfw_content_detected", None) or [False] * len(prompts)
            faults = faults_of(images, finite, flagged)
            # Converted on the device, so that one byte a channel is copied and not four. NaN becomes 0: such an image
            # has a fault already, but casting NaN to a byte is undefined.
            pixels = images.float().mul(255).round().nan_to_num().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        if self._size is not None and pixels.shape[1:3] != (self._size, self._size):
            height, width = pixels.shape[1:3]
            raise ValueError(
                f"diffuser.size={self._size}: {type(self.pipeline).__name__} generated {width} x {height} pixels; "
                "name a size that it supports"
            )
        return GeneratedBatch(pixels, faults)
