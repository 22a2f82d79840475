"""Configures LoRA tuning: every value that the weights depend on, besides the pipeline and the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.precision import PRECISIONS, decided_for_training
from lgclip.runtime.validation import Validation
from lgclip.stages.context import RunContext
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR
from lgclip.training.task import TrainingConfig, TrainingInputs, TrainingTask

_LIMITS = Validation(
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
        "gradient_clip": (lambda v: v > 0, "above 0, or null for no limit"),
        "min_snr": (lambda v: v > 0, "above 0, or null for equal weights"),
        "prior_weight": (lambda v: v >= 0, "at least 0"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class LoraTuning(TrainingConfig):
    """Configures low-rank adapters (LoRA, arXiv:2106.09685) of a diffusion U-Net, tuned on unlabelled images.

    AiR (arXiv:2504.11930) does so for domain consistency and publishes none of these values. The defaults are those of
    diffusers' text-to-image LoRA example (rank, alpha, targets, learning rate); steps and captions are our own choice.

    Args:
        rank: Rank of each adapter.
        alpha: Scales the adapter's output by alpha / rank; None is the rank.
        targets: Suffixes of the names of the U-Net layers that get an adapter.
        captions: Caption of each image: the same `sentence` for all, `none` (empty), or `class_list`: a class
            name sampled at random for each image and pass, correct for one in as many as there are classes. No
            label is ever used.
        sentence: Caption of all images; `{context}` is the data set's type of classes, or "an object".
        steps: Optimizer steps.
        batch_size: Images per step, over all devices.
        accumulate: Number of gradient accumulation parts of each device's shard, to save memory.
        lr: Peak learning rate of AdamW.
        weight_decay: Weight decay of AdamW.
        warmup: Steps of linear warm-up.
        schedule: `cosine` to 0 after that, or `constant`.
        gradient_clip: Maximum gradient norm; None sets no limit.
        min_snr: Gamma of min-SNR weights (arXiv:2303.09556); None weights all noise levels equally.
        prior_weight: Weight of images that the untuned model generated from the classes' prompts, as many in each step
            as real ones (prior preservation, arXiv:2208.12242); 0 generates none.
        flip: Whether to flip half of the real images horizontally.
        gradient_checkpointing: Whether to recompute activations instead of storing them; affects only memory and time.
        seed: Seed of the initial weights, the order of the images and all noise.
        precision: `fp32`, `bf16` or `fp16`: of the frozen weights and the computation, adapters stay in fp32;
            `auto` is bf16 on a GPU and fp32 elsewhere.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range.
    """

    key_name: ClassVar[str] = "LoraTuning"

    rank: int = 4
    alpha: float | None = field(default=None, metadata={STANDS_FOR: lambda part: part.strength})
    targets: Sequence[str] = ("to_q", "to_k", "to_v", "to_out.0")
    captions: str = "sentence"
    sentence: str = "a photo of {context}"
    steps: int = 1000
    batch_size: int = 8
    # In how many parts a step is computed changes memory, not the sum that it computes, so it is not in the key.
    accumulate: int = field(default=1, metadata=NOT_AN_INPUT)
    lr: float = 1e-4
    weight_decay: float = 1e-2
    warmup: int = 0
    schedule: str = "cosine"
    gradient_clip: float | None = 1.0
    min_snr: float | None = None
    prior_weight: float = 0.0
    flip: bool = False
    gradient_checkpointing: bool = field(default=False, metadata=NOT_AN_INPUT)
    seed: int = 0
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided_for_training(part.precision)})
    checkpoint_every: int = field(default=100, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        if not self.targets or not all(isinstance(name, str) and name for name in self.targets):
            raise ValueError(f"method.targets={list(self.targets)}: name layers of the U-Net, such as to_q")
        # A part without an image would have no loss to go backwards from.
        if self.accumulate > self.batch_size:
            raise ValueError(f"method.accumulate={self.accumulate}: a step has {self.batch_size} images to divide")
        # Any other brace is most likely a misspelled `{context}`, and would be read to the model as it is.
        if set("{}") & set(self.sentence.replace("{context}", "")):
            raise ValueError(f"method.sentence={self.sentence!r}: the only placeholder it may have is {{context}}")

    @property
    def strength(self) -> float:
        """Returns alpha, which defaults to the rank."""
        # As a number in the key: `alpha: null` and `alpha: 4` at rank 4 are one tuning.
        return float(self.rank if self.alpha is None else self.alpha)

    def sentences(self, context: str, class_names: Sequence[str], template: str) -> list[str]:
        """Returns all possible captions of the unlabelled images.

        Args:
            context: Type of the classes; may be empty.
            class_names: Class names of the data set.
            template: A sentence with `{}` in place of a name.
        """
        if self.captions == "none":
            return [""]
        if self.captions == "class_list":
            return [template.replace("{}", name) for name in class_names]
        # Replaced, not formatted: a context with braces would be an error.
        return [self.sentence.replace("{context}", context.strip() or "an object")]

    def on(self, device: torch.device) -> "LoraTuning":
        """Returns this recipe with its device-dependent settings resolved, so that its key covers what is computed."""
        return replace(self, precision=decided_for_training(self.precision, device))

    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        from lgclip.training.lora.task import Adaptation
        from lgclip.training.lora.train import LoraTraining

        return LoraTraining(Adaptation.of(self.on(context.device), inputs))


class TuningBatch(NamedTuple):
    """Holds one device's shard of a step's images, or a part of it.

    Attributes:
        step: Index of the step, from 0.
        pixels: Images from -1 to 1.
        captions: Caption of each, as an index in the list of all sentences.
        seeds: Seed of each image's noise, including its level.
        weights: Loss weight of each.
        total: Divisor of the summed losses: the number of real images in the global batch, over all devices.
    """

    step: int
    pixels: Float[Tensor, "b 3 h w"]
    captions: list[int]
    seeds: list[int]
    weights: Float[Tensor, " b"]
    total: int
