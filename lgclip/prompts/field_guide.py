"""Describes the classes of the fine world, in place of a language model that knows them."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptGenerator, PromptWriter, Task
from lgclip.types import TargetClass


@dataclass(frozen=True)
class FieldGuide(PromptGenerator):
    """Provides true sentences on the classes of `dataset=shapes_fine`, also on those whose names say nothing.

    Stands in for a language model that knows the classes: the small one of the package knows no made-up names.

    Raises:
        PromptError: If a class is not one of the fine world's.
    """

    key_name: ClassVar[str] = "FieldGuide"
    # The sentences are about the names; nothing of an image is read.
    prompts_from: ClassVar[str] = "class_names"

    @property
    def items_per_call(self) -> int:
        return 1024  # nothing to wait for

    def check(self, target_classes: Sequence[TargetClass], count: int) -> None:
        from lgclip.tiny.fine_world import FINE_KINDS

        known = {fine_kind.name for fine_kind in FINE_KINDS}
        unknown = [target_class.name for target_class in target_classes if target_class.name not in known]
        if unknown:
            raise PromptError(
                f"llm=field_guide: it has no entry for {unknown[0]!r} ({len(unknown)} of {len(target_classes)} classes "
                "are missing); it describes the classes of dataset=shapes_fine only. Choose another llm"
            )

    def load(self, device: torch.device) -> PromptWriter:
        from lgclip.tiny.fine_world import FINE_KINDS, guide_sentence

        entries = {fine_kind.name: fine_kind for fine_kind in FINE_KINDS}

        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts]]:
            for place, task in enumerate(tasks):
                name = task.target_class.name
                prompts = list(task.existing)
                for number in range(len(prompts), task.requested):
                    # A generator for each sentence: it depends on class, seed and number alone.
                    digest = hashlib.sha256(f"{seed}/{number}/{name}".encode()).digest()
                    rng = np.random.Generator(np.random.PCG64(int.from_bytes(digest[:8])))
                    prompts.append(guide_sentence(entries[name], rng))
                yield place, GeneratedPrompts(prompts)

        return write
