"""What is to be drawn: one prompt, one noise and one content key an image."""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from jaxtyping import UInt8

from lgclip.batch import Prompt
from lgclip.identity import key_of


class Brush(Protocol):
    """A diffuser that is ready to draw, its pipeline in memory."""

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        """One image a prompt."""
        ...


def noise_seed(prompt: Prompt, seed: int) -> int:
    """Seed of an image's noise: of its class, sentence, repeat and the run's seed, nothing else."""
    text = f"{seed}/{prompt.class_index}/{prompt.repeat}/{prompt.text}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def image_id(diffuser_key: str, prompt: Prompt, seed: int) -> str:
    """Content key of one synthetic image."""
    return key_of({"diffuser": diffuser_key, "seed": seed, **prompt._asdict()})


def image_prompts(texts: Sequence[Sequence[str]], prompts_per_class: int, images_per_prompt: int) -> list[Prompt]:
    """The images to draw: each class's first prompts, each `images_per_prompt` times.

    Image j of a prompt has the same noise whatever the two numbers are, so a larger set holds the
    smaller one's images.

    Args:
        texts: Sentences of each class.
        prompts_per_class: How many of them to use.
        images_per_prompt: Images of each.
    """
    wanted: list[Prompt] = []
    for class_index, sentences in enumerate(texts):
        repeats: dict[str, int] = {}
        for text in sentences[:prompts_per_class]:
            for _ in range(images_per_prompt):
                wanted.append(Prompt(class_index, text, repeats.setdefault(text, 0)))
                repeats[text] += 1
    return wanted
