"""Configures a student and its training: every value that its weights depend on, besides the images."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar

import torch

from lgclip.encoder.backbone import TIMM, Tower, check_fits, read_into, split_name, untrained, weights_file
from lgclip.encoder.base import Encoder
from lgclip.encoder.precision import PRECISIONS, decided_for_training
from lgclip.encoder.timm import Timm
from lgclip.encoder.weight_files import checkpoint_content
from lgclip.runtime.validation import Validation
from lgclip.stages.context import RunContext
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR
from lgclip.training.task import TrainingConfig, TrainingInputs, TrainingTask

if TYPE_CHECKING:
    from lgclip.training.student.predictor import StudentPredictor

ENCODER = "encoder"
PRETRAINED = "pretrained"


def _share(value: float) -> bool:
    return 0 <= value <= 1


_LIMITS = Validation(
    group="student",
    words={
        "optimizer": ("sgd", "adamw"),
        "schedule": ("cosine", "steps"),
        "select_on": ("synthetic", "last", "real"),
        "precision": ("auto", *PRECISIONS),
    },
    numbers={
        "real_fraction": (_share, "in [0, 1]: the fraction of real images in each batch"),
        "epochs": (lambda v: v >= 1, "at least 1"),
        "batch_size": (lambda v: v >= 1, "at least 1"),
        "lr": (lambda v: v > 0, "above 0"),
        "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "gamma": (lambda v: 0 < v <= 1, "in (0, 1]"),
        "warmup_epochs": (lambda v: v >= 0, "at least 0"),
        "warmup_lr": (lambda v: v >= 0, "at least 0"),
        "label_smoothing": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "color_jitter": (_share, "in [0, 1]"),
        "center_crop": (lambda v: 0 < v <= 1, "in (0, 1]: the share of the shorter side that is seen"),
        "validation": (lambda v: 0 <= v < 1, "in [0, 1): the share of the synthetic images that is held out"),
        "image_size": (lambda v: v >= 1, "at least 1 pixel, or null"),
        "ema": (lambda v: 0 < v < 1, "in (0, 1), or null for no average"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class Student(TrainingConfig):
    """Configures a classifier that is trained on synthetic images, real images or both (arXiv:2307.08526, sec. 4).

    Args:
        backbone: `NAME` or `timm:NAME`, `torchvision:NAME`, or `encoder` for the vision tower of the run's encoder.
        weights: None starts from random weights; `pretrained` from those of timm's name; else a safetensors file.
        frozen: Whether to train only a linear layer on the backbone's features.
        image_size: Height and width of the input in pixels; None is the backbone's own.
        real_fraction: Fraction of real images in each batch: 0 is synthetic images only, 1 real ones only.
        epochs: Number of epochs, each as long as the largest set.
        batch_size: Images per step, over all devices.
        lr: Peak learning rate.
        scale_lr: Whether `lr` is for 256 images per step, and scales with the batch.
        optimizer: `sgd` or `adamw`.
        momentum: Momentum of `sgd`.
        nesterov: Whether to use Nesterov momentum.
        weight_decay: Not applied to biases and norms.
        schedule: `cosine` to 0, or `steps`: times `gamma` at each of the milestones.
        milestones: Fractions of the training at which the learning rate drops, with `steps`.
        gamma: Factor of each drop.
        warmup_epochs: Epochs of linear warm-up before that.
        warmup_lr: Learning rate at the start of the warm-up.
        label_smoothing: Fraction of a label that is spread over all classes.
        crop: Minimum and maximum fraction of an image's area in a training crop.
        flip: Whether to flip half of the training images horizontally.
        color_jitter: Strength of brightness, contrast and saturation changes.
        center_crop: Fraction of an image's shorter side that is kept outside training.
        ema: Decay of the exponential moving average of the weights, which is then the student; None uses the last.
        validation: Fraction of the synthetic images of each class that is held out; of the real ones with
            `real_fraction=1`.
        select_on: The epoch whose weights are kept: best on the held-out images (`synthetic`), the `last`, or best on
            the real test images (`real`, as the release does: the result is marked).
        seed: Seed of the initial weights, the order of the images and their augmentation.
        precision: `fp32`, `bf16` or `fp16` (mixed); `auto` is bf16 on a GPU and fp32 elsewhere.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range, or the backbone or the weight file does not exist.
    """

    key_name: ClassVar[str] = "Student"
    knows_members: ClassVar[bool] = True

    backbone: str = "resnet50"
    weights: str | None = field(default=None, metadata={STANDS_FOR: lambda part: part._weights()})
    frozen: bool = False
    image_size: int | None = None
    real_fraction: float = 0.0
    epochs: int = 300
    batch_size: int = 256
    lr: float = 0.1
    scale_lr: bool = True
    optimizer: str = "sgd"
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
    color_jitter: float = 0.0
    center_crop: float = 1.0
    ema: float | None = None
    validation: float = 0.1
    select_on: str = "synthetic"
    seed: int = 0
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided_for_training(part.precision)})
    # How often the state is saved changes no weight, so it is not part of the key.
    checkpoint_every: int = field(default=500, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        if len(self.crop) != 2 or not 0 < self.crop[0] <= self.crop[1] <= 1:
            raise ValueError(f"student.crop={list(self.crop)}: give the smallest and largest fraction, in (0, 1]")
        if list(self.milestones) != sorted(self.milestones) or not all(0 < share < 1 for share in self.milestones):
            raise ValueError(f"student.milestones={list(self.milestones)}: give increasing fractions between 0 and 1")
        # The default would silently keep the last epoch instead, and the report would still say that it had selected.
        if self.select_on == "synthetic" and not self.validation:
            raise ValueError("student.validation=0: nothing is held out to select on; raise it, or select_on=last")
        if self.nesterov and not self.momentum:
            raise ValueError("student.nesterov=true needs student.momentum above 0")
        self._check_backbone()

    def _check_backbone(self) -> None:
        if self.backbone == ENCODER:
            # Two sources of one value: whichever won, the config would say something else than what was trained.
            if self.weights is not None or self.image_size is not None:
                raise ValueError(
                    "student.backbone=encoder brings its weights and its size: leave student.weights and "
                    "student.image_size null; an encoder of timm takes encoder.image_size"
                )
            return
        library, name = split_name(self.backbone)
        # A linear layer on random features learns next to nothing, and no error would show it.
        if self.frozen and self.weights is None:
            raise ValueError("student.frozen=true needs weights: student.weights=pretrained, or backbone=encoder")
        if self.weights is None:
            return
        if library == TIMM:
            self._timm(name)
        # Opening a pickle can run code of whoever made it.
        elif self.weights == PRETRAINED:
            raise ValueError(
                f"student.weights=pretrained: those of torchvision are pickles, which are not read; give a "
                f".safetensors file, or take timm:{name.partition('_')[0]}... in place of {self.backbone}"
            )
        else:
            weights_file(self.weights)

    def check(self, inputs: TrainingInputs) -> None:
        # A file of weights is otherwise read only when the images are generated.
        if self.weights is None or self.weights == PRETRAINED:
            return
        source = self.source(inputs.encoder)
        if source is not None:
            source.check_weights()
            return

        with torch.device("meta"):
            body = untrained(self.backbone, self.image_size).body
        check_fits(body, self.weights)

    def _timm(self, name: str) -> Timm:
        # For timm no checkpoint means the weights of the name's own tag.
        checkpoint = None if self.weights == PRETRAINED else self.weights
        try:
            return Timm(name, image_size=self.image_size, checkpoint=checkpoint, precision="fp32")
        except ValueError as error:  # it calls its values by the names that they have in `encoder=timm`
            message = str(error).replace("encoder.checkpoint", "student.weights")
            raise ValueError(message.replace("encoder.model", "student.backbone")) from error

    def _weights(self) -> str | None:
        if self.weights is None or self.weights == PRETRAINED:
            return self.weights
        # A file is in the key by its content: what a path holds may change later.
        return checkpoint_content(self.weights)

    def source(self, encoder: Encoder | None) -> Encoder | None:
        """Returns the encoder whose tower is fine-tuned; None if the student has another network.

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
        if self.weights is None or library != TIMM:
            return None
        return self._timm(name)

    def tower(self, encoder: Encoder | None) -> Tower:
        """Returns the backbone with its initial weights; random ones use torch's random number generator.

        Args:
            encoder: The run's own.
        """
        source = self.source(encoder)
        if source is not None:
            return source.tower()
        tower = untrained(self.backbone, self.image_size)
        if self.weights is not None:
            read_into(tower.body, self.weights)
        return tower

    def on(self, device: torch.device) -> "Student":
        """Returns this student with its device-dependent settings resolved, so that its key covers what is computed."""
        return replace(self, precision=decided_for_training(self.precision, device))

    @property
    def needs_real(self) -> bool:
        """Returns whether it is trained on real images."""
        return self.real_fraction > 0

    @property
    def needs_synthetic(self) -> bool:
        """Returns whether it is trained on synthetic images."""
        return self.real_fraction < 1

    @property
    def peak_lr(self) -> float:
        """Returns the peak learning rate, for the global batch."""
        if not self.scale_lr:
            return self.lr
        # The linear scaling rule (arXiv:1706.02677, sec. 2.1): twice the batch, half the steps, each twice as long.
        return self.lr * self.batch_size / 256

    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        from lgclip.training.student.task import StudentSetup
        from lgclip.training.student.train import StudentTraining

        # `auto` is decided before the key is made: bf16 and fp32 give different weights, and must not share a folder.
        recipe = self.on(context.device)
        return StudentTraining(StudentSetup.of(recipe, replace(inputs, encoder=inputs.encoder.on(context.device))))

    def load(self, folder: str, inputs: TrainingInputs, context: RunContext) -> "StudentPredictor":
        """Loads a trained student.

        Raises:
            ValueError: If there is none in the folder, or it has other classes.
        """
        from lgclip.training.student.predictor import StudentPredictor

        predictor = StudentPredictor.load(folder, inputs.data.evaluated)
        student = predictor.student.on(context.device)
        return replace(predictor, student=student, images_per_class=inputs.images_per_class)
