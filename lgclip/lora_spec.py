"""How LoRA weights are tuned: every value that they depend on, besides the pipeline and the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.precision import PRECISIONS, decided
from lgclip.identity import NOT_AN_INPUT, STANDS_FOR
from lgclip.limits import Limits

_LIMITS = Limits(
    group="method",
    words={
        "captions": ("sentence", "none", "class_list"),
        "schedule": ("cosine", "constant"),
        "precision": ("auto", *PRECISIONS),
    },
    numbers={
        "rank": (lambda v: v >= 1, "at least 1"),
        "alpha": (lambda v: v > 0, "above 0, or null for the rank"),
        "steps": (lambda v: v >= 1, "at least 1"),
        "batch_size": (lambda v: v >= 1, "at least 1"),
        "accumulate": (lambda v: v >= 1, "at least 1"),
        "lr": (lambda v: v > 0, "above 0"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "warmup": (lambda v: v >= 0, "at least 0 steps"),
        "clip": (lambda v: v > 0, "above 0, or null for no limit"),
        "min_snr": (lambda v: v > 0, "above 0, or null for equal weights"),
        "prior_weight": (lambda v: v >= 0, "at least 0"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class LoraTuning:
    """Low-rank adapters (LoRA, arXiv:2106.09685) of a diffusion U-Net, tuned on unlabelled images.

    AiR (arXiv:2504.11930) does so for domain consistency and publishes none of these values. The defaults are those of
    diffusers' text-to-image LoRA example (rank, alpha, targets, rate); steps and captions are a choice of our own.

    Args:
        rank: Of each adapter.
        alpha: Its output counts alpha / rank times; None is the rank.
        targets: Ends of the names of the U-Net's layers that get one.
        captions: What is said of each image: the same `sentence` of all, `none` (empty), or `class_list`: a class's
            name that is drawn at random for each image and pass, right for one in as many as there are classes. No
            label is ever looked at.
        sentence: Of all images; `{context}` is the data set's kind of thing, or "an object".
        steps: Optimiser steps.
        batch_size: Images a step, of all devices together.
        accumulate: Parts in which each device goes through its share of a step, for less memory.
        lr: Peak learning rate of AdamW.
        weight_decay: AdamW's.
        warmup: Steps of linear rise.
        schedule: `cosine` to 0 after that, or `constant`.
        clip: Greatest length of the gradient; None sets no limit.
        min_snr: Gamma of min-SNR weights (arXiv:2303.09556); None weighs all noise levels alike.
        prior_weight: Weight of images that the untuned model drew from the classes' prompts, as many in each step as
            real ones (prior preservation, arXiv:2208.12242); 0 draws none.
        flip: Whether half of the real images are mirrored.
        gradient_checkpointing: Compute twice in place of keeping; changes nothing but memory and time.
        seed: Of the first weights, the order of the images and all noise.
        precision: `fp32`, `bf16` or `fp16`: of the frozen weights and the arithmetic, the adapters stay in fp32;
            `auto` is bf16 on a GPU and fp32 elsewhere.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range.
    """

    rank: int = 4
    alpha: float | None = field(default=None, metadata={STANDS_FOR: lambda part: part.strength})
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    captions: str = "sentence"
    sentence: str = "a photo of {context}"
    steps: int = 1000
    batch_size: int = 8
    accumulate: int = field(default=1, metadata=NOT_AN_INPUT)
    lr: float = 1e-4
    weight_decay: float = 1e-2
    warmup: int = 0
    schedule: str = "cosine"
    clip: float | None = 1.0
    min_snr: float | None = None
    prior_weight: float = 0.0
    flip: bool = False
    gradient_checkpointing: bool = field(default=False, metadata=NOT_AN_INPUT)
    seed: int = 0
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    checkpoint_every: int = field(default=100, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        if not self.targets or not all(isinstance(name, str) and name for name in self.targets):
            raise ValueError(f"method.targets={list(self.targets)}: name layers of the U-Net, such as to_q")
        if self.accumulate > self.batch_size:
            raise ValueError(f"method.accumulate={self.accumulate}: a step has {self.batch_size} images to divide")
        if set("{}") & set(self.sentence.replace("{context}", "")):
            raise ValueError(f"method.sentence={self.sentence!r}: the only gap that it may have is {{context}}")

    @property
    def strength(self) -> float:
        """Alpha, which is the rank if nothing is said."""
        return float(self.rank if self.alpha is None else self.alpha)

    def sentences(self, context: str, class_names: Sequence[str], template: str) -> list[str]:
        """All that may be said of the unlabelled images.

        Args:
            context: What kind of things the classes are; may be empty.
            class_names: Of the data set.
            template: A sentence with `{}` in place of a name.
        """
        if self.captions == "none":
            return [""]
        if self.captions == "class_list":
            return [template.replace("{}", name) for name in class_names]
        return [self.sentence.replace("{context}", context.strip() or "an object")]

    def on(self, device: torch.device) -> "LoraTuning":
        """These values with what is left to the device decided, so that their key tells what is computed."""
        return replace(self, precision=decided(self.precision, device))


class TuningBatch(NamedTuple):
    """One device's share of a step's images, or a part of it.

    Attributes:
        step: Which step it is, from 0.
        pixels: Images from -1 to 1.
        captions: What is said of each, by its place in the list of all sentences.
        seeds: Of each image's noise, its level among it.
        weights: How much each counts.
        total: What the whole batch's losses are divided by: how many real images it has, on all devices.
    """

    step: int
    pixels: Float[Tensor, "b 3 h w"]
    captions: list[int]
    seeds: list[int]
    weights: Float[Tensor, " b"]
    total: int
