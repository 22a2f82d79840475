"""Computes the text embeddings of a pipeline, once per distinct prompt."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any

import torch

MAX_CACHED = 256
"""Size of the LRU cache of prompt embeddings on the device: about 1 MB each for SDXL, 4 MB for Flux."""

_CLIP = ("prompt_embeds", "negative_prompt_embeds")
_POOLED = (*_CLIP, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
_MASKED = ("prompt_embeds", "prompt_attention_mask", "negative_prompt_embeds", "negative_prompt_attention_mask")
RETURNS: dict[str, tuple[str | None, ...]] = {
    "StableDiffusionPipeline": _CLIP,
    "StableDiffusionXLPipeline": _POOLED,
    "StableDiffusion3Pipeline": _POOLED,
    "FluxPipeline": ("prompt_embeds", "pooled_prompt_embeds", None),
    "Flux2KleinPipeline": ("prompt_embeds", None),
    "SanaPipeline": _MASKED,
    "SanaSprintPipeline": ("prompt_embeds", "prompt_attention_mask"),
    "PixArtAlphaPipeline": _MASKED,
    "PixArtSigmaPipeline": _MASKED,
    "ZImagePipeline": _CLIP,
}
"""For each pipeline, the arguments of its call that take the outputs of its `encode_prompt`, in order; None
for outputs that the call computes itself. Other pipelines get plain prompts: equally correct, only slower
where a prompt has many images."""


class PromptEmbeddings:
    """Provides the prompts of a batch as arguments of a pipeline's call.

    Each prompt is encoded alone, so that its embedding does not depend on its batch. The embedding of
    the negative prompt is the same for all and is computed once.

    Args:
        pipeline: A pipeline of diffusers.
        device: Device of the pipeline.
        negative: The negative prompt, if there is one.
        options: Further arguments of the pipeline's call; those of `encode_prompt` are used here.
    """

    def __init__(
        self, pipeline: Any, device: torch.device, negative: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._pipeline = pipeline
        self._device = device
        self._negative = negative
        self._names = RETURNS.get(type(pipeline).__name__)
        self._call_parameters = inspect.signature(pipeline.__call__).parameters
        self._shared: dict[str, Any] = {}
        self._cached: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.encoded = 0
        if self._names:
            self._encode_parameters = inspect.signature(pipeline.encode_prompt).parameters
            # The call's own defaults, which differ from those of `encode_prompt` for some pipelines.
            shared = {name: p.default for name, p in self._call_parameters.items() if name in self._encode_parameters}
            self._arguments = {name: (options or {}).get(name, default) for name, default in shared.items()}

    def __call__(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Returns the arguments for one image of each prompt."""
        arguments: dict[str, Any] = {}
        if not self._names:
            arguments["prompt"] = list(prompts)
            if self._negative is not None:
                arguments["negative_prompt"] = [self._negative] * len(prompts)
            return arguments
        rows = {prompt: self._row(prompt) for prompt in dict.fromkeys(prompts)}
        # Only now, since a new prompt could otherwise push out one that is needed later in the same batch.
        while len(self._cached) > MAX_CACHED:
            self._cached.popitem(last=False)
        # The default of some pipelines is "", which they refuse together with its embeddings.
        if self._shared and "negative_prompt" in self._call_parameters:
            arguments["negative_prompt"] = None
        for name in (*rows[prompts[0]], *self._shared):
            values = [self._shared.get(name, rows[prompt].get(name)) for prompt in prompts]
            arguments[name] = _stacked(values)
        return arguments

    def _row(self, prompt: str) -> dict[str, Any]:
        if prompt in self._cached:
            self._cached.move_to_end(prompt)
        else:
            # `encode_prompt` encodes the negative prompt each time it is asked to; once is enough.
            first = not self._cached and not self._shared
            encoded = self._encode(prompt, self._negative, negatives=first)
            if first:
                self._shared = {name: value for name, value in encoded.items() if name.startswith("negative_")}
                self._shared |= self._apart()
            self._cached[prompt] = {name: v for name, v in encoded.items() if not name.startswith("negative_")}
        return self._cached[prompt]

    def _apart(self) -> dict[str, Any]:
        """Encodes the negative prompt like any other, for pipelines whose `encode_prompt` does not take one."""
        if "negative_prompt" in self._encode_parameters or "negative_prompt_embeds" not in self._call_parameters:
            return {}
        if "negative_prompt" in self._call_parameters and self._negative is None:
            return {}  # the pipeline then guides by nothing
        encoded = self._encode(self._negative or "", None, negatives=False)
        return {
            f"negative_{name}": value for name, value in encoded.items() if f"negative_{name}" in self._call_parameters
        }

    def _encode(self, prompt: str, negative: str | None, *, negatives: bool) -> dict[str, Any]:
        assert self._names is not None
        self.encoded += 1
        arguments = {**self._arguments, "prompt": [prompt], "device": self._device}
        if negative is not None and "negative_prompt" in self._encode_parameters:
            arguments["negative_prompt"] = [negative]
        if "do_classifier_free_guidance" in self._encode_parameters:
            arguments["do_classifier_free_guidance"] = negatives
        returned = self._pipeline.encode_prompt(**arguments)
        named = zip(self._names, returned, strict=True)
        # Without guidance some pipelines return None for the negative prompt, others an empty list.
        return {name: value for name, value in named if name is not None and value is not None and len(value)}


def _stacked(rows: Sequence[Any]) -> Any:
    """Returns one row per prompt: a list if their lengths differ, a tensor otherwise."""
    if isinstance(rows[0], list):
        return list(chain.from_iterable(rows))
    return torch.cat(list(rows))
