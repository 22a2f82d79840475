"""The first stage: every device writes its share of the prompts that are missing."""

import logging
from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch.utils.data import DataLoader

from lgclip.batch import Subject
from lgclip.identity import inputs_of, key_of
from lgclip.ledger import Part, Tokens, both
from lgclip.prompts.base import Pen, PromptError, PromptWriter, Task, Written
from lgclip.prompts.length import CLIP_TOKENS, cut_tokens
from lgclip.prompts.template import sentences
from lgclip.store import PromptEntry, PromptStore

log = logging.getLogger(__name__)

FALLBACK = ("a photo of a {}[, {context}].",)
"""What stands in for a class that a language model does not describe, if that is allowed."""

_SPELT_OUT = 20
"""Classes of an error whose reasons are told; the others are named."""


class Writing(LightningModule):
    """Class names to prompts.

    A class is stored as soon as it is done. A class that fails loses no other: what it has is stored with
    the reason, and one error at the end names them all.

    Args:
        writer: Who writes.
        store: Where the prompts are kept.
        subjects: The classes.
        count: Prompts wanted for each.
        seed: The run's seed.
    """

    unit = "class"

    def __init__(
        self, writer: PromptWriter, store: PromptStore, subjects: Sequence[Subject], count: int, seed: int
    ) -> None:
        super().__init__()
        self.writer, self.store, self.count, self.run_seed = writer, store, count, seed
        self.subjects = list(subjects)
        self.pen: Pen | None = None
        self.tokens: Tokens | None = None
        self._whole: list[PromptEntry] | None = None
        self.allow_zero_length_dataloader_with_multiple_devices = True  # what is missing may all be another's share

    def _inputs(self, class_index: int) -> dict[str, object]:
        return self.writer.inputs(self.subjects[class_index], self.run_seed)

    def _entries(self) -> list[PromptEntry]:
        """What is stored of each class; read again as long as it is not all there."""
        if self._whole is None:
            entries = [self.store.read(self._inputs(c)) for c in range(len(self.subjects))]
            if any(len(self._texts(entry)) < self.count for entry in entries):
                return entries
            self._whole = entries
        return self._whole

    def _texts(self, entry: PromptEntry) -> list[str]:
        return [*entry.prompts, *(entry.fallback if self.writer.falls_back else [])][: self.count]

    def texts(self) -> list[list[str]]:
        """What is written so far, by class; at most `count` of each."""
        return [self._texts(entry) for entry in self._entries()]

    def templated(self) -> list[int]:
        """How many of `texts` are template sentences that stand in for a language model's, by class."""
        return [max(0, len(self._texts(entry)) - len(entry.prompts)) for entry in self._entries()]

    def standing_in(self) -> list[range]:
        """Places of those template sentences, by class: they come last."""
        return [
            range(len(texts) - last, len(texts)) for texts, last in zip(self.texts(), self.templated(), strict=True)
        ]

    def missing(self) -> list[int]:
        """Classes with fewer prompts than wanted."""
        return [c for c, texts in enumerate(self.texts()) if len(texts) < self.count]

    def parts(self) -> list[Part]:
        """What is kept account of: sentences, since a class with more of them costs more."""
        writer = inputs_of(self.writer)
        used = self.count * len(self.subjects)
        ledger = self.store.ledger(writer)
        return [Part("prompts", "sentence", f"prompts/{key_of(writer)}", ledger, used, self.writer.elsewhere)]

    def lacking(self) -> list[int]:
        """How many sentences are missing."""
        return [sum(max(0, self.count - len(texts)) for texts in self.texts())]

    def on_predict_start(self) -> None:
        self.tokens = Tokens()
        self.writer.check(self.subjects, self.count)
        self.pen = self.writer.load(self.device)

    def predict_dataloader(self) -> DataLoader[Any]:
        share = range(self.trainer.global_rank, len(self.subjects), self.trainer.world_size)
        todo = set(self.missing())
        places: Any = [c for c in share if c in todo]
        return DataLoader(places, batch_size=self.writer.at_once, collate_fn=list)

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        assert self.pen is not None
        before = [self.store.read(self._inputs(c)) for c in batch]
        tasks = [
            Task(self.subjects[c], self.count, tuple(entry.prompts), entry.turn)
            for c, entry in zip(batch, before, strict=True)
        ]
        for place, outcome in self.pen(tasks, self.run_seed):
            self.tokens = both(self.tokens, outcome.tokens)
            self._keep(batch[place], outcome)

    def _keep(self, class_index: int, outcome: Written | PromptError) -> None:
        failure, fallback = "", []
        if isinstance(outcome, PromptError):
            failure = str(outcome)
            if self.writer.falls_back:
                lacking = self.count - len(outcome.prompts)
                fallback = sentences(FALLBACK, self.subjects[class_index], lacking)
        self.store.put(
            self._inputs(class_index), outcome.prompts, turn=outcome.turn, fallback=fallback, failure=failure
        )

    def on_predict_end(self) -> None:
        self.pen = None

    def teardown(self, stage: str) -> None:
        # Every device comes here, also one without a share; the others' failures are in the store by then.
        self.trainer.strategy.barrier()
        entries = self._entries()
        failures = [entry.failure for entry in entries if len(self._texts(entry)) < self.count]
        if failures:
            raise PromptError(_named(failures, len(entries)))
        if self.trainer.is_global_zero:
            self._warn(entries)

    def _warn(self, entries: Sequence[PromptEntry]) -> None:
        """Says once what the images will not show: cut ends, and template sentences."""
        prompts = [text for entry in entries for text in self._texts(entry)]
        cut = [tokens for tokens in cut_tokens(prompts) if tokens]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that CLIP's text towers read; up to %d are cut off",
                len(cut), len(prompts), CLIP_TOKENS, max(cut),
            )  # fmt: skip
        classes = [c for c, entry in enumerate(entries) if len(self._texts(entry)) > len(entry.prompts)]
        if classes:
            log.warning(
                "%d classes have template sentences in place of prompts that %s did not give: %s",
                len(classes), type(self.writer).__name__, ", ".join(map(str, classes)),
            )  # fmt: skip


def _named(failures: Sequence[str], total: int) -> str:
    """One error for every class that failed, with what can be done."""
    told = [reason or "a class was not written" for reason in failures]
    more = [reason.partition("):")[0] + ")" for reason in told[_SPELT_OUT:]]
    return (
        f"{len(told)} of {total} classes have too few prompts; the other classes are stored. "
        f"{'; '.join(told[:_SPELT_OUT])}{'; likewise ' + ', '.join(more) if more else ''}. "
        "Run it again to go on from there, ask for fewer prompts, raise llm.max_rounds or llm.temperature, reword "
        "llm.instruction, set llm.allow_fallback=true for template sentences in their place, or use llm=template"
    )
