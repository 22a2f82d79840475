"""Names settings of a command line that cannot change the result of the chosen method."""

import re
from collections.abc import Collection, Sequence

IMAGE_SETTINGS = (
    "llm", "diffuser", "prototype", "selection", "calibration", "prompts_per_class", "images_per_prompt", "noise",
    "prompt_order_seed", "prompt_pool", "encoder2", "encoder_weights",
)  # fmt: skip
"""Settings that only a method with synthetic images uses."""
PROMPT_SETTINGS = ("llm", "noise", "prompt_order_seed", "prompt_pool")
"""Settings that have no effect on images that exist already."""
PAIR_SETTINGS = ("encoder_weights",)
"""Settings of two encoders."""
TEXT_SETTINGS = ("llm", "prompts_per_class", "prompt_order_seed", "prompt_pool")
"""Settings of a text side whose sentences a language model writes, which needs no image."""
TRAINING_SETTINGS = ("student", "prompt_tuning", "paradigm")
"""Settings of methods that train."""

_KEY = re.compile(r"[+~]*([\w.@/]+)=?")


def unused_overrides(overrides: Sequence[str], unused: Collection[str]) -> list[str]:
    """Returns the overrides that belong to unused settings.

    Args:
        overrides: Overrides of Hydra, such as `llm.temperature=0.5`.
        unused: Names of config groups and values.
    """
    matching: list[str] = []
    for override in overrides:
        match = _KEY.match(override)
        if match and re.split(r"[.@/]", match[1])[0] in unused:
            matching.append(override)
    return matching
