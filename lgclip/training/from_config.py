"""Builds the training that a config selects, and what a run provides to it."""

from functools import partial

from omegaconf import DictConfig

from lgclip.runtime.instantiate import build, target_of
from lgclip.stages.context import RunContext
from lgclip.stages.generate import generate_images
from lgclip.stages.parts import RunParts
from lgclip.stages.text import complete_texts
from lgclip.training.task import TrainingConfig, TrainingInputs


def training_from_config(cfg: DictConfig) -> TrainingConfig:
    """Returns the training that `train.py` runs.

    Args:
        cfg: The composed config.

    Raises:
        ValueError: If the method trains nothing, or no recipe is selected.
    """
    if issubclass(target_of(cfg.method), TrainingConfig):
        return build(cfg.method, _convert_="all")
    if "trained" not in cfg.method:
        raise ValueError(
            f"method={cfg.name} trains nothing: choose student, prompt_tuning, diffuser_lora or a recipe such as "
            "tiny_encoder"
        )
    if not cfg.method.trained:  # the config of student=none is empty
        raise ValueError(f"method={cfg.name} needs a recipe: student=tiny, small_set, release, probe or finetune")
    return build(cfg.method.trained, _convert_="all")


def training_inputs(parts: RunParts, context: RunContext) -> TrainingInputs:
    """Returns the inputs of a training; synthetic images and sentences are computed when they are needed."""
    return TrainingInputs(
        data=parts.data,
        encoder=parts.encoder,
        scales=parts.scales,
        diffuser=parts.diffuser,
        synthetic_images=partial(generate_images, context, parts),
        images_per_class=parts.counts.prompts_per_class,
        texts=partial(complete_texts, context, parts, has_prompts=False, compares=False),
    )
