"""What LoRA weights are tuned on, what is said of the images, and what all of that depends on."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lgclip.datasets.base import Dataset
from lgclip.diffuser.adapter import check_peft
from lgclip.diffuser.base import ImageSource, Pictures
from lgclip.diffuser.pipeline import Diffuser
from lgclip.identity import SCHEMA, inputs_of
from lgclip.lora_spec import LoraTuning
from lgclip.tuning_pool import Unlabelled

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines whose U-Net can be tuned."""

_OF_DRAWING = {
    "steps", "guidance", "negative_prompt", "options", "precision", "lora", "lora_scale", "noise", "tiling"
}  # fmt: skip
"""Fields of a `Diffuser` that say how images are drawn, and change nothing in a tuning."""


@dataclass(frozen=True)
class Adaptation:
    """What is tuned, and on what.

    Args:
        tuning: The recipe.
        diffuser: The pipeline.
        pool: The images, whose labels nobody looks at.
        prior: What the untuned model drew from the classes' prompts; needed if `prior_weight` is above 0.

    Raises:
        ValueError: If the pipeline is none that can be tuned, or there are no images.
    """

    tuning: LoraTuning
    diffuser: ImageSource
    pool: Dataset = field(repr=False)
    prior: Pictures | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_tunable(self.diffuser)
        if not len(self.pool.ids):
            raise ValueError(f"dataset={self.pool.name}: there is no image to tune on")
        if self.tuning.prior_weight and self.prior is None:
            raise ValueError(f"method.prior_weight={self.tuning.prior_weight} takes drawn images, and there are none")

    @classmethod
    def of(
        cls,
        tuning: LoraTuning,
        diffuser: ImageSource,
        training: Callable[[], Dataset],
        draw: Callable[[], Pictures],
    ) -> "Adaptation":
        """An adaptation whose images are had now: what cannot be tuned is said first, before hours of drawing.

        Args:
            tuning: The recipe.
            diffuser: The pipeline.
            training: Opens the unlabelled images.
            draw: Draws the prior's images; called only for a prior.
        """
        check_tunable(diffuser)
        pool = training()
        return cls(tuning, diffuser, pool, draw() if tuning.prior_weight else None)

    @property
    def pipeline(self) -> Diffuser:
        """What is tuned."""
        assert isinstance(self.diffuser, Diffuser)
        return self.diffuser

    @property
    def _prior(self) -> Pictures | None:
        return self.prior if self.tuning.prior_weight else None

    @property
    def _said(self) -> list[str]:
        """What may be said of the unlabelled images."""
        return self.tuning.sentences(self.pool.context, self.pool.class_names, self.pool.templates[0])

    def sentences(self) -> list[str]:
        """All that is said of any image, each sentence once."""
        drawn = [] if self._prior is None else [prompt.text for prompt in self._prior.prompts]
        return list(dict.fromkeys([*self._said, *drawn]))

    def images(self) -> list[Unlabelled]:
        """The images, and which of the sentences may be said of each."""
        place = {sentence: at for at, sentence in enumerate(self.sentences())}
        pool, any_of = self.pool, [place[sentence] for sentence in self._said]
        found = [Unlabelled("pool", pool.ids, pool.image, [any_of] * len(pool.ids), flip=self.tuning.flip)]
        if (prior := self._prior) is not None:
            own = [[place[prompt.text]] for prompt in prior.prompts]
            found.append(Unlabelled("prior", prior.ids, prior.image, own, self.tuning.prior_weight))
        return found

    def inputs(self) -> dict[str, object]:
        """Everything that the weights depend on."""
        pipeline = {name: value for name, value in inputs_of(self.pipeline).items() if name not in _OF_DRAWING}
        return {
            "tuning": inputs_of(self.tuning),
            "pipeline": pipeline,
            "said": _hash(self._said),
            "pool": _hash(self.pool.ids),
            "prior": None if self._prior is None else _hash(self._prior.ids),
            "schema": SCHEMA,
        }


def check_tunable(diffuser: ImageSource) -> None:
    """Refuses what `method=diffuser_lora` cannot tune, before anything is drawn or loaded.

    Raises:
        ValueError: If it is no pipeline, one without a U-Net that is known, or has LoRA weights already.
    """
    if not isinstance(diffuser, Diffuser):
        raise ValueError(
            f"method=diffuser_lora tunes a pipeline, and {type(diffuser).__name__} is none: choose diffuser=tiny, "
            "sd15, sdxl and the like"
        )
    if diffuser.lora is not None:
        raise ValueError(
            f"diffuser.lora={diffuser.lora}: tuning begins with the pipeline alone; set it to null, and to the folder "
            "that comes out when you draw"
        )
    check_peft("method=diffuser_lora")
    if (kind := diffuser.kind()) not in KINDS:
        raise ValueError(
            f"diffuser.model={diffuser.model}: {kind} cannot be tuned here, only {' and '.join(KINDS)}; train its LoRA "
            "with diffusers' own scripts and name it by diffuser.lora"
        )


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(json.dumps(text).encode() + b"\n")
    return f"sha256:{digest.hexdigest()[:32]}"
