"""Defines the inputs of prompt tuning: images, towers, and its content key."""

from dataclasses import dataclass

from lgclip.encoder.base import Encoder
from lgclip.encoder.precision import decided
from lgclip.encoder.scales import FULL_IMAGE, Scales
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.stages.context import RunContext
from lgclip.stages.extract import encode
from lgclip.store.keys import key_inputs
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.paradigms import Paradigm
from lgclip.training.prompt_tuning.pool import PromptTuningData, check_apart
from lgclip.training.prompt_tuning.pseudo_labelling import images_of_class
from lgclip.training.task import TrainingInputs


@dataclass(frozen=True)
class PromptTuningSetup:
    """Holds the recipe, the encoder and the data of a prompt tuning.

    Args:
        config: The recipe.
        encoder: Encoder whose towers are used.
        data: The training data.

    Raises:
        ValueError: If the recipe is incompatible with the encoder or the images.
    """

    config: PromptTuningConfig
    encoder: Encoder
    data: PromptTuningData

    def __post_init__(self) -> None:
        config = self.config
        data = self.data
        check_towers(config, self.encoder, data.scales)
        # Called for its errors alone.
        if config.needs_images:
            data.synthetic_indices(config.synthetic_images)
        # All rounds are checked now: a pool that is too small for the last one would otherwise fail after hours.
        for turn in range(1, config.rounds + 1):
            images_of_class(config, turn, len(data.class_split.unlabelled), len(data.class_split.targets))

    def inputs(self) -> dict[str, object]:
        """Returns everything that the prompts depend on."""
        return {
            "prompt_tuning": key_inputs(self.config),
            "encoder": self.encoder.inputs(),
            "ground": self.data.inputs(synthetic_labels=self.config.needs_images),
            "schema": STORE_SCHEMA,
        }

    @classmethod
    def create(
        cls, config: PromptTuningConfig, paradigm: Paradigm, inputs: TrainingInputs, context: RunContext
    ) -> "tuple[PromptTuningSetup, list[int]]":
        """Prepares a setup on the unlabelled pool of a run, and extracts missing features.

        Args:
            config: The recipe.
            paradigm: The available labels.
            inputs: The parts of the run.
            context: Runs the stages.

        Returns:
            The setup, and the true class of each unlabelled image, which `PromptTraining` takes as `hidden`.

        Raises:
            ValueError: If these are incompatible.
        """
        encoder = inputs.encoder.on(context.device)
        check_towers(config, encoder, inputs.scales)
        # From here on it costs: checks come first, then generation, then encoding.
        pool = inputs.data.unlabeled_pool
        check_apart(pool, inputs.data.evaluated)
        synthetic_images = inputs.synthetic_images() if config.needs_images else None
        title = "features of the pool"
        texts = inputs.texts() if inputs.texts else None
        streams, readable = encode(
            context, pool, encoder, inputs.scales, synthetic_images=synthetic_images, title=title, texts=texts
        )
        data = PromptTuningData.create(streams.streams, readable, paradigm, inputs.scales)
        if config.align_synthetic and config.needs_images:
            data = data.aligned()
        unlabelled: list[int] = data.class_split.unlabelled.tolist()
        # The true labels are returned separately, so that the setup cannot learn from them.
        return cls(config, encoder, data), [readable.labels[place] for place in unlabelled]


def check_towers(config: PromptTuningConfig, encoder: Encoder, scales: Scales) -> None:
    """Checks that prompts can be tuned with an encoder, before hours of generation.

    Args:
        config: The recipe.
        encoder: Encoder whose towers are used.
        scales: Views of an image.

    Raises:
        ValueError: If they cannot.
    """
    encoder.prompt_key(*config.kinds)
    # The encoder's arithmetic is used without a loss scaler, and in fp16 the gradients of cosines over 0.01
    # underflow.
    if decided(encoder.precision) == "fp16":
        raise ValueError("encoder.precision=fp16: gradients are too small for it; choose bf16 or fp32")
    # Crops would have to be encoded again in each step, as many times as there are views.
    if config.has_visual and scales.views != (FULL_IMAGE,):
        raise ValueError(
            f"prompt_tuning.modality={config.modality}: a visual prompt is tuned on full images, and scales has "
            f"the views "
            f"{', '.join(scales.views)}; choose scales=single"
        )
