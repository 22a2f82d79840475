"""Checks the values of a config against the method of an evaluation: rejects some, warns of those without effect."""

import logging

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from lgclip.methods.base import Classifier
from lgclip.runtime.terminal import single_line
from lgclip.runtime.unused_settings import (
    IMAGE_SETTINGS,
    PAIR_SETTINGS,
    PROMPT_SETTINGS,
    TEXT_SETTINGS,
    TRAINING_SETTINGS,
    unused_overrides,
)
from lgclip.stages.parts import RunParts
from lgclip.store.image_formats import check_stored
from lgclip.training.task import TrainingConfig

log = logging.getLogger(__name__)

_USED_BY = {"student": {"student"}, "prompt_tuning": {"prompt_tuning", "paradigm"}}
"""Training settings by the name of the method that uses them."""


def check_method(cfg: DictConfig, method: Classifier) -> None:
    """Rejects `paths.images`, `checkpoint`, `membership` and `transduction` where they do not fit the method.

    Args:
        cfg: The composed config.
        method: The method that it describes.

    Raises:
        ValueError: If a value does not fit.
    """
    recipe = method.trained
    if recipe is not None:
        check_stored(cfg.paths.images, f"method={cfg.method.name} trains on them")
    if cfg.membership and not (isinstance(recipe, TrainingConfig) and recipe.knows_members):
        raise ValueError("membership=True is asked of a student: use method=student")
    if cfg.membership and cfg.transduction:
        raise ValueError("membership=True compares probabilities of each image by itself: set transduction=none")
    if cfg.checkpoint is not None and recipe is None:
        raise ValueError(
            f"checkpoint={cfg.checkpoint} is asked of a student or a prompt: use method=student or method=prompt_tuning"
        )


def warn_of_unused(cfg: DictConfig, parts: RunParts, method: Classifier) -> None:
    """Warns of settings on the command line that cannot change the result: they would look like an ablation."""
    unused: set[str] = {*TRAINING_SETTINGS} - _USED_BY.get(cfg.method.name, set())
    if not parts.encoder.parts():
        unused.update(PAIR_SETTINGS)
    if not parts.encoder.has_text:
        unused.add("text")
    needs_images = bool(method.needs_images)
    reads_prompts = parts.encoder.has_text and parts.text.generator(parts.llm) is not None
    used_by_text = set(TEXT_SETTINGS if reads_prompts else ())
    if not needs_images:
        unused.update(set(IMAGE_SETTINGS) - used_by_text)
    elif not parts.diffuser.needs_prompts:
        unused.update(set(PROMPT_SETTINGS) - used_by_text)
    without_effect = unused_overrides(HydraConfig.get().overrides.task, unused)
    if without_effect:
        reason = "" if needs_images else ", which uses no synthetic images"
        log.warning("no effect on method=%s%s: %s", cfg.method.name, reason, single_line(" ".join(without_effect)))
