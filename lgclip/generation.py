"""The two generating stages: every device writes, then draws, its share of what is missing."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import LightningModule
from PIL import Image
from torch.utils.data import DataLoader

from lgclip.batch import Prompt
from lgclip.diffuser import Brush, Diffuser, image_id, image_prompts
from lgclip.prompts import Pen, PromptWriter
from lgclip.stages import Stages
from lgclip.store import ImageStore, PromptStore, write_whole


class Writing(LightningModule):
    """Class names to prompts.

    Args:
        writer: Who writes.
        store: Where the prompts are kept.
        class_names: The classes.
        count: Prompts wanted for each.
        seed: The run's seed.
    """

    unit = "class"

    def __init__(
        self, writer: PromptWriter, store: PromptStore, class_names: Sequence[str], count: int, seed: int
    ) -> None:
        super().__init__()
        self.writer, self.store, self.count, self.run_seed = writer, store, count, seed
        self.class_names = list(class_names)
        self.pen: Pen | None = None

    def _inputs(self, class_index: int) -> dict[str, object]:
        return self.writer.inputs(class_index, self.class_names[class_index], self.run_seed)

    def texts(self) -> list[list[str]]:
        """What is written so far, by class; at most `count` of each."""
        return [self.store.get(self._inputs(c))[: self.count] for c in range(len(self.class_names))]

    def missing(self) -> list[int]:
        """Classes with fewer prompts than wanted."""
        return [c for c, texts in enumerate(self.texts()) if len(texts) < self.count]

    def on_predict_start(self) -> None:
        self.pen = self.writer.load(self.device)

    def on_predict_end(self) -> None:
        self.pen = None

    def predict_dataloader(self) -> DataLoader[Any]:
        share = range(self.trainer.global_rank, len(self.class_names), self.trainer.world_size)
        todo = set(self.missing())
        return DataLoader([c for c in share if c in todo], batch_size=None)  # pyright: ignore[reportArgumentType]

    def predict_step(self, batch: int, batch_idx: int) -> None:
        assert self.pen is not None
        texts = self.pen(batch, self.class_names[batch], self.count, self.run_seed)
        self.store.put(self._inputs(batch), texts)


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


_LEAST = {"prompts_per_class": 1, "images_per_prompt": 1, "seed": 0, "workers": 0}


def whole_numbers(values: Mapping[str, object]) -> dict[str, int]:
    """The run's whole numbers, checked before any model loads.

    Args:
        values: The run's config, by name; what is no count of a run is left out.

    Raises:
        ValueError: If one is not a whole number or too small.
    """
    checked: dict[str, int] = {}
    for name, least in _LEAST.items():
        if name in values:
            value = values[name]
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name}={value}: it must be a whole number of at least {least}")
            checked[name] = value
    return checked


def draw(
    stages: Stages,
    class_names: Sequence[str],
    writer: PromptWriter,
    diffuser: Diffuser,
    root: Path,
    *,
    prompts_per_class: int,
    images_per_prompt: int,
    seed: int,
) -> Drawing:
    """Class names to prompts to images, each stage only if something is missing.

    Args:
        stages: Runs the stages.
        class_names: The classes.
        writer: Who writes.
        diffuser: Who draws.
        root: The store's folder.
        prompts_per_class: Prompts of each class.
        images_per_prompt: Images of each prompt.
        seed: Of the prompts and of the images' noise.

    """
    writing = Writing(writer, PromptStore(root), class_names, prompts_per_class, seed)
    stages.complete("prompts", writing, len(class_names))
    drawing = Drawing(diffuser, root, image_prompts(writing.texts(), prompts_per_class, images_per_prompt), seed)
    stages.complete("images", drawing, len(drawing.ids))
    return drawing


def write_list(path: Path, drawing: Drawing, class_names: Sequence[str]) -> None:
    """Writes one JSON line an image: class, name, prompt, repeat and the file it lies in."""
    lines = [
        json.dumps(
            {
                "class": prompt.class_index,
                "name": class_names[prompt.class_index],
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "file": str(drawing.store.path(image)),
            },
            ensure_ascii=False,
        )
        for prompt, image in zip(drawing.prompts, drawing.ids, strict=True)
    ]
    with write_whole(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
