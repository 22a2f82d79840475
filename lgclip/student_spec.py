"""What a student is and how it is trained: every value that its weights depend on, besides the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from lgclip.encoder.backbone import TIMM, Tower, read_into, split_name, untrained, weights_file
from lgclip.encoder.base import Encoder
from lgclip.encoder.files import checkpoint_content
from lgclip.encoder.precision import PRECISIONS, decided
from lgclip.encoder.timm import Timm
from lgclip.identity import NOT_AN_INPUT, STANDS_FOR
from lgclip.limits import Limits

ENCODER, PRETRAINED = "encoder", "pretrained"


def _share(value: float) -> bool:
    return 0 <= value <= 1


_LIMITS = Limits(
    group="student",
    words={
        "optimiser": ("sgd", "adamw"),
        "schedule": ("cosine", "steps"),
        "select_on": ("synthetic", "last", "real"),
        "precision": ("auto", *PRECISIONS),
    },
    numbers={
        "mix": (_share, "in [0, 1]: the share of real images in each batch"),
        "epochs": (lambda v: v >= 1, "at least 1"),
        "batch_size": (lambda v: v >= 1, "at least 1"),
        "lr": (lambda v: v > 0, "above 0"),
        "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "gamma": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "warmup_epochs": (lambda v: v >= 0, "at least 0"),
        "warmup_lr": (lambda v: v >= 0, "at least 0"),
        "label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "colour_jitter": (_share, "in [0, 1]"),
        "centre": (lambda v: 0 < v <= 1, "in (0, 1]: the share of the shorter side that is seen"),
        "validation": (lambda v: 0 <= v < 1, "in [0, 1): the share of the synthetic images that is held out"),
        "image_size": (lambda v: v >= 1, "at least 1 pixel, or null"),
        "ema": (lambda v: 0 < v < 1, "in (0, 1), or null for no average"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class Student:
    """A classifier that is trained on synthetic images, real images or both (arXiv:2307.08526, sec. 4).

    Args:
        backbone: `NAME` or `timm:NAME`, `torchvision:NAME`, or `encoder` for the vision tower of the run's encoder.
        weights: None begins with random ones; `pretrained` with those of timm's name; else a safetensors file.
        frozen: Train a linear layer on the backbone's features alone.
        image_size: Height and width of the input in pixels; None is the backbone's own.
        mix: Share of real images in each batch: 0 is synthetic images alone, 1 real ones alone.
        epochs: How often as many images as the largest set has are gone through.
        batch_size: Images a step, of all devices together.
        lr: Peak learning rate.
        scale_lr: Whether `lr` is for 256 images a step, and grows with the batch.
        optimiser: `sgd` or `adamw`.
        momentum: Of `sgd`.
        nesterov: Whether that is Nesterov's.
        weight_decay: Not applied to biases and norms.
        schedule: `cosine` to 0, or `steps`: times `gamma` at each of the milestones.
        milestones: Shares of the training at which the rate falls, with `steps`.
        gamma: What it is then multiplied by.
        warmup_epochs: Epochs of linear rise before that.
        warmup_lr: Where the rise begins.
        label_smoothing: Share of a label that is spread over all classes.
        crop: Least and greatest share of an image's area that a training image shows.
        flip: Whether half of the training images are mirrored.
        colour_jitter: By how much their brightness, contrast and saturation may change.
        centre: Share of an image's shorter side that is seen outside training.
        ema: Decay of the average of the weights over the steps, which is then the student; None takes the last.
        validation: Share of the synthetic images that is held out, of each class; of the real ones with `mix=1`.
        select_on: The epoch whose weights are kept: best on the held-out share (`synthetic`), the `last`, or best on
            the real test images (`real`, as the release does: the result is marked).
        seed: Of the first weights, the order of the images and their changes.
        precision: `fp32`, `bf16` or `fp16` (mixed); `auto` is bf16 on a GPU and fp32 elsewhere.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range, or the backbone or the file of the weights is not there.
    """

    backbone: str = "resnet50"
    weights: str | None = field(default=None, metadata={STANDS_FOR: lambda part: part._weights()})
    frozen: bool = False
    image_size: int | None = None
    mix: float = 0.0
    epochs: int = 300
    batch_size: int = 256
    lr: float = 0.1
    scale_lr: bool = True
    optimiser: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 2e-5
    schedule: str = "cosine"
    milestones: Sequence[float] = ()
    gamma: float = 0.2
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    label_smoothing: float = 0.0
    crop: Sequence[float] = (0.08, 1.0)
    flip: bool = True
    colour_jitter: float = 0.0
    centre: float = 1.0
    ema: float | None = None
    validation: float = 0.1
    select_on: str = "synthetic"
    seed: int = 0
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    checkpoint_every: int = field(default=500, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"student.crop={list(self.crop)}: give the least and the greatest share, in (0, 1]")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < at < 1 for at in self.milestones):
            raise ValueError(f"student.milestones={list(self.milestones)}: give rising shares between 0 and 1")
        if self.select_on == "synthetic" and not self.validation:
            raise ValueError("student.validation=0: nothing is held out to select on; raise it, or select_on=last")
        if self.nesterov and not self.momentum:
            raise ValueError("student.nesterov=true needs student.momentum above 0")
        self._check_backbone()

    def _check_backbone(self) -> None:
        if self.backbone == ENCODER:
            if self.weights is not None or self.image_size is not None:
                raise ValueError(
                    "student.backbone=encoder brings its weights and its size: leave student.weights and "
                    "student.image_size null; an encoder of timm takes encoder.image_size"
                )
            return
        library, name = split_name(self.backbone)
        if self.frozen and self.weights is None:
            raise ValueError("student.frozen=true needs weights: student.weights=pretrained, or backbone=encoder")
        if self.weights is None:
            return
        if library == TIMM:
            self._timm(name)
        elif self.weights == PRETRAINED:
            raise ValueError(
                f"student.weights=pretrained: those of torchvision are pickles, which are not read; give a "
                f".safetensors file, or take timm:{name.partition('_')[0]}... in place of {self.backbone}"
            )
        else:
            weights_file(self.weights)

    def _timm(self, name: str) -> Timm:
        checkpoint = None if self.weights == PRETRAINED else self.weights
        try:
            return Timm(name, image_size=self.image_size, checkpoint=checkpoint, precision="fp32")
        except ValueError as error:  # it calls its values by the names that they have in `encoder=timm`
            said = str(error).replace("encoder.checkpoint", "student.weights")
            raise ValueError(said.replace("encoder.model", "student.backbone")) from error

    def _weights(self) -> str | None:
        known = self.weights is None or self.weights == PRETRAINED
        return self.weights if known else checkpoint_content(self.weights)

    def source(self, encoder: Encoder | None) -> Encoder | None:
        """The encoder whose tower is trained further; None if the student begins with a network of its own.

        Args:
            encoder: The run's own.

        Raises:
            ValueError: If the run has none and the backbone is `encoder`.
        """
        if self.backbone == ENCODER:
            if encoder is None:
                raise ValueError("student.backbone=encoder: this run has no encoder; name another backbone")
            return encoder
        library, name = split_name(self.backbone)
        return self._timm(name) if self.weights is not None and library == TIMM else None

    def tower(self, encoder: Encoder | None) -> Tower:
        """The backbone with its first weights; random ones are of torch's random numbers.

        Args:
            encoder: The run's own.
        """
        source = self.source(encoder)
        if source is not None:
            return source.tower()
        found = untrained(self.backbone, self.image_size)
        if self.weights is not None:
            read_into(found.body, self.weights)
        return found

    def on(self, device: torch.device) -> "Student":
        """This student with what it leaves to the device decided, so that its key tells what is computed."""
        return replace(self, precision=decided(self.precision, device))

    @property
    def needs_real(self) -> bool:
        """Whether it learns from real training images."""
        return self.mix > 0

    @property
    def needs_synthetic(self) -> bool:
        """Whether it learns from synthetic images."""
        return self.mix < 1

    @property
    def peak_lr(self) -> float:
        """The highest learning rate, for the whole batch."""
        return self.lr * self.batch_size / 256 if self.scale_lr else self.lr
