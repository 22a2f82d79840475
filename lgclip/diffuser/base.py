"""Defines the interface of image sources, and the synthetic images of a run that later stages use."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image

from lgclip.datasets.base import BadImageError
from lgclip.datasets.image_decoding import read_image
from lgclip.runtime.hub import snapshot
from lgclip.store.image_codec import LOSSLESS
from lgclip.store.keys import content_key
from lgclip.store.shard_index import Member
from lgclip.types import Fault, Prompt, TargetClass


class GeneratedBatch(NamedTuple):
    """Holds a batch of generated images on the device.

    Attributes:
        pixels: The images.
        faults: Fault of each; None for a usable image.
    """

    pixels: UInt8[np.ndarray, "b h w 3"]
    faults: list[Fault | None]


class LoadedPipeline(Protocol):
    """Generates images, with its pipeline in memory."""

    def generate(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> GeneratedBatch:
        """Generates one image per prompt.

        Args:
            prompts: The prompts.
            seed: The run's seed.
            attempts: Number of earlier attempts at each prompt: each attempt has its own noise.
        """
        ...

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        """Generates the first attempt at each prompt, whatever its faults."""
        ...


@runtime_checkable
class Origins(Protocol):
    """Describes the real images that synthetic ones derive from."""

    def caption(self, image: str) -> str:
        """Returns the caption of a real image, by its id."""
        ...

    def where(self, image: str) -> str:
        """Returns the location of a real image, by its id."""
        ...


class Missing(NamedTuple):
    """Describes a requested image that is missing.

    Attributes:
        prompt: Its prompt.
        faults: Fault of each attempt.
    """

    prompt: Prompt
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class SyntheticImages:
    """Holds the synthetic images of a run; only those that could not be generated are listed as `missing`.

    Attributes:
        key: Store key of their features.
        target_classes: The classes.
        prompts: Prompt of each image; its text is empty if unknown.
        ids: Content key of each image.
        paths: File of each image, its location in a shard, or that of its thumbnail; None if neither is stored.
        missing: Requested images that are missing.
        templated: Number of each class's prompts that are template sentences in place of a language model's.
        is_generated: Whether they are in the store: damaged ones are generated again.
        sources: For each image, the id of the real image whose caption was its prompt; empty if there is none.
        origins: Describes those real images; None without captions.
        thumbnail_key: Store key of their thumbnails, where `paths` leads to thumbnails; else empty.
        are_stored: Whether the images themselves are stored, and not only their features.

    Raises:
        ValueError: If a class has no image at all.
    """

    key: str
    target_classes: Sequence[TargetClass] = field(repr=False)
    prompts: Sequence[Prompt] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    paths: Sequence[Path | Member | None] = field(repr=False)
    missing: Sequence[Missing] = ()
    templated: Sequence[int] = ()
    is_generated: bool = False
    sources: Sequence[str] = field(default=(), repr=False)
    origins: Origins | None = field(default=None, repr=False)
    thumbnail_key: str = ""
    are_stored: bool = True

    def __post_init__(self) -> None:
        if not self.sources:
            # The only way to set a field of a frozen dataclass here.
            object.__setattr__(self, "sources", ("",) * len(self.prompts))
        # Without an image a class has no prototype, and no image would ever be assigned to it.
        present = {prompt.class_index for prompt in self.prompts}
        for target_class in self.target_classes:
            if target_class.class_index not in present:
                raise ValueError(self._nothing_of(target_class))

    def _nothing_of(self, target_class: TargetClass) -> str:
        faults = [
            missing.faults[-1] for missing in self.missing if missing.prompt.class_index == target_class.class_index
        ]
        if not faults:
            return (
                f"class {target_class.class_index} ({target_class.name!r}): none of its images is there; name the "
                f"store that "
                "holds them by paths.store or LGCLIP_HOME, or generate them by the run's own command"
            )
        counts = ", ".join(f"{count} {fault}" for fault, count in Counter(faults).most_common())
        return (
            f"class {target_class.class_index} ({target_class.name!r}): not one of {len(faults)} images could be used "
            f"({counts}); raise diffuser.retries, change the prompts of this class, or choose another "
            "diffuser or diffuser.precision=fp32"
        )

    def only(self, classes: Sequence[int]) -> "SyntheticImages":
        """Returns the images of some classes, which are renumbered in the given order.

        Args:
            classes: The classes, by their index.
        """
        # Only the labels change: names and occurrences stay, and with them the keys of the images.
        new = {label: self.target_classes[label]._replace(class_index=index) for index, label in enumerate(classes)}
        selected = [index for index, prompt in enumerate(self.prompts) if prompt.class_index in new]
        # By the new class index, as in a run of these classes alone. The sort is stable: within a class the order of
        # the images stays, and with it which of them a smaller run would use.
        selected.sort(key=lambda index: new[self.prompts[index].class_index].class_index)

        def moved(prompt: Prompt) -> Prompt:
            return prompt._replace(target_class=new[prompt.class_index])

        missing = [
            image._replace(prompt=moved(image.prompt)) for image in self.missing if image.prompt.class_index in new
        ]
        templated: Sequence[int] = ()
        # Empty where no language model was asked: there is nothing to select from then.
        if self.templated:
            templated = [self.templated[label] for label in classes]
        return replace(
            self,
            target_classes=list(new.values()),
            prompts=[moved(self.prompts[index]) for index in selected],
            ids=[self.ids[index] for index in selected],
            paths=[self.paths[index] for index in selected],
            missing=missing,
            templated=templated,
            sources=[self.sources[index] for index in selected],
        )

    def image(self, index: int) -> Image.Image:
        """Returns the image at an index, or its thumbnail, decoded to RGB.

        Raises:
            BadImageError: If it cannot be decoded.
            ValueError: If it cannot be accessed, or was not stored.
        """
        place = self.paths[index]
        if place is None:
            prompt = self.prompts[index]
            raise ValueError(
                f"class {prompt.class_index} ({prompt.target_class.name!r}): the image generated from {prompt.text!r} "
                "was encoded and not stored; paths.images=files or tar stores images"
            )
        # The user's own folder: the advice below is about the store, which does not hold these files.
        if not self.is_generated and isinstance(place, Path):
            return read_image(place)
        try:
            return read_image(BytesIO(place.read_bytes()), where=str(place))
        except BadImageError as error:
            advice = "lgclip store verify --repair takes it out of the store, and a run generates it again"
            raise BadImageError(error.where, f"{error.reason}; {advice}") from error
        except OSError as error:
            raise ValueError(f"{place} cannot be read ({error.strerror}); a run generates it again") from error

    def faults(self) -> list[dict[str, object]]:
        """Returns the missing images in the form that a result records: class, name, prompt, repeat and faults."""
        rows: list[dict[str, object]] = []
        for prompt, faults in self.missing:
            row: dict[str, object] = {
                "class": prompt.class_index,
                "name": prompt.target_class.name,
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "faults": [str(fault) for fault in faults],
            }
            rows.append(row)
        return rows


class ImageStage(Protocol):
    """Defines the interface of a stage that creates missing images."""

    def missing(self) -> list[int]:
        """Returns the indices of images that are still to be created."""
        ...

    def synthetic_images(self) -> SyntheticImages:
        """Returns the images, once none is missing."""
        ...


class ImageSource(ABC):
    """Describes where synthetic images come from, without weights, and is hashed into keys.

    Attributes:
        needs_prompts: Whether it needs prompts.
        images_from: Origin of its images, for the data-leakage audit: `prompts`, `folder` (of unknown
            origin); `unknown` unless a class declares it.
    """

    needs_prompts: ClassVar[bool]
    images_from: ClassVar[str] = "unknown"

    def repositories(self) -> list[tuple[str, str | None]]:
        """Returns the hub repositories that it loads from, each with its revision."""
        return []

    def download(self) -> None:
        """Downloads what it needs to the hub's cache; loads nothing.

        Raises:
            HubError: If the hub cannot be reached or refuses.
        """
        for repository, revision in self.repositories():
            snapshot(repository, revision)

    def check_weights(self) -> None:
        """Checks the files of a local model before anything is generated; the default checks nothing.

        Raises:
            ValueError: If a file is missing or damaged.
        """
        return None

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Returns everything that an image depends on besides its prompt and its noise."""


class ImageGenerator(ImageSource):
    """Generates images that are not in the store yet; see `stages.images` for the stage around it.

    Attributes:
        batch_size: Number of images per batch, or `auto`, which measures on a GPU.
        size: Height and width of the images in pixels; None if the model decides.
        retries: How often a faulty image is generated again.
        image_format: `png`, or `jpeg-QUALITY`, which is then part of `inputs`, since it changes pixels.
    """

    batch_size: int | str
    size: int | None
    retries: int
    image_format: str = LOSSLESS

    @abstractmethod
    def load(self, device: torch.device) -> LoadedPipeline:
        """Loads the model to `device`."""


class ImageCollection(ImageSource):
    """Provides existing images: nothing is generated."""

    @abstractmethod
    def stage(
        self, root: Path, target_classes: Sequence[TargetClass], prompts: Sequence[Prompt], seed: int
    ) -> ImageStage:
        """Returns the requested images, as a stage without missing ones.

        Args:
            root: The store's folder.
            target_classes: The classes.
            prompts: The requested images.
            seed: The run's seed.
        """


def seed_of(*parts: object) -> int:
    """Returns a seed that depends on every one of `parts`, within torch's range."""
    text = "/".join(map(str, parts))
    # 56 bits, which fit into every integer type that generators use.
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def noise_seed(prompt: Prompt, seed: int, attempt: int = 0) -> int:
    """Returns the seed of an image's noise, which depends only on class, sentence, repeat, run seed and attempt."""
    # Hashed first: a name and a sentence side by side, both of any text, could be those of another prompt.
    return seed_of(seed, attempt, content_key(prompt.identity()))


def shared_noise_seed(prompt: Prompt, seed: int, attempt: int = 0) -> int:
    """Returns the seed of the noise that the same repeat of every prompt shares, as in the LGCLIP release."""
    # The release seeds its generator with seed, seed + 1, ...; a second attempt does not exist there, and must not
    # take the seed of the next repeat.
    if attempt:
        return seed_of("again", attempt, seed, prompt.repeat)
    return seed + prompt.repeat


def image_id(diffuser_key: str, prompt: Prompt, seed: int, attempt: int = 0) -> str:
    """Returns the content key of one attempt at one synthetic image."""
    return content_key({"diffuser": diffuser_key, "seed": seed, "attempt": attempt, **prompt.identity()})


def image_prompts(
    target_classes: Sequence[TargetClass],
    texts: Sequence[Sequence[str]],
    prompts_per_class: int,
    images_per_prompt: int,
) -> list[Prompt]:
    """Returns the images to generate: each class's first prompts, each `images_per_prompt` times.

    Image j of a prompt has the same noise whatever the two numbers are, so that a larger set contains the
    smaller one's images.

    Args:
        target_classes: The classes.
        texts: Sentences of each class.
        prompts_per_class: Number of prompts to use per class.
        images_per_prompt: Number of images per prompt.
    """
    prompts: list[Prompt] = []
    for target_class, sentences in zip(target_classes, texts, strict=True):
        # A sentence may occur twice among those of a class, as templates that are repeated in turn do. Its repeats are
        # counted on, since two images of one sentence and one number would be the same image.
        repeats: dict[str, int] = {}
        for text in sentences[:prompts_per_class]:
            for _ in range(images_per_prompt):
                prompts.append(Prompt(target_class, text, repeats.setdefault(text, 0)))
                repeats[text] += 1
    return prompts
