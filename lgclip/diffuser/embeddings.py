"""What a pipeline's text encoders make of each prompt, computed once per distinct prompt."""

import inspect
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch

KEPT = 256
"""Prompts whose embeddings stay on the device, the least recently used leaving first: about 1 MB
each for SDXL, 4 MB for Flux."""

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
    "PixArtAlphaPipeline": _MASKED,
    "PixArtSigmaPipeline": _MASKED,
    "ZImagePipeline": _CLIP,
}
"""By pipeline: the names under which its call takes what its `encode_prompt` returns, in order; None
for what the call works out itself. A pipeline that is not here is given plain prompts: correct all
the same, only slower where a prompt is drawn many times."""


class Texts:
    """The prompts of a batch as arguments of a pipeline's call.

    A prompt is encoded alone, so that its embedding does not depend on its batch. What stands for
    the negative prompt is the same for all and is encoded once.

    Args:
        pipeline: A pipeline of diffusers.
        device: Where it runs.
        negative: The negative prompt, if there is one.
        options: Further arguments of the pipeline's call; those that `encode_prompt` takes count here.
    """

    def __init__(
        self, pipeline: Any, device: torch.device, negative: str | None = None, options: Mapping[str, Any] | None = None
    ) -> None:
        self._pipeline, self._device, self._negative = pipeline, device, negative
        self._names = RETURNS.get(type(pipeline).__name__)
        self._call = inspect.signature(pipeline.__call__).parameters
        self._shared: dict[str, Any] = {}
        self._kept: OrderedDict[str, dict[str, Any]] = OrderedDict()
        self.encoded = 0
        if self._names:
            self._takes = inspect.signature(pipeline.encode_prompt).parameters
            # The call's own defaults, which differ from those of `encode_prompt` for some pipelines.
            shared = {name: p.default for name, p in self._call.items() if name in self._takes}
            self._arguments = {name: (options or {}).get(name, default) for name, default in shared.items()}

    def __call__(self, prompts: Sequence[str]) -> dict[str, Any]:
        """Arguments for one image of each prompt."""
        if not self._names:
            negative = {} if self._negative is None else {"negative_prompt": [self._negative] * len(prompts)}
            return {"prompt": list(prompts), **negative}
        rows = {prompt: self._row(prompt) for prompt in dict.fromkeys(prompts)}
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
        # The default of some pipelines is "", which may not stand beside its own embeddings.
        unsaid = {"negative_prompt": None} if self._shared and "negative_prompt" in self._call else {}
        return unsaid | {
            name: _stacked([self._shared.get(name, rows[prompt].get(name)) for prompt in prompts])
            for name in (*rows[prompts[0]], *self._shared)
        }

    def _row(self, prompt: str) -> dict[str, Any]:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
        else:
            first = not self._kept and not self._shared
            encoded = self._encode(prompt, self._negative, negatives=first)
            if first:
                self._shared = {name: value for name, value in encoded.items() if name.startswith("negative_")}
                self._shared |= self._apart()
            self._kept[prompt] = {name: v for name, v in encoded.items() if not name.startswith("negative_")}
        return self._kept[prompt]

    def _apart(self) -> dict[str, Any]:
        """The negative prompt of pipelines whose `encode_prompt` knows none: encoded like any other."""
        if "negative_prompt" in self._takes or "negative_prompt_embeds" not in self._call:
            return {}
        if "negative_prompt" in self._call and self._negative is None:
            return {}  # the pipeline then guides by nothing
        encoded = self._encode(self._negative or "", None, negatives=False)
        return {f"negative_{name}": value for name, value in encoded.items() if f"negative_{name}" in self._call}

    def _encode(self, prompt: str, negative: str | None, *, negatives: bool) -> dict[str, Any]:
        assert self._names is not None
        self.encoded += 1
        given = {**self._arguments, "prompt": [prompt], "device": self._device}
        if negative is not None and "negative_prompt" in self._takes:
            given["negative_prompt"] = [negative]
        if "do_classifier_free_guidance" in self._takes:
            given["do_classifier_free_guidance"] = negatives
        returned = self._pipeline.encode_prompt(**given)
        named = zip(self._names, returned, strict=True)
        return {name: value for name, value in named if name is not None and value is not None and len(value)}


def _stacked(rows: Sequence[Any]) -> Any:
    """One row a prompt, each of its own length in a list or of one length in a tensor."""
    if isinstance(rows[0], list):
        return [row for part in rows for row in part]
    return torch.cat(list(rows))
