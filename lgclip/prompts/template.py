"""Fixed sentences, no language model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lgclip.batch import Subject
from lgclip.prompts.base import Pen, PromptWriter


@dataclass(frozen=True)
class Templates(PromptWriter):
    """Fixed sentences with the class name in them; more prompts than sentences repeat them in turn.

    Args:
        templates: Sentences; `{}` is the class name.

    Raises:
        ValueError: If there is no sentence, or one without `{}`.
    """

    templates: Sequence[str] = ("a photo of a {}.",)

    def __post_init__(self) -> None:
        if not self.templates:
            raise ValueError("llm.templates=[]: give at least one sentence with {} in it")
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"llm.templates: {template!r} has no {{}} for the class name")

    def load(self, device: torch.device) -> Pen:
        def write(subject: Subject, count: int, seed: int) -> list[str]:
            return [self.templates[i % len(self.templates)].replace("{}", subject.name) for i in range(count)]

        return write
