"""Collects the inputs of prompt tuning: a pool of images, the labels of some of them, and synthetic images.

The true labels of the other images are in no object of this module.
"""

import hashlib
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from lgclip.datasets.base import Dataset
from lgclip.encoder.scales import Scales
from lgclip.methods.alignment import PoolAlignment
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.runtime.terminal import single_line
from lgclip.stages.extract import sentence_id, text_prototypes
from lgclip.stages.streams import Stream
from lgclip.store.keys import content_key, key_inputs
from lgclip.training.prompt_tuning.paradigms import ClassSplit, Paradigm

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Images:
    """Holds some images, without labels.

    Attributes:
        ids: Content key of each.
        features: Unit feature of each.
        load: Returns the image at an index, decoded to RGB.
    """

    ids: Sequence[str] = field(repr=False)
    features: Float[Tensor, "n d"] = field(repr=False)
    load: Callable[[int], Image.Image] = field(repr=False)

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class PromptTuningData:
    """Holds the data that prompts are tuned on.

    Attributes:
        class_names: The classes.
        templates: Sentences with `{}` for a class name.
        paradigm: `ul`, `ssl` or `trzsl`.
        pool: Images of the data set that are not evaluated.
        class_split: Which of them are labelled.
        labels: Class index of each labelled one, in the split's order.
        sentences: Unit features of the classes by their sentences: CLIP's zero-shot classifier.
        synthetic: Synthetic images; None if there are none.
        synthetic_labels: Class index of each of these.
        scales: Defines the views of an image.
        text_key: Key of the sentences; None where they are the templates with the class names.
    """

    class_names: tuple[str, ...]
    templates: tuple[str, ...]
    paradigm: str
    pool: Images
    class_split: ClassSplit
    labels: Int[Tensor, " l"]
    sentences: Float[Tensor, "c d"]
    synthetic: Images | None
    synthetic_labels: Int[Tensor, " m"]
    scales: Scales
    text_key: str | None = None

    @classmethod
    def create(cls, streams: Iterable[Stream], pool: Dataset, paradigm: Paradigm, scales: Scales) -> "PromptTuningData":
        """Collects the data that a paradigm allows from a pool with extracted features.

        Args:
            streams: Those of `extract.encode` of the pool, with its images as `real`.
            pool: Its images, none of which is evaluated.
            paradigm: The available labels.
            scales: Fuses the views of an image.

        Raises:
            ValueError: If there are no sentences, or the pool cannot be divided this way.
        """
        by_name = {stream.name: stream for stream in streams}
        # The first round labels images by the sentences, whatever prompt is learned from these labels.
        if "text" not in by_name:
            raise ValueError("prompt tuning compares images with sentences: choose an encoder with a text tower")
        classes = len(pool.class_names)
        real = by_name["real"]
        text = by_name["text"]
        synthetic = by_name.get("synthetic")
        images = None
        image_labels: Sequence[int] = []
        if synthetic is not None:
            images = _images(synthetic, scales)
            image_labels = synthetic.labels
        # The paradigm sees all labels, because it must count and choose. What leaves it are places alone, and from
        # here on only the labels at the places that it allows are read.
        class_split = paradigm.divide(real.labels, classes, pool.draw_order)
        return cls(
            class_names=pool.class_names,
            templates=pool.templates,
            paradigm=paradigm.kind,
            pool=_images(real, scales),
            class_split=class_split,
            labels=torch.tensor([real.labels[place] for place in class_split.labelled.tolist()], dtype=torch.long),
            sentences=text_prototypes(text, classes),
            text_key=_text_key(text, pool),
            synthetic=images,
            synthetic_labels=torch.tensor(image_labels, dtype=torch.long),
            scales=scales,
        )

    def inputs(self, *, synthetic_labels: bool) -> dict[str, object]:
        """Returns the data that a tuned prompt depends on, besides the encoder and the recipe.

        Args:
            synthetic_labels: Whether the synthetic images are used.
        """
        class_split = self.class_split
        labelled = self._named(class_split.labelled)
        unlabelled = self._named(class_split.unlabelled)
        # Images that the recipe does not use must not change the key, even if the run happens to have them.
        synthetic = None
        if synthetic_labels and self.synthetic is not None:
            synthetic = _content(map(_line, self.synthetic.ids, self.synthetic_labels.tolist()))
        sentences = {} if self.text_key is None else {"sentences": self.text_key}
        # Labels are hashed for the labeled images alone: the key must not depend on a hidden label.
        return {
            "paradigm": self.paradigm,
            "class_names": list(self.class_names),
            "templates": list(self.templates),
            **sentences,
            "targets": list(class_split.targets),
            "labelled": _content(map(_line, labelled, self.labels.tolist())),
            "scales": key_inputs(self.scales),
            "unlabelled": _content(unlabelled),
            "synthetic": synthetic,
        }

    def _named(self, places: Int[Tensor, " p"]) -> list[str]:
        indices: list[int] = places.tolist()
        return [self.pool.ids[place] for place in indices]

    def support(self, per_class: int | None) -> SupportSet:
        """Returns the synthetic images, the first `per_class` of every class; None returns all.

        Raises:
            ValueError: If there are none, or fewer of a class.
        """
        places = self.synthetic_indices(per_class)
        assert self.synthetic is not None
        return SupportSet(self.synthetic.features[places], self.synthetic_labels[places], len(self.class_names))

    def aligned(self) -> "PromptTuningData":
        """Returns the data with the features of synthetic images moved by their mean difference to the pool.

        The offset is that of `align=pool`, which weights the classes by their estimated shares of the pool. No label of
        a real image is used.

        Raises:
            ValueError: If there are no synthetic images.
        """
        support = self.support(None)
        fitted = PoolAlignment(limit=None).fit(self.pool.features, References(support))
        assert self.synthetic is not None
        assert fitted.offset is not None
        moved = normalize(support.features + fitted.offset, dim=1)
        return replace(self, synthetic=replace(self.synthetic, features=moved))

    def synthetic_indices(self, per_class: int | None) -> Int[Tensor, " m"]:
        """Returns the indices of the synthetic images of `support`.

        Raises:
            ValueError: If there are none, or fewer of a class.
        """
        counts = torch.bincount(self.synthetic_labels, minlength=len(self.class_names))
        # `min` of no element is an error.
        least = 0
        if len(self.class_names):
            least = int(counts.min())
        if self.synthetic is None or not least:
            raise ValueError(
                "this recipe uses synthetic images of each class, and there are none: generate them, or set "
                "prompt_tuning.auxiliary=none prompt_tuning.synthetic_weight=0"
            )
        if per_class is None:
            return torch.arange(len(self.synthetic_labels))
        if per_class > least:
            raise ValueError(
                f"prompt_tuning.synthetic_images={per_class}: class {int(counts.argmin())} has {least}; generate more "
                "by prompts_per_class or images_per_prompt, or take fewer"
            )
        # How many images of its own class come up to each image, itself included: the first `per_class` of a class are
        # those where this is at most `per_class`. Images of different classes may be in any order.
        before = (
            one_hot(self.synthetic_labels, len(self.class_names))
            .cumsum(dim=0)
            .gather(1, self.synthetic_labels[:, None])[:, 0]
        )
        return (before <= per_class).nonzero()[:, 0]


def check_apart(pool: Dataset, test: Dataset) -> None:
    """Rejects a pool that contains evaluated images.

    Args:
        pool: The training images.
        test: The images that the prompts are evaluated on.

    Raises:
        ValueError: If they share an image file. Copies of an image under other names, which published splits have, are
            a warning: no other choice of a split would take them away.
    """
    contents = set(test.ids)
    copies = [place for place, name in enumerate(pool.ids) if name in contents]
    test_files = {test.where(index) for index in range(len(test))}
    shared = [place for place in copies if pool.where(place) in test_files]
    if copies and not shared:
        log.warning(
            "dataset=%s: %d of the %d images to train on are copies of evaluated ones, first %s",
            test.name,
            len(copies),
            len(pool),
            single_line(pool.where(copies[0])),
        )
    if shared:
        raise ValueError(
            f"dataset={test.name}: {len(shared)} of the {len(pool)} images to train on are among the "
            f"evaluated ones, first {pool.where(shared[0])}; choose a dataset.split whose training images are others"
        )


def _text_key(text: Stream, dataset: Dataset) -> str | None:
    """Returns a key of the sentences of a text side; None for the data set's templates, as earlier keys have it."""
    templates: list[str] = []
    for label in range(len(dataset.class_names)):
        templates.extend(map(sentence_id, dataset.text_sentences(label)))
    if list(text.ids) == templates and not text.averages_scores:
        return None
    return content_key({"ids": list(text.ids), "labels": list(text.labels), "averages_scores": text.averages_scores})


def _images(stream: Stream, scales: Scales) -> Images:
    features = [scales.fuse(batch.features) for batch in stream.batches()]
    return Images(stream.ids, torch.cat(features), stream.load)  # pyright: ignore[reportArgumentType]


def _line(name: str, label: int) -> str:
    return f"{name} {label}"


def _content(lines: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        # A line break between them: without it two lists could run together into the same bytes.
        digest.update(line.encode() + b"\n")
    return f"sha256:{digest.hexdigest()[:32]}"
