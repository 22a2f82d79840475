"""What soft prompts may be learnt from: a pool of images, the labels of some of them, and synthetic images.

The true labels of the others are in no object of this module.
"""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.functional import one_hot

from lgclip.data import Stream
from lgclip.datasets.base import Dataset
from lgclip.identity import inputs_of
from lgclip.paradigms import Division, Paradigm
from lgclip.prototypes import Support
from lgclip.scales import Scales


@dataclass(frozen=True)
class Images:
    """Some images, without labels.

    Attributes:
        ids: Content key of each.
        features: Unit feature of each.
        load: The image at a place, decoded to RGB.
    """

    ids: Sequence[str] = field(repr=False)
    features: Float[Tensor, "n d"] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Ground:
    """What prompts are learnt from.

    Attributes:
        class_names: The classes.
        templates: Sentences with `{}` for a class name.
        paradigm: `ul`, `ssl` or `trzsl`.
        pool: Images of the data set that are not judged.
        division: Which of them are labelled.
        labels: Class index of each labelled one, in the division's order.
        sentences: Unit features of the classes by their sentences: CLIP's zero-shot classifier.
        synthetic: Drawn images; None if there are none.
        drawn: Class index of each of these.
        scales: What the views of an image are.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    paradigm: str
    pool: Images
    division: Division
    labels: Int[Tensor, " l"]
    sentences: Float[Tensor, "c d"]
    synthetic: Images | None
    drawn: Int[Tensor, " m"]
    scales: Scales

    @classmethod
    def of(cls, streams: Iterable[Stream], pool: Dataset, paradigm: Paradigm, scales: Scales) -> "Ground":
        """What a paradigm lets know of a pool whose features are there.

        Args:
            streams: Those of `features.encode` of the pool, with its images as `real`.
            pool: Its images, which are not those to be judged.
            paradigm: Which labels may be known.
            scales: Adds up the views of an image.

        Raises:
            ValueError: If there are no sentences, or the pool cannot be divided so.
        """
        found = {stream.name: stream for stream in streams}
        if "text" not in found:
            raise ValueError(
                "prompts are learnt from what sentences say of images: choose an encoder with a text tower"
            )
        classes = len(pool.class_names)
        real, text, drawn = found["real"], found["text"], found.get("synthetic")
        division = paradigm.divide(real.labels, classes)
        return cls(
            class_names=pool.class_names,
            templates=pool.templates,
            paradigm=paradigm.kind,
            pool=_images(real, scales),
            division=division,
            labels=torch.tensor([real.labels[at] for at in division.labelled.tolist()], dtype=torch.long),
            sentences=Support(text.features()[:, 0], torch.tensor(text.labels), classes).means(renormalise=True),
            synthetic=None if drawn is None else _images(drawn, scales),
            drawn=torch.tensor([] if drawn is None else drawn.labels, dtype=torch.long),
            scales=scales,
        )

    def inputs(self, *, drawn: bool) -> dict[str, object]:
        """What a prompt that is learnt from this depends on, besides the encoder and the recipe.

        Args:
            drawn: Whether the synthetic images are used.
        """
        division = self.division
        labelled, unlabelled = map(self._named, (division.labelled, division.unlabelled))
        synthetic = self.synthetic if drawn else None
        return {
            "paradigm": self.paradigm,
            "class_names": list(self.class_names),
            "templates": list(self.templates),
            "targets": list(division.targets),
            "labelled": _content(map(_line, labelled, self.labels.tolist())),
            "scales": inputs_of(self.scales),
            "unlabelled": _content(unlabelled),
            "synthetic": None if synthetic is None else _content(map(_line, synthetic.ids, self.drawn.tolist())),
        }

    def _named(self, places: Int[Tensor, " p"]) -> list[str]:
        at: list[int] = places.tolist()
        return [self.pool.ids[place] for place in at]

    def support(self, each: int | None) -> Support:
        """The synthetic images, the first `each` of every class; None takes all.

        Raises:
            ValueError: If there are none, or fewer of a class.
        """
        places = self.chosen(each)
        assert self.synthetic is not None
        return Support(self.synthetic.features[places], self.drawn[places], len(self.class_names))

    def chosen(self, each: int | None) -> Int[Tensor, " m"]:
        """Places of the synthetic images of `support`.

        Raises:
            ValueError: If there are none, or fewer of a class.
        """
        counts = torch.bincount(self.drawn, minlength=len(self.class_names))
        least = int(counts.min()) if len(self.class_names) else 0
        if self.synthetic is None or not least:
            raise ValueError(
                "this recipe uses synthetic images of each class, and there are none: draw them, or set "
                "learner.auxiliary=none learner.synthetic_weight=0"
            )
        if each is None:
            return torch.arange(len(self.drawn))
        if each > least:
            raise ValueError(
                f"learner.synthetic_images={each}: class {int(counts.argmin())} has {least}; draw more by "
                "prompts_per_class or images_per_prompt, or take fewer"
            )
        before = one_hot(self.drawn, len(self.class_names)).cumsum(dim=0).gather(1, self.drawn[:, None])[:, 0]
        return (before <= each).nonzero()[:, 0]


def check_apart(pool: Dataset, judged: Dataset) -> None:
    """Refuses a pool that holds images which are judged.

    Args:
        pool: What is learnt from.
        judged: What the prompts are judged on.

    Raises:
        ValueError: If they share an image.
    """
    known = set(judged.ids)
    shared = [at for at, name in enumerate(pool.ids) if name in known]
    if shared:
        raise ValueError(
            f"dataset={judged.name}: {len(shared)} of the {len(pool)} images to learn from are among those to be "
            f"judged, first {pool.where(shared[0])}; choose a dataset.split whose training images are others"
        )


def _images(stream: Stream, scales: Scales) -> Images:
    features = [scales.fuse(batch.features) for batch in stream.batches()]
    return Images(stream.ids, torch.cat(features), stream.load)  # pyright: ignore[reportArgumentType]


def _line(name: str, label: int) -> str:
    return f"{name} {label}"


def _content(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(line.encode() + b"\n")
    return f"sha256:{digest.hexdigest()[:32]}"
