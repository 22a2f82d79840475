"""The first stage: every device writes its share of the prompts that are missing."""

from collections.abc import Sequence
from typing import Any

from lightning import LightningModule
from torch.utils.data import DataLoader

from lgclip.batch import Subject
from lgclip.prompts.base import Pen, PromptWriter
from lgclip.store import PromptStore


class Writing(LightningModule):
    """Class names to prompts.

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

    def _inputs(self, class_index: int) -> dict[str, object]:
        return self.writer.inputs(self.subjects[class_index], self.run_seed)

    def texts(self) -> list[list[str]]:
        """What is written so far, by class; at most `count` of each."""
        return [self.store.get(self._inputs(c))[: self.count] for c in range(len(self.subjects))]

    def missing(self) -> list[int]:
        """Classes with fewer prompts than wanted."""
        return [c for c, texts in enumerate(self.texts()) if len(texts) < self.count]

    def on_predict_start(self) -> None:
        self.pen = self.writer.load(self.device)

    def on_predict_end(self) -> None:
        self.pen = None

    def predict_dataloader(self) -> DataLoader[Any]:
        share = range(self.trainer.global_rank, len(self.subjects), self.trainer.world_size)
        todo = set(self.missing())
        return DataLoader([c for c in share if c in todo], batch_size=None)  # pyright: ignore[reportArgumentType]

    def predict_step(self, batch: int, batch_idx: int) -> None:
        assert self.pen is not None
        texts = self.pen(self.subjects[batch], self.count, self.run_seed)
        self.store.put(self._inputs(batch), texts)
