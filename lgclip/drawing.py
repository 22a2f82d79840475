"""The second stage: every device draws its share of the images that are missing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule
from PIL import Image
from torch.utils.data import DataLoader

from lgclip.batch import Prompt
from lgclip.diffuser.base import Brush, image_id
from lgclip.diffuser.pipeline import Diffuser
from lgclip.store import ImageStore


class Drawing(LightningModule):
    """Prompts to images.

    Args:
        diffuser: Who draws.
        root: The store's folder.
        prompts: The images wanted.
        seed: The run's seed.
    """

    unit = "image"

    def __init__(self, diffuser: Diffuser, root: Path, prompts: Sequence[Prompt], seed: int) -> None:
        super().__init__()
        self.diffuser, self.prompts, self.run_seed = diffuser, list(prompts), seed
        self.store = ImageStore(root, diffuser.inputs())
        self.ids = [image_id(self.store.key, prompt, seed) for prompt in self.prompts]
        self.brush: Brush | None = None

    def missing(self) -> list[int]:
        """Places of the images that are not there."""
        return [at for at, name in enumerate(self.ids) if not self.store.path(name).exists()]

    def image(self, at: int) -> Image.Image:
        """The image at a place, from the store."""
        with Image.open(self.store.path(self.ids[at])) as image:
            return image.convert("RGB")

    def on_predict_start(self) -> None:
        self.brush = self.diffuser.load(self.device)

    def on_predict_end(self) -> None:
        self.brush = None

    def predict_dataloader(self) -> DataLoader[Any]:
        share = range(self.trainer.global_rank, len(self.ids), self.trainer.world_size)
        todo = set(self.missing())
        places: Any = [at for at in share if at in todo]
        return DataLoader(places, batch_size=self.diffuser.batch_size, collate_fn=list)

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        assert self.brush is not None
        prompts = [self.prompts[at] for at in batch]
        for at, prompt, pixels in zip(batch, prompts, self.brush(prompts, self.run_seed), strict=True):
            self.store.put(self.ids[at], pixels, {**prompt._asdict(), "seed": self.run_seed})
