"""Validates how many prompts and images a run uses; imports no torch, so that a wrong number fails at once."""

from collections.abc import Mapping
from dataclasses import dataclass

AUTO = "auto"
"""Value of `workers` that leaves their number to a measurement."""

_MINIMUM = {
    "prompts_per_class": 1, "prompt_pool": 1, "images_per_prompt": 1, "seed": 0, "workers": 0, "prompt_order_seed": 0
}  # fmt: skip


@dataclass(frozen=True)
class ImageCounts:
    """Holds the number of images and prompts of a run.

    Attributes:
        prompts_per_class: Number of prompts per class.
        images_per_prompt: Number of images per prompt.
        seed: Seed of the prompts and of the images' noise.
        prompt_pool: Number of prompts that are permuted.
        prompt_order_seed: Seed of each class's prompt order; None for the order of generation.
    """

    prompts_per_class: int
    images_per_prompt: int = 1
    seed: int = 0
    prompt_pool: int = 10
    prompt_order_seed: int | None = None

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> "ImageCounts":
        """Validates the counts of a config before any model loads.

        Args:
            values: The run's config, by name.

        Raises:
            ValueError: If one is not an integer or too small, or the pool has fewer prompts than are used.
        """
        minimum = dict(_MINIMUM)
        if values.get("prompt_order_seed") is None:
            del minimum["prompt_order_seed"]
        checked: dict[str, int] = {}
        for name, least in minimum.items():
            if name not in values:
                continue
            value = values[name]
            if name == "workers" and value == AUTO:
                continue
            # In Python True is an int, and `seed=true` would be seed 1.
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                choice = f", or {AUTO}" if name == "workers" else ""
                raise ValueError(f"{name}={value}: it must be an integer of at least {least}{choice}")
            checked[name] = value
        checked.pop("workers", None)  # checked with the others, but it counts no images
        counts = cls(**checked)
        if counts.prompt_order_seed is not None and counts.prompt_pool < counts.prompts_per_class:
            raise ValueError(
                f"prompt_pool={counts.prompt_pool}: it must be at least prompts_per_class={counts.prompts_per_class} "
                "to choose them from"
            )
        return counts

    @property
    def written_prompts(self) -> int:
        """Returns the number of prompts to generate per class: more than are used if their order is permuted."""
        if self.prompt_order_seed is None:
            return self.prompts_per_class
        return self.prompt_pool
