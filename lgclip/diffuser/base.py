"""What is to be drawn, and the images of a run as every later stage sees them."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lgclip.batch import Prompt, Subject
from lgclip.datasets.base import BadImageError
from lgclip.datasets.files import read_image
from lgclip.diffuser.faults import Fault
from lgclip.identity import key_of
from lgclip.shard_index import Member


class Drawn(NamedTuple):
    """A batch of images as they leave the device.

    Attributes:
        pixels: The images.
        faults: What is wrong with each; None for nothing.
    """

    pixels: UInt8[np.ndarray, "b h w 3"]
    faults: list[Fault | None]


class Brush(Protocol):
    """A diffuser that is ready to draw, its pipeline in memory."""

    def draw(self, prompts: Sequence[Prompt], seed: int, attempts: Sequence[int]) -> Drawn:
        """One image a prompt.

        Args:
            prompts: What to draw.
            seed: The run's seed.
            attempts: How often each was drawn before: another number is another noise.
        """
        ...

    def __call__(self, prompts: Sequence[Prompt], seed: int) -> UInt8[np.ndarray, "b h w 3"]:
        """The first attempt at each prompt, whatever is wrong with it."""
        ...


@runtime_checkable
class Origins(Protocol):
    """The real images that synthetic ones go back to."""

    def caption(self, image: str) -> str:
        """The caption of a real image, by its id."""
        ...

    def where(self, image: str) -> str:
        """Where a real image lies, by its id."""
        ...


class Missing(NamedTuple):
    """An image that was wanted and is not there.

    Attributes:
        prompt: What it was to show.
        faults: What was wrong with each attempt at it.
    """

    prompt: Prompt
    faults: tuple[Fault, ...]


@dataclass(frozen=True)
class Pictures:
    """The synthetic images of a run; those that could not be had are listed, and nowhere else.

    Attributes:
        key: What their features are kept under.
        subjects: The classes.
        prompts: What each image shows; the text is empty if it is not known.
        ids: Content key of each image.
        paths: The file that each is, or its place in a shard.
        missing: The images that were wanted and are not there.
        templated: Of each class, how many prompts are template sentences that stand in for a language model's.
        drawn: Whether they lie in the store: what is damaged there is drawn again.
        sources: Of each image, the id of the real image whose caption it was drawn from; empty if there is none.
        origins: What is known of those real images; None without captions.

    Raises:
        ValueError: If a class has no image at all.
    """

    key: str
    subjects: Sequence[Subject] = field(repr=False)
    prompts: Sequence[Prompt] = field(repr=False)
    ids: Sequence[str] = field(repr=False)
    paths: Sequence[Path | Member] = field(repr=False)
    missing: Sequence[Missing] = ()
    templated: Sequence[int] = ()
    drawn: bool = False
    sources: Sequence[str] = field(default=(), repr=False)
    origins: Origins | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if not self.sources:
            object.__setattr__(self, "sources", ("",) * len(self.prompts))
        there = {prompt.class_index for prompt in self.prompts}
        for subject in self.subjects:
            if subject.class_index not in there:
                raise ValueError(self._nothing_of(subject))

    def _nothing_of(self, subject: Subject) -> str:
        faults = [gone.faults[-1] for gone in self.missing if gone.prompt.class_index == subject.class_index]
        if not faults:
            return (
                f"class {subject.class_index} ({subject.name!r}): none of its images is there; name the store that "
                "holds them by paths.store or LGCLIP_HOME, or draw them by the run's own command"
            )
        counts = ", ".join(f"{count} {fault}" for fault, count in Counter(faults).most_common())
        return (
            f"class {subject.class_index} ({subject.name!r}): not one of {len(faults)} images could be used "
            f"({counts}); raise diffuser.retries, change the prompts of this class, or choose another "
            "diffuser or diffuser.precision=fp32"
        )

    def only(self, classes: Sequence[int]) -> "Pictures":
        """The images of some classes, which are numbered anew in the order given.

        Args:
            classes: The classes, by their index.
        """
        new = {label: index for index, label in enumerate(classes)}
        kept = [at for at, prompt in enumerate(self.prompts) if prompt.class_index in new]
        kept.sort(key=lambda at: new[self.prompts[at].class_index])  # stable: within a class as they were

        def moved(prompt: Prompt) -> Prompt:
            return prompt._replace(class_index=new[prompt.class_index])

        return replace(
            self,
            subjects=[self.subjects[label]._replace(class_index=index) for label, index in new.items()],
            prompts=[moved(self.prompts[at]) for at in kept],
            ids=[self.ids[at] for at in kept],
            paths=[self.paths[at] for at in kept],
            missing=[
                gone._replace(prompt=moved(gone.prompt)) for gone in self.missing if gone.prompt.class_index in new
            ],
            templated=[self.templated[label] for label in classes] if self.templated else (),
            sources=[self.sources[at] for at in kept],
        )

    def image(self, at: int) -> Image.Image:
        """The image at a place, decoded to RGB.

        Raises:
            BadImageError: If it cannot be decoded.
            ValueError: If it cannot be got at.
        """
        place = self.paths[at]
        if not self.drawn and isinstance(place, Path):
            return read_image(place)
        try:
            return read_image(BytesIO(place.read_bytes()), where=str(place))
        except BadImageError as error:
            way = "lgclip store verify --repair takes it out of the store, and a run draws it again"
            raise BadImageError(error.where, f"{error.reason}; {way}") from error
        except OSError as error:
            raise ValueError(f"{place} cannot be read ({error.strerror}); what is gone, a run draws again") from error

    def faults(self) -> list[dict[str, object]]:
        """The missing images as a result lists them: class, name, prompt, repeat and what was wrong."""
        names = {subject.class_index: subject.name for subject in self.subjects}
        return [
            {
                "class": prompt.class_index,
                "name": names[prompt.class_index],
                "prompt": prompt.text,
                "repeat": prompt.repeat,
                "faults": [str(fault) for fault in faults],
            }
            for prompt, faults in self.missing
        ]


class ImageStage(Protocol):
    """Makes the images that are not there."""

    def missing(self) -> list[int]:
        """Places of the images that are still to be made."""
        ...

    def pictures(self) -> Pictures:
        """The images, once none is still to be made."""
        ...


class ImageSource(ABC):
    """Where synthetic images come from: a light description, hashed into keys.

    Attributes:
        needs_prompts: Whether it must be told what to draw.
    """

    needs_prompts: ClassVar[bool]

    def repositories(self) -> list[tuple[str, str | None]]:
        """Repositories of the hub that it loads from, each with its revision."""
        return []

    @abstractmethod
    def inputs(self) -> dict[str, object]:
        """Everything that an image depends on besides its prompt and its noise."""

    @abstractmethod
    def stage(self, root: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], seed: int) -> ImageStage:
        """What makes the images.

        Args:
            root: The store's folder.
            subjects: The classes.
            prompts: The images wanted.
            seed: The run's seed.
        """


def seed_of(*parts: object) -> int:
    """A seed that depends on every one of `parts`, small enough for torch."""
    text = "/".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7])


def noise_seed(prompt: Prompt, seed: int, attempt: int = 0) -> int:
    """Seed of an image's noise: of its class, sentence, repeat, the run's seed and the attempt, nothing else."""
    again = ("again", attempt) if attempt else ()
    return seed_of(*again, seed, prompt.class_index, prompt.repeat, prompt.text)


def shared_noise_seed(prompt: Prompt, seed: int, attempt: int = 0) -> int:
    """Seed of the noise that the same repeat of every prompt shares, as in the LGCLIP release."""
    return seed_of("again", attempt, seed, prompt.repeat) if attempt else seed + prompt.repeat


def image_id(diffuser_key: str, prompt: Prompt, seed: int, attempt: int = 0) -> str:
    """Content key of one attempt at one synthetic image."""
    again = {"attempt": attempt} if attempt else {}
    return key_of({"diffuser": diffuser_key, "seed": seed, **prompt._asdict(), **again})


def image_prompts(texts: Sequence[Sequence[str]], prompts_per_class: int, images_per_prompt: int) -> list[Prompt]:
    """The images to draw: each class's first prompts, each `images_per_prompt` times.

    Image j of a prompt has the same noise whatever the two numbers are, so a larger set holds the
    smaller one's images.

    Args:
        texts: Sentences of each class.
        prompts_per_class: How many of them to use.
        images_per_prompt: Images of each.
    """
    wanted: list[Prompt] = []
    for class_index, sentences in enumerate(texts):
        repeats: dict[str, int] = {}
        for text in sentences[:prompts_per_class]:
            for _ in range(images_per_prompt):
                wanted.append(Prompt(class_index, text, repeats.setdefault(text, 0)))
                repeats[text] += 1
    return wanted
