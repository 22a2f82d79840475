"""Fixed sentences, no language model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from lgclip.batch import Subject
from lgclip.prompts.base import Pen, PromptWriter, Task, Written
from lgclip.prompts.wording import fill


def sentences(templates: Sequence[str], subject: Subject, count: int) -> list[str]:
    """`count` sentences; more than there are templates repeat them in turn.

    Args:
        templates: Sentences; `{}` is the class name, `[, {context}]` is optional.
        subject: The class.
        count: How many.
    """
    texts = [fill(template.replace("{}", "{name}"), subject) for template in templates]
    return [texts[i % len(texts)] for i in range(count)]


@dataclass(frozen=True)
class Templates(PromptWriter):
    """Fixed sentences with the class name in them; more prompts than sentences repeat them in turn.

    Args:
        templates: Sentences; `{}` is the class name. `[, {context}]` says what kind of thing it is if the
            data set says so, and vanishes otherwise.

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

    @property
    def at_once(self) -> int:
        return 1024  # nothing to wait for

    def load(self, device: torch.device) -> Pen:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Written]]:
            for place, task in enumerate(tasks):
                yield place, Written(sentences(self.templates, task.subject, task.wanted))

        return write
