"""How soft prompts are learnt from images without labels: every value that they depend on, besides the images.

One class holds every strategy (arXiv:2306.01669, GRIP, FPL and IFPL; arXiv:2406.10502, CPL; arXiv:2504.11930, AiR).
"""

from dataclasses import dataclass, field

from lgclip.identity import NOT_AN_INPUT
from lgclip.limits import Limits

_LIMITS = Limits(
    group="learner",
    words={
        "prompt": ("text", "visual", "both"),
        "position": ("front", "middle", "end"),
        "auxiliary": ("none", "given", "chosen"),
        "quirks": ("none", "release"),
    },
    numbers={
        "tokens": (lambda v: v >= 1, "at least 1"),
        "rounds": (lambda v: v >= 0, "at least 0: with 0 nothing is learnt, which is zero-shot"),
        "shots": (lambda v: v >= 1, "at least 1 image a class, or null to grow from round to round"),
        "alpha": (lambda v: 0 <= v <= 1, "in [0, 1]: a quantile"),
        "beta": (lambda v: 0 <= v <= 1, "in [0, 1]: a quantile"),
        "temperature": (lambda v: v > 0, "above 0, or null for the encoder's own"),
        "nearest": (lambda v: v >= 1, "at least 1 synthetic image a class, or null for all"),
        "aux_weight": (lambda v: v >= 0, "at least 0"),
        "aux_temperature": (lambda v: v > 0, "above 0"),
        "synthetic_images": (lambda v: v >= 1, "at least 1 of each class, or null for all there are"),
        "synthetic_weight": (lambda v: v >= 0, "at least 0"),
        "synthetic_batch": (lambda v: v >= 1, "at least 1, or null for as many as batch_size"),
        "epochs": (lambda v: v >= 1, "at least 1"),
        "batch_size": (lambda v: v >= 1, "at least 1"),
        "lr": (lambda v: v > 0, "above 0"),
        "momentum": (lambda v: 0 <= v < 1, "in [0, 1)"),
        "weight_decay": (lambda v: v >= 0, "at least 0"),
        "warmup_epochs": (lambda v: v >= 0, "at least 0"),
        "clip": (lambda v: v > 0, "above 0, or null for no limit"),
        "seed": (lambda v: v >= 0, "at least 0"),
        "checkpoint_every": (lambda v: v >= 1, "at least 1 step"),
    },
)


@dataclass(frozen=True)
class PromptSpec:
    """Soft prompts that are learnt in rounds: label some images with what is known, learn from them, label again.

    Args:
        prompt: `text`: vectors among the words of a sentence; `visual`: among the patches of an image; or `both`.
        tokens: How many of these vectors, of each kind.
        position: Where those of the text stand: before the class name (`front`), around or after it.
        template: The sentence, with `{}` for the class name.
        per_class: Whether each class has text vectors of its own.
        deep: Whether the visual ones are new in every block (arXiv:2203.12119), not in the first alone.
        rounds: How often images are labelled and learnt from; 0 is zero-shot.
        shots: Images of each class that a round takes; None grows by the round (arXiv:2306.01669, sec. 4).
        candidates: Whether an image has a set of classes for its label (arXiv:2406.10502, sec. 3) or the likeliest.
        alpha: With candidates: quantile of the pool's highest probabilities that a set must reach.
        beta: With candidates: quantile of a class's probabilities above which it is in a set.
        temperature: What cosines are divided by to become logits; None is the encoder's own, CLIP's is 0.01.
        auxiliary: Whether synthetic images help to label (arXiv:2504.11930): by the values that are `given`, or by
            values `chosen` on the synthetic images alone, each left out in turn; `none` for not.
        nearest: How many synthetic images of a class, those nearest to their mean, are compared with; None for all.
        aux_weight: What the synthetic images' probabilities count beside the text's 1.
        aux_temperature: What the mean cosine to them is divided by.
        synthetic_images: The first so many of each class are used; None for all.
        synthetic_weight: What the loss on synthetic images counts beside that on real ones' 1; 0 leaves it out.
        synthetic_batch: Synthetic images of a step; None for as many as real ones.
        warm_start: Whether a round begins with the prompt of the one before, not with a new one.
        epochs: Of each round: how often its images are gone through.
        batch_size: Real images of a step, of all devices together.
        lr: Peak learning rate of stochastic gradient descent.
        momentum: Its momentum.
        weight_decay: On all that is learnt.
        warmup_epochs: Epochs of linear rise from 0, before a cosine to 0.
        clip: The greatest norm of a gradient.
        quirks: `release` does what GRIP's release does: the template's braces stay in the zero-shot sentences, text
            prompts start warm, an image may be chosen for two classes, and in one round with some labels their weight
            is turned over.
        seed: Of the first vectors and of the order of the images.
        checkpoint_every: Steps between two checkpoints.

    Raises:
        ValueError: If a value is out of range, or two of them do not go together.
    """

    prompt: str = "text"
    tokens: int = 16
    position: str = "front"
    template: str = "{}"
    per_class: bool = False
    deep: bool = False
    rounds: int = 10
    shots: int | None = None
    candidates: bool = False
    alpha: float = 0.75
    beta: float = 0.95
    temperature: float | None = None
    auxiliary: str = "none"
    nearest: int | None = 16
    aux_weight: float = 1.0
    aux_temperature: float = 0.01
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
    clip: float | None = None
    quirks: str = "none"
    seed: int = 0
    checkpoint_every: int = field(default=500, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        _LIMITS.check(self)
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"learner.warmup_epochs={self.warmup_epochs}: a round has {self.epochs} epochs, of which the warm-up "
                "must leave one at least"
            )
        if self.template.count("{}") != 1:
            raise ValueError(f"learner.template={self.template}: it needs {{}} once, where the class name goes")
        if self.deep and not self.has_visual:
            raise ValueError("learner.deep=true is of visual prompts: set learner.prompt=visual or both")
        if self.per_class and not self.has_text:
            raise ValueError("learner.per_class=true is of text prompts: set learner.prompt=text or both")
        if self.candidates and self.quirks == "release":
            raise ValueError("learner.quirks=release is of GRIP's release, which has no candidates; leave one of them")

    @property
    def kinds(self) -> tuple[str, ...]:
        """What is learnt: `text`, `visual` or both."""
        return ("text", "visual") if self.prompt == "both" else (self.prompt,)

    @property
    def has_text(self) -> bool:
        """Whether a text prompt is learnt."""
        return self.prompt != "visual"

    @property
    def has_visual(self) -> bool:
        """Whether a visual prompt is learnt."""
        return self.prompt != "text"

    @property
    def needs_images(self) -> bool:
        """Whether synthetic images are used at all."""
        return self.rounds > 0 and (self.auxiliary != "none" or self.synthetic_weight > 0)

    @property
    def as_released(self) -> bool:
        """Whether the release's faults are kept."""
        return self.quirks == "release"

    @property
    def goes_on(self) -> bool:
        """Whether a round begins with the prompt of the one before; in the release text prompts do, unasked."""
        return self.warm_start or (self.as_released and self.prompt == "text")

    @property
    def drawn_batch(self) -> int:
        """Synthetic images of a step."""
        if not self.synthetic_weight:
            return 0
        return self.batch_size if self.synthetic_batch is None else self.synthetic_batch
