"""Turns captions of a run's real training images into prompts that can be traced back to their images."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from lightning.pytorch.utilities import rank_zero_only

from lgclip.datasets.base import Dataset
from lgclip.datasets.subsets import First
from lgclip.datasets.unreadable import OnBadImage, UnreadableImages
from lgclip.prompts.caption_shuffle import ImageOfClass, deal_captions
from lgclip.prompts.captioner import CaptionGenerator
from lgclip.prompts.filtering import CLIP_TOKENS, cut_tokens
from lgclip.store.captions import CaptionStore
from lgclip.store.root import StoreError

log = logging.getLogger(__name__)

_MAX_LISTED = 5


class Traced(NamedTuple):
    """Holds a prompt with its source image.

    Attributes:
        text: The prompt.
        source: Id of the image whose caption it contains; empty if it contains none.
        stands_in: Whether it has the basic form because its image's caption is empty.
    """

    text: str
    source: str
    stands_in: bool


class Captions:
    """Provides captions of the first training images of each class.

    It replaces `PromptGenerationStage` for a prompt generator that uses images. A class with fewer images than
    requested has fewer prompts.

    Args:
        training: The real training images.
        prompt_generator: The captioner.
        root: The store's folder.
        count: Number of images per class.

    Raises:
        ValueError: If a class has no training image, or the images cannot be captioned.
    """

    def __init__(self, training: Dataset, prompt_generator: CaptionGenerator, root: Path, count: int) -> None:
        self.target_classes = training.target_classes
        self.prompt_generator = prompt_generator
        self.count = count
        # The first ones, not a random sample: with a larger count the captions of a smaller one are used again.
        self.images = First(training, count)
        self.store = CaptionStore(root, prompt_generator.captioned_by(), training.source())
        self.unreadable = UnreadableImages(root, training.source())
        counts = Counter(self.images.labels)
        # Checked here, before hours of captioning: without a prompt a class has no synthetic image at all.
        empty = [f"{s.class_index} ({s.name!r})" for s in self.target_classes if not counts[s.class_index]]
        if empty:
            raise ValueError(
                f"{len(empty)} of {len(self.target_classes)} classes of {training.name} have no training image: "
                f"{', '.join(empty[:_MAX_LISTED])}; add images, or use an llm that writes from class names"
            )
        if prompt_generator.reads_captions:
            prompt_generator.check_images(self.images)

    def missing(self) -> list[int]:
        """Returns the indices in `images` of readable images without a caption."""
        if not self.prompt_generator.reads_captions:
            return []
        # Other devices and other runs write to the same store.
        self.store.refresh()
        lacking = self._lacking()
        unreadable = self.unreadable.reasons() if lacking else {}
        return [place for place in lacking if self.images.ids[place] not in unreadable]

    def _lacking(self) -> list[int]:
        # None, not empty: an empty string is a caption too, of an image for which the model returned nothing.
        return [place for place, image in enumerate(self.images.ids) if self.store.get(image) is None]

    def unread(self) -> dict[int, str]:
        """Returns the reason why each image without a caption cannot be read, by its index in `images`."""
        if not self.prompt_generator.reads_captions:
            return {}
        lacking = self._lacking()
        unreadable = self.unreadable.reasons() if lacking else {}
        return {place: unreadable[self.images.ids[place]] for place in lacking if self.images.ids[place] in unreadable}

    def add_available(self) -> None:
        """Stores the captions that are available without a model.

        Raises:
            ValueError: If there is no captioning model, and an image has no caption.
        """
        if self.missing():
            self.store.add(self.prompt_generator.available_captions(self.images))

    def check(self, on_bad_image: OnBadImage) -> None:
        """Reports unreadable images and empty captions once everything else is captioned.

        Args:
            on_bad_image: Policy for unreadable images.

        Raises:
            ValueError: If images are unreadable and the policy does not allow it, a class loses all its images, or a
                caption is empty and that is not allowed.
        """
        unread = self.unread()
        if unread and on_bad_image is OnBadImage.RAISE:
            reasons = "; ".join(
                f"{self._named(place)}: {reason}" for place, reason in list(unread.items())[:_MAX_LISTED]
            )
            raise ValueError(
                f"{len(unread):,} of {len(self.images):,} training images cannot be read: {reasons}"
                f"{_and_more(len(unread))}. Repair them or move them away, or leave them out by on_bad_image=skip; all "
                "others are captioned and stored"
            )
        self._warn(self.with_sources(), unread)

    @rank_zero_only
    def _warn(self, with_sources: Sequence[Sequence[Traced]], unread: Mapping[int, str]) -> None:
        """Warns once about prompts that differ from the request."""
        if unread:
            log.warning(
                "%d of %d training images cannot be read and have no prompt: %s", len(unread), len(self.images),
                "; ".join(self._named(place) for place in list(unread)[:_MAX_LISTED]) + _and_more(len(unread)),
            )  # fmt: skip
        # Fewer prompts make fewer synthetic images of a class, and results of unequal classes are hard to compare, so
        # it is said at once.
        short = [len(prompts) for prompts in with_sources if len(prompts) < self.count]
        if short:
            log.warning(
                "%d of %d classes have fewer than %d training images, the smallest %d: each gives as many prompts as "
                "it has images, %d in all",
                len(short), len(with_sources), self.count, min(short), sum(map(len, with_sources)),
            )  # fmt: skip
        prompts = list(chain.from_iterable(with_sources))
        stand_ins = sum(prompt.stands_in for prompt in prompts)
        if stand_ins:
            log.warning("nothing is said of %d training images: they have the basic form", stand_ins)
        # Only prompts with a caption: the basic form is a name with a few words around it.
        texts = [prompt.text for prompt in prompts if prompt.source]
        cut = [tokens for tokens in cut_tokens(texts) if tokens]
        if cut:
            log.warning(
                "%d of %d prompts are longer than the %d tokens that CLIP's text towers read; up to %d are cut off",
                len(cut), len(texts), CLIP_TOKENS, max(cut),
            )  # fmt: skip

    def with_sources(self) -> list[list[Traced]]:
        """Returns the prompts of each class with their source images, in the order of the training images.

        Raises:
            StoreError: If a readable image has no caption in the store.
            ValueError: If a caption is empty and that is not allowed, no image of a class can be read, or one class has
                too many images to deal captions of other classes to.
        """
        return self._traced

    @cached_property
    def _traced(self) -> list[list[Traced]]:
        if self.missing():
            raise StoreError(
                f"{len(self.missing())} training images have no caption in the store; run it again to caption them"
            )
        unread = self.unread()
        prompts: list[list[Traced]] = [[] for _ in self.target_classes]
        mute: list[int] = []
        sources = self._sources(unread)
        for place, (image, label) in enumerate(zip(self.images.ids, self.images.labels, strict=True)):
            if place in unread:
                continue
            caption = ""
            source = sources.get(place, image)
            if self.prompt_generator.reads_captions:
                caption = self.store.get(source) or ""
            is_mute = self.prompt_generator.reads_captions and not caption
            if is_mute:
                mute.append(place)
            text = self.prompt_generator.prompt(self.target_classes[label], caption)
            # A prompt has a source image only if it contains its caption.
            prompts[label].append(Traced(text, source if caption else "", is_mute))
        # After the loop, so that one error names all such images and not the first alone.
        if mute and self.prompt_generator.empty == "error":
            raise ValueError(
                f"nothing is said of {len(mute):,} of {len(self.images):,} training images: "
                f"{'; '.join(map(self._named, mute[:_MAX_LISTED]))}{_and_more(len(mute))}. Take another captioner or a "
                "larger llm.max_new_tokens, or give them the basic form by llm.empty=name; all captions are stored"
            )
        for target_class, of_class in zip(self.target_classes, prompts, strict=True):
            if not of_class:
                raise ValueError(
                    f"class {target_class.class_index} ({target_class.name!r}): not one of its training images can "
                    f"be read; repair "
                    "one at least"
                )
        return prompts

    def _sources(self, unread: Mapping[int, str]) -> dict[int, str]:
        """Returns the image whose caption each image gets where captions are shuffled, by its index in `images`."""
        if self.prompt_generator.shuffle == "none":
            return {}
        places: list[int] = []
        images: list[ImageOfClass] = []
        for place, (image, label) in enumerate(zip(self.images.ids, self.images.labels, strict=True)):
            # An image without a caption has none to give and gets none, so that the error about it names it.
            if place in unread or not self.store.get(image):
                continue
            target_class = self.target_classes[label]
            places.append(place)
            images.append(ImageOfClass(image, target_class.name, target_class.occurrence))
        return dict(zip(places, deal_captions(images, self.prompt_generator.shuffle), strict=True))

    def texts(self) -> list[list[str]]:
        """Returns the prompts of each class, in the order of the training images."""
        return [_texts(prompts) for prompts in self.with_sources()]

    def fallback_positions(self) -> list[list[int]]:
        """Returns the positions of each class's prompts that have the basic form because the caption is empty."""
        return [_stand_ins(prompts) for prompts in self.with_sources()]

    def counts(self) -> list[int]:
        """Returns the number of prompts of each class."""
        return list(map(len, self.with_sources()))

    def caption(self, image: str) -> str:
        """Returns the caption of an image, by its id; empty if there is none."""
        return self.store.get(image) or ""

    def where(self, image: str) -> str:
        """Returns the location of an image, by its id."""
        return self.images.where(self._places[image])

    @cached_property
    def _places(self) -> dict[str, int]:
        return {image: place for place, image in enumerate(self.images.ids)}

    def _named(self, index: int) -> str:
        label = self.images.labels[index]
        return f"{self.images.where(index)}, class {label} ({self.target_classes[label].name!r})"


def _and_more(count: int) -> str:
    if count <= _MAX_LISTED:
        return ""
    return f"; and {count - _MAX_LISTED} more"


def _texts(prompts: Sequence[Traced]) -> list[str]:
    return [prompt.text for prompt in prompts]


def _stand_ins(prompts: Sequence[Traced]) -> list[int]:
    return [place for place, prompt in enumerate(prompts) if prompt.stands_in]
