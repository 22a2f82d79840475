"""The second stage: every device draws its share of the images that are missing."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import UInt8
from lightning import LightningModule
from torch.utils.data import DataLoader

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.base import Brush, Drawn, Missing, Pictures, image_id
from lgclip.diffuser.faults import Fault
from lgclip.image_store import ImageStore
from lgclip.ledger import Part
from lgclip.shard_index import Member
from lgclip.shares import own_share

CPU_IMAGES, CPU_PIXELS = 10, 512 * 512
"""Images of a pass on a CPU, and their pixels, at most: more at once are a tenth faster there at best (30 of the small
pipeline), and take memory, and as long where few are wanted."""

WRITERS = 4
"""Threads that encode and write a batch's images."""


class Painter(Protocol):
    """What draws: see `diffuser.pipeline.Diffuser`."""

    @property
    def batch_size(self) -> int: ...
    @property
    def size(self) -> int | None: ...
    @property
    def retries(self) -> int: ...
    def inputs(self) -> dict[str, object]: ...
    def load(self, device: torch.device) -> Brush: ...


class Drawing(LightningModule):
    """Prompts to images.

    An image is drawn up to `retries` times more if something is wrong with it, each time with the
    next derived seed. Every attempt has a key of its own and leaves either its image or a marker of
    its fault, so no attempt is made twice; more `retries`, or a marker taken away, let it go on.

    Args:
        diffuser: Who draws.
        root: The store's folder.
        subjects: The classes.
        prompts: The images wanted.
        seed: The run's seed.
    """

    unit = "image"
    tokens = None

    def __init__(
        self, diffuser: Painter, root: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], seed: int
    ) -> None:
        super().__init__()
        self.diffuser, self.subjects, self.wanted, self.run_seed = diffuser, subjects, list(prompts), seed
        self.store = ImageStore(root, diffuser.inputs())
        self._first = [image_id(self.store.key, prompt, seed) for prompt in self.wanted]
        self.brush: Brush | None = None
        self._lists = False
        self.allow_zero_length_dataloader_with_multiple_devices = True  # what is missing may all be another's share

    def _id(self, at: int, attempt: int) -> str:
        return image_id(self.store.key, self.wanted[at], self.run_seed, attempt) if attempt else self._first[at]

    def _failed(self, at: int) -> list[Fault]:
        """What was wrong with the attempts made so far, up to the first without a fault."""
        faults: list[Fault] = []
        while len(faults) <= self.diffuser.retries:
            name = self._id(at, len(faults))
            fault = None if self.store.has(name) else self.store.fault(name)
            if fault not in tuple(Fault):  # drawn well, not drawn yet, or a marker that cannot be read
                break
            faults.append(Fault(fault))
        return faults

    def missing(self) -> list[int]:
        """Places of the images that are still to be drawn; what failed for good is not among them."""
        self.store.refresh()
        there = self.store.places(self._first)
        return [at for at, place in enumerate(there) if place is None and self._todo(at) is not None]

    def parts(self) -> list[Part]:
        """What is kept account of: images, whatever each took to come out well."""
        return [Part("images", self.unit, f"images/{self.store.key}", self.store.ledger, len(self.wanted))]

    def lacking(self) -> list[int]:
        """How many images are missing."""
        return [len(self.missing())]

    def _todo(self, at: int) -> int | None:
        """The attempt to make next; None if there is none to make."""
        attempt = len(self._failed(at))
        done = attempt > self.diffuser.retries or self.store.has(self._id(at, attempt))
        return None if done else attempt

    def pictures(self) -> Pictures:
        first = self.store.places(self._first)
        failed = [[] if place else self._failed(at) for at, place in enumerate(first)]
        there = [at for at, faults in enumerate(failed) if len(faults) <= self.diffuser.retries]
        ids = [self._id(at, len(failed[at])) for at in there]
        gone = [Missing(self.wanted[at], tuple(f)) for at, f in enumerate(failed) if len(f) > self.diffuser.retries]
        return Pictures(
            self.store.key,
            self.subjects,
            [self.wanted[at] for at in there],
            ids,
            [first[at] or self._place(name) for at, name in zip(there, ids, strict=True)],
            gone,
            drawn=True,
        )

    def _place(self, name: str) -> Path | Member:
        return self.store.places([name])[0] or self.store.path(name)

    def on_predict_start(self) -> None:
        self.brush = self.diffuser.load(self.device)

    def on_predict_end(self) -> None:
        self.brush = None
        self.store.close()

    def list_shards(self) -> None:
        """Writes the manifest of the shards, on the first device alone, if it may have changed.

        To be called when every device is done. It is no part of the predict, of which a device does nothing if all
        that is missing is another's share.
        """
        if self._lists:
            self.store.list_shards()

    def predict_dataloader(self) -> DataLoader[Any]:
        self._lists = self.trainer.is_global_zero
        todo = set(self.missing())
        places: Any = [at for at in own_share(self.trainer, len(self.wanted), self._pass) if at in todo]
        # Whole passes: a pass is what it costs, however few of its images are wanted.
        batch_size = -(-self.diffuser.batch_size // self._pass) * self._pass
        return DataLoader(places, batch_size=batch_size, collate_fn=list)

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        assert self.brush is not None
        todo = {at: attempt for at in batch if (attempt := self._todo(at)) is not None}
        while todo:
            places, attempts = list(todo), list(todo.values())
            drawn = self._drawn(places, attempts)
            with ThreadPoolExecutor(WRITERS) as writers:  # leaving it waits for all; an error comes out of `list`
                list(writers.map(self._keep, places, attempts, drawn.pixels, drawn.faults))
            self.store.flush()
            todo = {
                at: attempt + 1
                for at, attempt, fault in zip(places, attempts, drawn.faults, strict=True)
                if fault is not None and attempt < self.diffuser.retries
            }

    def _drawn(self, places: list[int], attempts: list[int]) -> Drawn:
        """Draws in passes of one size; the last image fills up what is too short.

        A pass of another size may round otherwise in the last bit, of which a trained model makes a grey level here and
        there: so an image would depend on how many devices and images there were.
        """
        assert self.brush is not None
        parts, size = [], self._pass
        for start in range(0, len(places), size):
            at, tries = places[start : start + size], attempts[start : start + size]
            fill = size - len(at)
            wanted = [self.wanted[place] for place in [*at, *[at[-1]] * fill]]
            drawn = self.brush.draw(wanted, self.run_seed, [*tries, *[tries[-1]] * fill])
            parts.append(Drawn(drawn.pixels[: len(at)], drawn.faults[: len(at)]))
        return Drawn(
            np.concatenate([part.pixels for part in parts]), [fault for part in parts for fault in part.faults]
        )

    @property
    def _pass(self) -> int:
        if self.device.type != "cpu":
            return self.diffuser.batch_size
        return max(1, min(CPU_IMAGES, CPU_PIXELS // (self.diffuser.size or 512) ** 2))

    def _keep(self, at: int, attempt: int, pixels: UInt8[np.ndarray, "h w 3"], fault: Fault | None) -> None:
        about = {**self.wanted[at]._asdict(), "seed": self.run_seed, "attempt": attempt}
        if fault is None:
            self.store.put(self._id(at, attempt), pixels, about)
        else:
            self.store.put_fault(self._id(at, attempt), fault, about)
