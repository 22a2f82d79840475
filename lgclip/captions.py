"""The captions of a run's real training images, as prompts that can be traced back to their images."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from lgclip.caption_store import CaptionStore
from lgclip.damage import Findings, OnBadImage
from lgclip.datasets.base import Dataset
from lgclip.datasets.selected import First
from lgclip.prompts.captioner import ImageWriter
from lgclip.prompts.length import CLIP_TOKENS, cut_tokens
from lgclip.store import StoreError

log = logging.getLogger(__name__)

_SHOWN = 5


class Traced(NamedTuple):
    """A prompt and where it comes from.

    Attributes:
        text: The prompt.
        source: Id of the image whose caption is in it; empty if none is.
        stands_in: Whether it is of the basic form because nothing was said of its image.
    """

    text: str
    source: str
    stands_in: bool


class Captions:
    """What is said of the first training images of each class.

    Stands where `writing.Writing` does for a writer that sees no images. A class with fewer images than are asked for
    has fewer prompts.

    Args:
        training: The real training images.
        writer: Who captions.
        root: The store's folder.
        count: Images wanted of each class.

    Raises:
        ValueError: If a class has no training image.
    """

    def __init__(self, training: Dataset, writer: ImageWriter, root: Path, count: int) -> None:
        self.subjects, self.writer, self.count = training.subjects, writer, count
        self.images = First(training, count)
        self.store = CaptionStore(root, writer.captioned_by(), training.source())
        self.findings = Findings(root, training.source())
        there = Counter(self.images.labels)
        empty = [f"{s.class_index} ({s.name!r})" for s in self.subjects if not there[s.class_index]]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(self.subjects)} classes of {training.name} have no training image: "
                f"{', '.join(empty[:_SHOWN])}; add images, or use an llm that writes from class names"
            )

    def missing(self) -> list[int]:
        """Places in `images` of those that lack a caption and may be had."""
        if not self.writer.reads_captions:
            return []
        self.store.refresh()
        lacking = [at for at, image in enumerate(self.images.ids) if self.store.get(image) is None]
        known = self.findings.reasons() if lacking else {}
        return [at for at in lacking if self.images.ids[at] not in known]

    def unread(self) -> dict[int, str]:
        """Why each image that has no caption cannot be read, by its place in `images`."""
        if not self.writer.reads_captions:
            return {}
        lacking = [at for at, image in enumerate(self.images.ids) if self.store.get(image) is None]
        known = self.findings.reasons() if lacking else {}
        return {at: known[self.images.ids[at]] for at in lacking if self.images.ids[at] in known}

    def add_known(self) -> None:
        """Stores what the captioner knows without looking.

        Raises:
            ValueError: If it cannot look, and an image has no caption.
        """
        if self.missing():
            self.store.add(self.writer.known(self.images))

    def check(self, on_bad_image: OnBadImage) -> None:
        """Says what is missing once everything that can be captioned is.

        Args:
            on_bad_image: What to do about images that cannot be read.

        Raises:
            ValueError: If images cannot be read and each must be, a class loses all its images, or nothing is said of
                an image and that is not allowed.
        """
        unread = self.unread()
        if unread and on_bad_image is OnBadImage.RAISE:
            told = "; ".join(f"{self._named(at)}: {why}" for at, why in list(unread.items())[:_SHOWN])
            raise ValueError(
                f"{len(unread):,} of {len(self.images):,} training images cannot be read: {told}"
                f"{_and_more(len(unread))}. Mend them or move them away, or leave them out by on_bad_image=skip; all "
                "others are captioned and stored"
            )
        self._warn(self.traced(), unread)

    @rank_zero_only
    def _warn(self, traced: Sequence[Sequence[Traced]], unread: Mapping[int, str]) -> None:
        """Says once how the prompts are other than asked for."""
        if unread:
            log.warning(
                "%d of %d training images cannot be read and have no prompt: %s", len(unread), len(self.images),
                "; ".join(self._named(at) for at in list(unread)[:_SHOWN]) + _and_more(len(unread)),
            )  # fmt: skip
        short = [len(own) for own in traced if len(own) < self.count]
        if short:
            log.warning(
                "%d of %d classes have fewer than %d training images, the smallest %d: each gives as many prompts as "
                "it has images, %d in all",
                len(short), len(traced), self.count, min(short), sum(map(len, traced)),
            )  # fmt: skip
        stand_ins = sum(prompt.stands_in for own in traced for prompt in own)
        if stand_ins:
            log.warning("nothing is said of %d training images: they have the basic form", stand_ins)
        texts = [prompt.text for own in traced for prompt in own if prompt.source]
        cut = [tokens for tokens in cut_tokens(texts) if tokens]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that CLIP's text towers read; up to %d are cut off",
                len(cut), len(texts), CLIP_TOKENS, max(cut),
            )  # fmt: skip

    def traced(self) -> list[list[Traced]]:
        """The prompts of each class, in the order of the training images.

        Raises:
            StoreError: If an image that can be read has no caption in the store.
            ValueError: If nothing is said of an image and that is not allowed, or no image of a class can be read.
        """
        return self._traced

    @cached_property
    def _traced(self) -> list[list[Traced]]:
        if self.missing():
            raise StoreError(
                f"{len(self.missing())} training images have no caption in the store; run it again to caption them"
            )
        unread = self.unread()
        prompts: list[list[Traced]] = [[] for _ in self.subjects]
        mute: list[int] = []
        for at, (image, label) in enumerate(zip(self.images.ids, self.images.labels, strict=True)):
            if at in unread:
                continue
            caption = (self.store.get(image) or "") if self.writer.reads_captions else ""
            if self.writer.reads_captions and not caption:
                mute.append(at)
            text = self.writer.prompt(self.subjects[label], caption)
            prompts[label].append(Traced(text, image if caption else "", self.writer.reads_captions and not caption))
        if mute and self.writer.empty == "error":
            raise ValueError(
                f"nothing is said of {len(mute):,} of {len(self.images):,} training images: "
                f"{'; '.join(map(self._named, mute[:_SHOWN]))}{_and_more(len(mute))}. Take another captioner or a "
                "larger llm.max_new_tokens, or give them the basic form by llm.empty=name; all captions are stored"
            )
        for subject, own in zip(self.subjects, prompts, strict=True):
            if not own:
                raise ValueError(
                    f"class {subject.class_index} ({subject.name!r}): not one of its training images can be read; mend "
                    "one at least"
                )
        return prompts

    def texts(self) -> list[list[str]]:
        """The prompts of each class, in the order of the training images."""
        return [[prompt.text for prompt in own] for own in self.traced()]

    def standing_in(self) -> list[list[int]]:
        """Places of each class's prompts that are of the basic form because nothing was said of their image."""
        return [[place for place, prompt in enumerate(own) if prompt.stands_in] for own in self.traced()]

    def counts(self) -> list[int]:
        """How many prompts each class has."""
        return list(map(len, self.traced()))

    def caption(self, image: str) -> str:
        """The caption of an image, by its id; empty if there is none."""
        return self.store.get(image) or ""

    def where(self, image: str) -> str:
        """Where an image lies, by its id."""
        return self.images.where(self._places[image])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {image: at for at, image in enumerate(self.images.ids)}

    def _named(self, at: int) -> str:
        label = self.images.labels[at]
        return f"{self.images.where(at)}, class {label} ({self.subjects[label].name!r})"


def _and_more(count: int) -> str:
    return f"; and {count - _SHOWN} more" if count > _SHOWN else ""
