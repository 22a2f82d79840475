"""Defines the inputs of a LoRA tuning: images, captions, pipeline, and its content key."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import ImageSource, SyntheticImages
from lgclip.diffuser.lora_weights import check_peft
from lgclip.diffuser.pipeline import Diffuser
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import key_inputs
from lgclip.training.lora.config import LoraTuning
from lgclip.training.lora.data import Unlabelled
from lgclip.training.task import TrainingInputs

KINDS = ("StableDiffusionPipeline", "StableDiffusionXLPipeline")
"""Pipelines whose U-Net can be tuned."""

_SAMPLING_ONLY = {
    "steps", "guidance", "negative_prompt", "options", "precision", "lora", "lora_scale", "noise", "tiling",
    "image_format", "quantization",
}  # fmt: skip
"""Fields of a `Diffuser` that affect only the generation of images, not a tuning."""


@dataclass(frozen=True)
class Adaptation:
    """Holds the pipeline and the images of a tuning.

    Args:
        tuning: The recipe.
        diffuser: The pipeline.
        pool: The images, whose labels are not used.
        prior: Images that the untuned model generated from the classes' prompts; needed if `prior_weight` is above 0.

    Raises:
        ValueError: If the pipeline cannot be tuned, or there are no images.
    """

    tuning: LoraTuning
    diffuser: ImageSource
    pool: Dataset = field(repr=False)
    prior: SyntheticImages | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_tunable(self.diffuser)
        if not len(self.pool.ids):
            raise ValueError(f"dataset={self.pool.name}: there is no image to tune on")
        if self.tuning.prior_weight and self.prior is None:
            raise ValueError(
                f"method.prior_weight={self.tuning.prior_weight} takes generated images, and there are none"
            )

    @classmethod
    def of(cls, tuning: LoraTuning, inputs: TrainingInputs) -> "Adaptation":
        """Prepares an adaptation on the training images of a run.

        Args:
            tuning: The recipe.
            inputs: The parts of the run. Unsupported pipelines are rejected first, before hours of generation.
        """
        # `__post_init__` checks it again, but only after the prior's images are generated.
        check_tunable(inputs.diffuser)
        pool = inputs.data.training
        prior = None
        if tuning.prior_weight:
            prior = inputs.synthetic_images()
        return cls(tuning, inputs.diffuser, pool, prior)

    @property
    def pipeline(self) -> Diffuser:
        """Returns the pipeline to tune."""
        assert isinstance(self.diffuser, Diffuser)
        return self.diffuser

    @property
    def _prior(self) -> SyntheticImages | None:
        # Images that count nothing must be neither streamed nor in the key.
        if not self.tuning.prior_weight:
            return None
        return self.prior

    @property
    def _captions(self) -> list[str]:
        """Returns the possible captions of the unlabelled images."""
        return self.tuning.sentences(self.pool.context, self.pool.class_names, self.pool.templates[0])

    def sentences(self) -> list[str]:
        """Returns the distinct captions of all images."""
        texts = self._captions
        if self._prior is not None:
            texts = [*texts, *(prompt.text for prompt in self._prior.prompts)]
        # Each is encoded once, before the first step. A dict instead of a set, which would lose the order.
        return list(dict.fromkeys(texts))

    def images(self) -> list[Unlabelled]:
        """Returns the images, and the indices of the possible captions of each."""
        indices = {sentence: index for index, sentence in enumerate(self.sentences())}
        pool = self.pool
        # The same list for every image: the caption of one cannot depend on its label.
        any_of = [indices[sentence] for sentence in self._captions]
        kinds = [Unlabelled("pool", pool.ids, pool.image, [any_of] * len(pool.ids), flip=self.tuning.flip)]
        if (prior := self._prior) is not None:
            # A generated image has its own prompt, and is not flipped: it is the untuned model's output.
            class_prompts = [[indices[prompt.text]] for prompt in prior.prompts]
            kinds.append(Unlabelled("prior", prior.ids, prior.image, class_prompts, self.tuning.prior_weight))
        return kinds

    def inputs(self) -> dict[str, object]:
        """Returns everything that the weights depend on."""
        # Another guidance or number of steps changes the images but not the weights, which must not be tuned again.
        pipeline = {name: value for name, value in key_inputs(self.pipeline).items() if name not in _SAMPLING_ONLY}
        prior = None
        if self._prior is not None:
            prior = _hash(self._prior.ids)
        # Ids without labels: the key is of what the tuning sees.
        return {
            "tuning": key_inputs(self.tuning),
            "pipeline": pipeline,
            "said": _hash(self._captions),
            "pool": _hash(self.pool.ids),
            "prior": prior,
            "schema": STORE_SCHEMA,
        }


def check_tunable(diffuser: ImageSource) -> None:
    """Rejects what `method=diffuser_lora` cannot tune, before anything is generated or loaded.

    Raises:
        ValueError: If it is not a pipeline, has no supported U-Net, or has LoRA weights already.
    """
    if not isinstance(diffuser, Diffuser):
        raise ValueError(
            f"method=diffuser_lora tunes a pipeline, and {type(diffuser).__name__} is none: choose diffuser=tiny, "
            "sd15, sdxl and the like"
        )
    # The new weights are saved without the old ones under them, so they would fit no pipeline.
    if diffuser.lora is not None:
        raise ValueError(
            f"diffuser.lora={diffuser.lora}: tuning begins without LoRA weights; set it to null, and to the folder "
            "that comes out when you generate images"
        )
    # An optional dependency; `kind()` below may have to read the pipeline's files.
    check_peft("method=diffuser_lora")
    if (kind := diffuser.kind()) not in KINDS:
        raise ValueError(
            f"diffuser.model={diffuser.model}: {kind} cannot be tuned here, only {' and '.join(KINDS)}; train its LoRA "
            "with diffusers' own scripts and name it by diffuser.lora"
        )


def _hash(texts: Sequence[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        # As JSON, because a sentence may hold line breaks, and two lists would run together into the same bytes.
        digest.update(json.dumps(text).encode() + b"\n")
    return f"sha256:{digest.hexdigest()[:32]}"
