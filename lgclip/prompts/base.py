"""Writers of prompts: class name in, sentences to draw it from out."""

from abc import ABC, abstractmethod
from typing import Protocol

import torch

from lgclip.batch import Subject
from lgclip.identity import SCHEMA, inputs_of


class PromptError(ValueError):
    """A writer could not give enough usable prompts."""


class Pen(Protocol):
    """A writer that is ready to write, its model in memory."""

    def __call__(self, subject: Subject, count: int, seed: int) -> list[str]:
        """At least `count` prompts of one class; asked for more, it gives the same ones first."""
        ...


class PromptWriter(ABC):
    """How prompts come to be: a light description, hashed into keys; `load` brings its model."""

    @abstractmethod
    def load(self, device: torch.device) -> Pen:
        """The writer with its model on `device`."""

    def inputs(self, subject: Subject, seed: int) -> dict[str, object]:
        """Everything that the prompts of one class depend on."""
        return {
            "writer": inputs_of(self),
            "class": subject.name,
            "class_index": subject.class_index,
            "context": subject.context,
            "seed": seed,
            "schema": SCHEMA,
        }
