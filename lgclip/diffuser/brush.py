"""A pipeline in memory, ready to draw: arguments checked against its call, images checked for faults."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from lgclip.batch import Prompt
from lgclip.diffuser.base import Drawn
from lgclip.diffuser.embeddings import Texts
from lgclip.diffuser.faults import faults_of

OURS = ("prompt", "negative_prompt", "generator", "latents", "output_type", "return_dict", "num_images_per_prompt",
        "num_inference_steps", "guidance_scale", "height", "width", "callback_on_step_end",
        "callback_on_step_end_tensor_inputs")  # fmt: skip
"""Arguments of a pipeline's call that have a field of their own, or are not the user's to set."""


def arguments_of(
    pipeline: Any, settings: Mapping[str, Any], negative: str | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """Arguments of every call of a pipeline.

    Args:
        pipeline: A pipeline of diffusers.
        settings: Argument and value of each field of the config, by the field's name; a value of None
            is left to the pipeline.
        negative: The negative prompt, if there is one.
        options: Further arguments by name.

    Raises:
        ValueError: If the pipeline does not take one: what is in the key must be in the image.
    """
    kind, known = type(pipeline).__name__, inspect.signature(pipeline.__call__).parameters
    given: dict[str, Any] = {}
    for field, (value, *names) in settings.items():
        for name in names if value is not None else ():
            if name not in known:
                raise ValueError(f"diffuser.{field}={value}: {kind} takes no {name}; set it to null")
            given[name] = value
    for name, value in options.items():
        if name not in known:
            raise ValueError(f"diffuser.options.{name}={value}: {kind} takes no {name}")
        given[name] = value
    if negative is not None:
        if "negative_prompt" not in known:
            raise ValueError(f"diffuser.negative_prompt={negative!r}: {kind} takes none; set it to null")
        if "true_cfg_scale" in known and not options.get("true_cfg_scale", known["true_cfg_scale"].default) > 1:
            raise ValueError(
                f"diffuser.negative_prompt={negative!r}: {kind} uses it only with "
                "diffuser.options.true_cfg_scale above 1"
            )
    return given


class PipelineBrush:
    """Draws with a pipeline of diffusers.

    Args:
        pipeline: The pipeline, on its device.
        device: Where it runs.
        arguments: Arguments of every call.
        negative: The negative prompt, if there is one.
        noise: Seed of the noise of an attempt at a prompt.
        size: Height and width that the images must have; None takes what comes.
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
        self.pipeline, self._arguments, self._noise, self._size = pipeline, dict(arguments), noise, size
        self.texts = Texts(pipeline, device, negative, arguments)
        known = inspect.signature(pipeline.__call__).parameters
        watched = "callback_on_step_end" in known and "latents" in getattr(pipeline, "_callback_tensor_inputs", ())
        self._watched = watched

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        return self.draw(prompts, seed, [0] * len(prompts)).pixels

    def draw(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> Drawn:
        # Noise is drawn on the CPU whatever the device, one generator an image.
        seeds = [self._noise(prompt, seed, attempt) for prompt, attempt in zip(prompts, attempts, strict=True)]
        latest: dict[str, Any] = {}

        def watch(pipeline: Any, step: int, time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            latest.update(tensors)
            return {}

        watching = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": ["latents"]}
        # A safety checker casts NaN to bytes on its way, which NumPy would warn of.
        with torch.inference_mode(), np.errstate(invalid="ignore"):
            drawn = self.pipeline(
                **self._arguments,
                **self.texts([prompt.text for prompt in prompts]),
                **(watching if self._watched else {}),
                generator=[torch.Generator().manual_seed(one) for one in seeds],
                output_type="pt",
            )
            images = drawn.images
            if "latents" in latest:
                finite = torch.isfinite(latest["latents"]).flatten(1).all(dim=1).tolist()
            else:
                finite = [True] * len(prompts)
            flagged = getattr(drawn, "nsfw_content_detected", None) or [False] * len(prompts)
            faults = faults_of(images, finite, flagged)
            pixels = images.float().mul(255).round().nan_to_num().byte().permute(0, 2, 3, 1).contiguous().cpu().numpy()
        if self._size is not None and pixels.shape[1:3] != (self._size, self._size):
            height, width = pixels.shape[1:3]
            raise ValueError(
                f"diffuser.size={self._size}: {type(self.pipeline).__name__} drew {width} x {height} pixels; "
                "name a size that it can draw"
            )
        return Drawn(pixels, faults)
