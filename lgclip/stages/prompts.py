"""Implements the prompt generation stage: every device generates its shard of the missing prompts."""

import logging
from collections.abc import Sequence
from itertools import chain
from typing import Any

from lightning import Trainer
from torch.utils.data import DataLoader

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptGenerator, PromptWriter, Task
from lgclip.prompts.chat import ChatPromptGenerator
from lgclip.prompts.filtering import CLIP_TOKENS, cut_tokens
from lgclip.prompts.template import sentences
from lgclip.stages.sharding import ShardedStage
from lgclip.store.cost_log import StoreUsage, Tokens, both
from lgclip.store.keys import content_key, key_inputs
from lgclip.store.prompts import PromptEntry, PromptStore
from lgclip.types import TargetClass

log = logging.getLogger(__name__)

FALLBACK = ("a photo of a {}[, {context}].",)
"""Fallback for a class that a language model does not describe, if that is allowed."""

_SPELT_OUT = 20
"""Maximum number of classes with reasons in an error message; the others are only named."""


class PromptGenerationStage(ShardedStage):
    """Generates prompts from class names.

    A class is stored as soon as it is done. A failing class affects no other: its prompts so far are stored with
    the reason, and a single error at the end lists all of them.

    Args:
        prompt_generator: The prompt generator.
        store: Store of the prompts.
        target_classes: The classes.
        count: Number of prompts per class.
        seed: The run's seed.
    """

    unit = "class"

    def __init__(
        self,
        prompt_generator: PromptGenerator,
        store: PromptStore,
        target_classes: Sequence[TargetClass],
        count: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.prompt_generator = prompt_generator
        self.store = store
        self.count = count
        self.run_seed = seed
        self.target_classes = list(target_classes)
        self.writer: PromptWriter | None = None
        self.tokens: Tokens | None = None
        self._stored_entries: list[PromptEntry] | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True  # another device may have all missing items

    def _inputs(self, class_index: int) -> dict[str, object]:
        return self.prompt_generator.inputs(self.target_classes[class_index], self.run_seed)

    def _entries(self) -> list[PromptEntry]:
        """Returns the stored entry of each class; read again until all are complete."""
        if self._stored_entries is None:
            # Other devices write to the same store, so an incomplete answer must not be kept.
            entries = [self.store.read(self._inputs(c)) for c in range(len(self.target_classes))]
            if any(len(self._texts(entry)) < self.count for entry in entries):
                return entries
            self._stored_entries = entries
        return self._stored_entries

    def _texts(self, entry: PromptEntry) -> list[str]:
        texts = list(entry.prompts)
        if self.prompt_generator.falls_back:
            # Last, so that a model's own prompts are used first and a smaller count may do without the template.
            texts += entry.fallback
        return texts[: self.count]

    def keys(self) -> list[str]:
        """Returns the key of each class's entry in the store."""
        return [content_key(self._inputs(c)) for c in range(len(self.target_classes))]

    def texts(self) -> list[list[str]]:
        """Returns the prompts so far, by class; at most `count` of each."""
        return [self._texts(entry) for entry in self._entries()]

    def templated(self) -> list[int]:
        """Returns for each class how many of `texts` are template sentences in place of a language model's."""
        return [max(0, len(self._texts(entry)) - len(entry.prompts)) for entry in self._entries()]

    def fallback_positions(self) -> list[range]:
        """Returns the positions of those template sentences, by class: they come last."""
        return [
            range(len(texts) - last, len(texts)) for texts, last in zip(self.texts(), self.templated(), strict=True)
        ]

    def missing(self) -> list[int]:
        """Returns the classes with fewer prompts than requested."""
        return [c for c, texts in enumerate(self.texts()) if len(texts) < self.count]

    def parts(self) -> list[StoreUsage]:
        """Returns the stage's costs: sentences, since a class with more of them costs more."""
        prompt_generator = key_inputs(self.prompt_generator)
        used = self.count * len(self.target_classes)
        cost_log = self.store.cost_log(prompt_generator)
        return [
            StoreUsage(
                "prompts",
                "sentence",
                f"prompts/{content_key(prompt_generator)}",
                cost_log,
                used,
                self.prompt_generator.server,
            )
        ]

    def lacking(self) -> list[int]:
        """Returns the number of missing sentences."""
        return [sum(max(0, self.count - len(texts)) for texts in self.texts())]

    def on_predict_start(self) -> None:
        # Zero so far. With the first result that does not report its tokens it becomes None, which means unknown.
        self.tokens = Tokens()
        self.prompt_generator.check(self.target_classes, self.count)
        self.writer = self.prompt_generator.load(self.device)

    def predict_dataloader(self) -> DataLoader[Any]:
        # Shares of all classes and not of what is missing: each device sees the store at another moment, and two
        # lists of what is missing could overlap.
        shard = range(self.trainer.global_rank, len(self.target_classes), self.trainer.world_size)
        todo = set(self.missing())
        return self.shard_loader(0, [c for c in shard if c in todo])

    def shard_loader(self, loader: int, places: Sequence[int]) -> DataLoader[Any]:
        """Returns batches of class indices."""
        items: Any = list(places)
        return DataLoader(items, batch_size=self.prompt_generator.items_per_call, collate_fn=list)

    @property
    def is_sharded(self) -> bool:
        # What a server generates costs no device here, and what needs no model takes microseconds.
        return isinstance(self.prompt_generator, ChatPromptGenerator) and not self.prompt_generator.server

    def missing_by_loader(self) -> list[list[int]]:
        return [self.missing()]

    def group_size(self, loader: int, device: str) -> int:
        return self.prompt_generator.items_per_call

    def item_name(self, loader: int, place: int) -> str:
        return f"class {place} ({self.target_classes[place].name!r})"

    def content_keys(self) -> list[str]:
        return [content_key(key_inputs(self.prompt_generator))]

    def finish_shards(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.teardown("predict")

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        assert self.writer is not None
        # A class that was interrupted goes on from the prompts that it has, and with the next turn's random numbers.
        before = [self.store.read(self._inputs(c)) for c in batch]
        tasks = [
            Task(self.target_classes[c], self.count, tuple(entry.prompts), entry.turn)
            for c, entry in zip(batch, before, strict=True)
        ]
        # One by one as they come, so that an interruption loses the classes in work alone.
        for place, outcome in self.writer(tasks, self.run_seed):
            self.tokens = both(self.tokens, outcome.tokens)
            self._keep(batch[place], outcome)

    def _keep(self, class_index: int, outcome: GeneratedPrompts | PromptError) -> None:
        failure = ""
        fallback = []
        if isinstance(outcome, PromptError):
            failure = str(outcome)
            if self.prompt_generator.falls_back:
                # The template only fills up: what the model did write counts.
                lacking = self.count - len(outcome.prompts)
                fallback = sentences(FALLBACK, self.target_classes[class_index], lacking)
        self.store.put(
            self._inputs(class_index), outcome.prompts, turn=outcome.turn, fallback=fallback, failure=failure
        )

    def on_predict_end(self) -> None:
        self.writer = None

    def teardown(self, stage: str) -> None:
        # Every device comes here, also one with an empty shard; the others' failures are in the store by then.
        self.trainer.strategy.barrier()
        entries = self._entries()
        failures = [entry.failure for entry in entries if len(self._texts(entry)) < self.count]
        if failures:
            raise PromptError(_named(failures, len(entries)))
        if self.trainer.is_global_zero:
            self._warn(entries)

    def _warn(self, entries: Sequence[PromptEntry]) -> None:
        """Warns once about what the images will not show: truncated prompts, and template sentences."""
        prompts = list(chain.from_iterable(map(self._texts, entries)))
        cut = [tokens for tokens in cut_tokens(prompts) if tokens]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that CLIP's text towers read; up to %d are cut off",
                len(cut), len(prompts), CLIP_TOKENS, max(cut),
            )  # fmt: skip
        classes = [c for c, entry in enumerate(entries) if len(self._texts(entry)) > len(entry.prompts)]
        if classes:
            log.warning(
                "%d classes have template sentences in place of prompts that %s did not return: %s",
                len(classes), type(self.prompt_generator).__name__, ", ".join(map(str, classes)),
            )  # fmt: skip


def _named(failures: Sequence[str], total: int) -> str:
    """Returns one error for all failed classes, with possible fixes."""
    reasons = [reason or "a class was not written" for reason in failures]
    # A reason begins with `class N ('name'): `, of which the name is enough once twenty were spelled out.
    remaining = [reason.partition("):")[0] + ")" for reason in reasons[_SPELT_OUT:]]
    likewise = ""
    if remaining:
        likewise = "; likewise " + ", ".join(remaining)
    return (
        f"{len(reasons)} of {total} classes have too few prompts; the other classes are stored. "
        f"{'; '.join(reasons[:_SPELT_OUT])}{likewise}. "
        "Run it again to go on from there, ask for fewer prompts, raise llm.max_rounds or llm.temperature, reword "
        "llm.instruction, set llm.allow_fallback=true for template sentences in their place, or use llm=template"
    )
