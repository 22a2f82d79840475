"""Writers of prompts: class names in, sentences to draw them from out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch

from lgclip.batch import Subject
from lgclip.identity import SCHEMA, inputs_of
from lgclip.ledger import Tokens


class Task(NamedTuple):
    """A class that lacks prompts.

    Attributes:
        subject: The class.
        wanted: Prompts, those that are there included.
        have: Prompts that are there; they stay, and stay first.
        turn: Rounds that were spent on them: the next is asked with this number's seed.
    """

    subject: Subject
    wanted: int
    have: tuple[str, ...] = ()
    turn: int = 0


class Written(NamedTuple):
    """What a class has once a writer is done with it.

    Attributes:
        prompts: At least as many as were wanted, those that were there first.
        turn: Rounds that were spent on them.
        tokens: What a language model read and wrote for them this time; None if there is none, or it does not tell.
    """

    prompts: list[str]
    turn: int = 0
    tokens: Tokens | None = None


class PromptError(ValueError):
    """A writer could not give enough usable prompts of a class.

    Attributes:
        prompts: Those that it gave, which are kept.
        turn: Rounds that were spent on them.
        tokens: As in `Written`.
    """

    def __init__(self, message: str, prompts: Sequence[str] = (), turn: int = 0, tokens: Tokens | None = None) -> None:
        super().__init__(message)
        self.prompts, self.turn, self.tokens = list(prompts), turn, tokens


class Pen(Protocol):
    """A writer that is ready to write, its model in memory."""

    def __call__(self, tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Written | PromptError]]:
        """Yields each task's place and its prompts, or why there are too few, as soon as it is done.

        What a class gets depends on the class, on what it has and on the seed, not on the others.
        """
        ...


class PromptWriter(ABC):
    """How prompts come to be: a light description, hashed into keys; `load` brings its model.

    Attributes:
        needs_images: Whether it makes prompts of real training images, not of class names alone.
    """

    needs_images: ClassVar[bool] = False

    @property
    def at_once(self) -> int:
        """Classes that are given to the pen together."""
        return 1

    @property
    def elsewhere(self) -> str:
        """What the model runs on if it is not the run's own device; else empty."""
        return ""

    @property
    def falls_back(self) -> bool:
        """Whether a class that a model does not describe gets template sentences instead of an error."""
        return False

    def check(self, subjects: Sequence[Subject], count: int) -> None:
        """Raises if it is plain, before anything loads, that some classes cannot be written for.

        Args:
            subjects: All classes.
            count: Prompts wanted for each.
        """
        return

    def repositories(self) -> list[tuple[str, str | None]]:
        """Repositories of the hub that it loads from, each with its revision."""
        return []

    def waits_for(self) -> str:
        """What it needs that only the user can give, such as a key; empty if nothing."""
        return ""

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
