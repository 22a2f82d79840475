"""Defines the interface of prompt generators: class names in, prompts for image generation out."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch

from lgclip.runtime.hub import snapshot
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.cost_log import Tokens
from lgclip.store.keys import key_inputs
from lgclip.types import TargetClass


class Task(NamedTuple):
    """Describes a class that lacks prompts.

    Attributes:
        target_class: The class.
        requested: Total number of prompts, including existing ones.
        existing: Existing prompts; they stay, and stay first.
        turn: Rounds already used: the next one is seeded with this number.
    """

    target_class: TargetClass
    requested: int
    existing: tuple[str, ...] = ()
    turn: int = 0


class GeneratedPrompts(NamedTuple):
    """Holds the prompts of a class once a generator is done with it.

    Attributes:
        prompts: At least as many as requested, existing ones first.
        turn: Rounds used for them.
        tokens: Tokens that a language model used this time; None if there is none, or it does not report them.
    """

    prompts: list[str]
    turn: int = 0
    tokens: Tokens | None = None


class PromptError(ValueError):
    """Reports that a generator did not provide enough usable prompts for a class.

    Attributes:
        prompts: Those that it provided, which are stored.
        turn: Rounds used for them.
        tokens: As in `GeneratedPrompts`.
    """

    def __init__(self, message: str, prompts: Sequence[str] = (), turn: int = 0, tokens: Tokens | None = None) -> None:
        super().__init__(message)
        self.prompts = list(prompts)
        self.turn = turn
        self.tokens = tokens


class PromptWriter(Protocol):
    """Generates prompts, with its model in memory."""

    def __call__(self, tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
        """Yields the index and prompts of each task, or the error why there are too few, as soon as it is done.

        The prompts of a class depend on the class, its existing prompts and the seed, not on the other classes.
        """
        ...


class PromptGenerator(ABC):
    """Describes how prompts are generated, without weights, and is hashed into keys; `load` loads its model.

    Attributes:
        needs_images: Whether it makes prompts from real training images, not from class names only.
        prompts_from: Origin of its prompts, for the data-leakage audit: `class_names`, `captions`, `file` (of unknown
            authorship); `unknown` unless a class declares it.
    """

    needs_images: ClassVar[bool] = False
    prompts_from: ClassVar[str] = "unknown"

    @property
    def form_name(self) -> str | None:
        """Returns the name of its prompts' form, as results and tables show it; None if the prompts have no form."""
        return None

    @property
    def items_per_call(self) -> int:
        """Returns the number of classes (of a captioner: of images) per call of the loaded generator."""
        return 1

    @property
    def server(self) -> str:
        """Returns the name of the server that runs the model; empty if the run's own device does."""
        return ""

    @property
    def falls_back(self) -> bool:
        """Returns whether a class that a model does not describe gets template sentences instead of an error."""
        return False

    def check(self, target_classes: Sequence[TargetClass], count: int) -> None:
        """Raises before anything loads, if prompts for some classes obviously cannot be generated.

        Args:
            target_classes: All classes.
            count: Number of prompts per class.
        """
        return

    def check_weights(self) -> None:
        """Checks the files of a local model before anything is generated; the default checks nothing.

        Raises:
            ValueError: If a file is missing or damaged.
        """
        return None

    def repositories(self) -> list[tuple[str, str | None]]:
        """Returns the hub repositories that it loads from, each with its revision."""
        return []

    def download(self) -> None:
        """Downloads what `load` needs to the hub's cache; loads nothing.

        Raises:
            HubError: If the hub cannot be reached or refuses.
        """
        for repository, revision in self.repositories():
            snapshot(repository, revision)

    def waits_for(self) -> str:
        """Returns the requirement that only the user can provide, such as a key; empty if there is none."""
        return ""

    @abstractmethod
    def load(self, device: torch.device) -> PromptWriter:
        """Loads the generator with its model to `device`."""

    def inputs(self, target_class: TargetClass, seed: int) -> dict[str, object]:
        """Returns everything that the prompts of one class depend on."""
        return {
            "prompt_generator": key_inputs(self),
            **target_class.identity(),
            "context": target_class.context,
            "seed": seed,
            "schema": STORE_SCHEMA,
        }
