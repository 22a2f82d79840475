"""Configures prompt tuning without labels: every value that the prompts depend on, besides the images.

One class covers every strategy (arXiv:2306.01669, GRIP, FPL and IFPL; arXiv:2406.10502, CPL; arXiv:2504.11930, AiR).
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from lgclip.runtime.validation import Validation
from lgclip.stages.context import RunContext
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.training.prompt_tuning.paradigms import Paradigm
from lgclip.training.task import TrainingConfig, TrainingInputs, TrainingTask

if TYPE_CHECKING:
    from lgclip.training.prompt_tuning.predictor import PromptPredictor

_LIMITS = Validation(
    group="prompt_tuning",
    words={
        "modality": ("text", "visual", "both"),
        "position": ("front", "middle", "end"),
        "auxiliary": ("none", "fixed", "selected"),
    },
    numbers={
        "tokens": (lambda v: v >= 1, "at least 1"),
        "rounds": (lambda v: v >= 0, "at least 0: with 0 nothing is tuned, which is zero-shot"),
        "shots": (lambda v: v >= 1, "at least 1 image per class, or null to grow from round to round"),
        "alpha": (lambda v: 0 <= v <= 1, "in [0, 1]: a quantile"),
        "beta": (lambda v: 0 <= v <= 1, "in [0, 1]: a quantile"),
        "temperature": (lambda v: v > 0, "above 0, or null for the encoder's own"),
        "aux_neighbors": (lambda v: v >= 1, "at least 1 synthetic image per class, or null for all"),
        "aux_weight": (lambda v: v >= 0, "at least 0"),
        "aux_temperature": (lambda v: v > 0, "above 0"),
        "auxiliary_rounds": (lambda v: v >= 1, "at least 1, or null for all; auxiliary=none is without"),
        "prior_weight": (lambda v: v >= 0, "at least 0, or null to trust the selection"),
        "synthetic_images": (lambda v: v >= 1, "at least 1 of each class, or null for all there are"),
        "synthetic_weight": (lambda v: v >= 0, "at least 0"),
        "synthetic_batch": (lambda v: v >= 1, "at least 1, or null for as many as batch_size"),
        "epochs": (lambda v: v >= 1, "at least 1"),
        "batch_size": (lambda v: v >= 1, "at least 1"),
        "lr": (lambda v: v > 0, "above 0"),
        "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "warmup_epochs": (lambda v: v >= 0, "at least 0"),
        "gradient_clip": (lambda v: v > 0, "above 0, or null for no limit"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class PromptTuningConfig:
    """Configures prompt tuning in rounds: assign pseudo-labels, tune on them, assign again.

    Args:
        modality: `text`: vectors among the words of a sentence; `visual`: among the patches of an image; or `both`.
        tokens: Number of these vectors, of each type.
        position: Position of the text vectors: before the class name (`front`), around or after it.
        template: The sentence, with `{}` for the class name.
        per_class: Whether each class has its own text vectors.
        deep: Whether every block has its own visual vectors (arXiv:2203.12119), not only the first.
        rounds: Number of pseudo-labelling rounds; 0 is zero-shot.
        shots: Pseudo-labelled images per class and round; None grows by the round (arXiv:2306.01669, sec. 4).
        candidate_labels: Whether an image is labelled by a set of classes (arXiv:2406.10502, sec. 3) or by the top one.
        alpha: With candidate labels: quantile of the pool's highest probabilities that a set must reach.
        beta: With candidate labels: quantile of a class's probabilities above which it is in a set.
        temperature: Divisor that turns cosines into logits; None is the encoder's own, CLIP's is 0.01.
        auxiliary: Whether synthetic images help to assign pseudo-labels (arXiv:2504.11930): with `fixed` values, or
            with values `selected` on held-out synthetic images; `none` disables it.
        aux_neighbors: Number of synthetic images per class to compare with, those nearest to their mean; None for all.
        aux_weight: Weight of the synthetic images' probabilities, relative to 1 for the text.
        aux_temperature: Divisor of the mean cosine to them.
        auxiliary_rounds: Number of rounds, from the first, that the synthetic images help to label in; None for all, as
            in AiR. Later rounds are labelled by the tuned prompt alone.
        center_auxiliary: Whether images are compared with synthetic ones after each domain's mean is subtracted. Not
            part of AiR.
        prior_weight: With `selected`: factor for synthetic images (`aux_weight` and `synthetic_weight`) where the text
            prompts classify 98% of the held-out ones correctly, since these then say nothing of the gap to real images;
            None trusts the selection, with a warning. Not part of AiR.
        align_synthetic: Whether the features of synthetic images are moved by their mean difference to the pool, which
            `align=pool` estimates. Not part of AiR: it closes a gap that LoRA would have to close. Text prompts only.
        synthetic_images: Number of synthetic images per class, the first ones; None for all.
        synthetic_weight: Weight of the loss on synthetic images, relative to 1 for real ones; 0 leaves it out.
        synthetic_batch: Synthetic images per step; None for as many as real ones.
        warm_start: Whether a round starts from the previous round's prompt, not from a new one.
        epochs: Number of epochs per round.
        batch_size: Real images per step, over all devices.
        lr: Peak learning rate of stochastic gradient descent.
        momentum: Its momentum.
        weight_decay: Weight decay of all tuned parameters.
        warmup_epochs: Epochs of linear warm-up from 0, before a cosine to 0.
        gradient_clip: Maximum gradient norm.
        release_bugs: Whether to reproduce GRIP's release where it differs from the paper: the template's braces stay in
            the zero-shot sentences, text prompts start warm, an image may be selected for two classes, only 80% of the
            labels and, from 10 images per class on, of the pseudo-labels are trained on, and in a single round the
            weight of the labels is inverted with `ssl`, and a square root with `both`.
        seed: Seed of the initial vectors and of the order of the images.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range, or two of them are incompatible.
    """

    key_name: ClassVar[str] = "PromptTuningConfig"

    modality: str = "text"
    tokens: int = 16
    position: str = "front"
    template: str = "{}"
    per_class: bool = False
    deep: bool = False
    rounds: int = 10
    shots: int | None = None
    candidate_labels: bool = False
    alpha: float = 0.75
    beta: float = 0.95
    temperature: float | None = None
    auxiliary: str = "none"
    aux_neighbors: int | None = 16
    aux_weight: float = 1.0
    aux_temperature: float = 0.01
    auxiliary_rounds: int | None = None
    center_auxiliary: bool = False
    prior_weight: float | None = None
    align_synthetic: bool = False
    synthetic_images: int | None = None
    synthetic_weight: float = 0.0
    synthetic_batch: int | None = None
    warm_start: bool = False
    epochs: int = 150
    batch_size: int = 16
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 0.1
    warmup_epochs: int = 5
    gradient_clip: float | None = None
    release_bugs: bool = False
    seed: int = 0
    # How often the state is saved changes no vector, so it is not part of the key.
    checkpoint_every: int = field(default=500, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        # The limits above see one value at a time. What follows are pairs that do not go together.
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"prompt_tuning.warmup_epochs={self.warmup_epochs}: a round has {self.epochs} epochs, of which the "
                f"warm-up "
                "must leave one at least"
            )
        if self.template.count("{}") != 1:
            raise ValueError(f"prompt_tuning.template={self.template}: it needs {{}} once, where the class name goes")
        # A value that has no effect is refused, not ignored: a sweep over it would compare equal runs.
        if self.deep and not self.has_visual:
            raise ValueError("prompt_tuning.deep=true is of visual prompts: set prompt_tuning.modality=visual or both")
        if self.per_class and not self.has_text:
            raise ValueError("prompt_tuning.per_class=true is of text prompts: set prompt_tuning.modality=text or both")
        if self.auxiliary == "none" and (self.auxiliary_rounds is not None or self.center_auxiliary):
            raise ValueError(
                "prompt_tuning.auxiliary_rounds and center_auxiliary are of the auxiliary classifier: set "
                "prompt_tuning.auxiliary=selected or fixed"
            )
        if self.prior_weight is not None and self.auxiliary != "selected":
            raise ValueError(
                f"prompt_tuning.prior_weight={self.prior_weight} replaces a selected value: set "
                "prompt_tuning.auxiliary=selected, or give prompt_tuning.aux_weight"
            )
        if self.align_synthetic and self.has_visual:
            raise ValueError(
                "prompt_tuning.align_synthetic=true moves features, and a visual prompt is tuned on pixels: set "
                "prompt_tuning.modality=text"
            )
        if self.candidate_labels and self.release_bugs:
            raise ValueError(
                "prompt_tuning.release_bugs=true is of GRIP's release, which has no candidates; leave one of them"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """Returns the types of tuned prompts: `text`, `visual` or both."""
        if self.modality == "both":
            return ("text", "visual")
        return (self.modality,)

    @property
    def has_text(self) -> bool:
        """Returns whether a text prompt is tuned."""
        return self.modality != "visual"

    @property
    def has_visual(self) -> bool:
        """Returns whether a visual prompt is tuned."""
        return self.modality != "text"

    @property
    def needs_images(self) -> bool:
        """Returns whether synthetic images are used at all."""
        # Without a round nothing is learned or labeled, and generating images would waste hours.
        return self.rounds > 0 and (self.auxiliary != "none" or self.synthetic_weight > 0)

    @property
    def starts_from_previous(self) -> bool:
        """Returns whether a round starts from the previous round's prompt; in the release, text prompts always do."""
        return self.warm_start or (self.release_bugs and self.modality == "text")

    @property
    def synthetic_batch_size(self) -> int:
        """Returns the number of synthetic images per step."""
        # Images whose loss counts nothing would still cost their forward pass.
        if not self.synthetic_weight:
            return 0
        if self.synthetic_batch is None:
            return self.batch_size
        return self.synthetic_batch


@dataclass(frozen=True)
class PromptTuning(TrainingConfig):
    """Configures prompt tuning as a method names it: the recipe and the available labels.

    Attributes:
        config: The recipe.
        paradigm: Available labels of the pool.
    """

    config: PromptTuningConfig
    paradigm: Paradigm

    def check(self, inputs: TrainingInputs) -> None:
        # Imported here, so that building a config for `--help` or a sweep does not load the towers' modules.
        from lgclip.training.prompt_tuning.task import check_towers

        check_towers(self.config, inputs.encoder, inputs.scales)

    def prepare(self, inputs: TrainingInputs, context: RunContext) -> TrainingTask:
        from lgclip.training.prompt_tuning.task import PromptTuningSetup
        from lgclip.training.prompt_tuning.train import PromptTraining

        setup, hidden = PromptTuningSetup.create(self.config, self.paradigm, inputs, context)
        return PromptTraining(setup, hidden)

    def load(self, folder: str, inputs: TrainingInputs, context: RunContext) -> "PromptPredictor":
        from lgclip.training.prompt_tuning.predictor import PromptPredictor

        return PromptPredictor.load(folder, inputs, context.device)
