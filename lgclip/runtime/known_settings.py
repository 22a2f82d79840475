"""Finds settings that nothing reads: `++promts_per_class=3` adds a value to the config and changes no result."""

import json
import re
from collections.abc import Iterator
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from lgclip.runtime.value_types import check_name

GROUPS = (
    "llm", "dataset", "diffuser", "encoder", "encoder2", "scales", "text", "prototype", "selection", "calibration",
    "align", "transduction", "pools", "method", "student", "paradigm", "prompt_tuning", "ood", "trainer", "executor",
    "logger",
)  # fmt: skip
"""Config groups; the values of each are checked when its part is built."""
VALUES = (
    "prompts_per_class", "images_per_prompt", "prompt_order_seed", "prompt_pool", "seed", "noise", "encoder_weights",
    "precision", "objective", "rerun", "plan", "save_classifier", "checkpoint", "membership", "on_bad_image", "tile",
    "workers", "paths",
)  # fmt: skip
"""Values of `conf/evaluate.yaml` that belong to no group."""
TRAINING_VALUES = ("name", "ema", "checkpoint_every", "corpus")
"""Values that `conf/train.yaml` adds."""
BUILD_VALUES = ("rejection",)
"""Values that `conf/build.yaml` adds, of `lgclip build`."""
PATHS = ("store", "images", "build")
"""Values of `paths`; `build` is the folder of trainings of small models."""

_REFERENCE = re.compile(r"\$\{\.*(\w+)")


def check_known_settings(cfg: DictConfig) -> None:
    """Checks that every value at the top of a config, and in `paths`, is one that a run reads.

    Further values are allowed if an interpolation uses them, such as `${my_note}` in `hydra.run.dir`.

    Args:
        cfg: The run's config.

    Raises:
        ValueError: If nothing reads a value.
    """
    known = (*GROUPS, *VALUES, *TRAINING_VALUES, *BUILD_VALUES)
    unknown = [str(name) for name in cfg if name not in known]
    if unknown:
        referenced = set(_references(cfg))
        for name in unknown:
            if name not in referenced:
                check_name(name, known, "", "the config, which --cfg job prints,")
    for name in cfg.get("paths") or ():
        check_name(str(name), PATHS, "paths", "the config")


def _references(cfg: DictConfig) -> Iterator[str]:
    """Yields the first part of each key that an interpolation refers to, in the config and in Hydra's overrides."""
    configs: list[Any] = [cfg]
    if HydraConfig.initialized():
        configs.append(HydraConfig.get().overrides.hydra)
    for config in configs:
        text = json.dumps(OmegaConf.to_container(config, resolve=False), default=str)
        yield from _REFERENCE.findall(text)
