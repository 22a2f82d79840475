"""Provides the data sets that come with the package or with scikit-learn."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lgclip.datasets.base import Dataset, Training
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import content_key

if TYPE_CHECKING:
    from lgclip.tiny.world import Scene

_Split = Literal["test", "train"]

_LACKING = Training(lacking=" with dataset.split=train: choose dataset.split=test, which leaves images to train on")

_DESCRIBED = ("photo", "evening", "dusk")
"""Styles whose images a sentence about the scene is true of; the others change colors or noise."""


class RenderedDataset(Dataset):
    """Provides images that are rendered when they are read: equally many of each class, class by class.

    Args:
        name: Name in results.
        class_names: The classes.
        images_per_class: Number of images of each class, of each split.
        split: `test` or `train`.
        style: Style of the images.

    Raises:
        ValueError: If the split or style is unknown.
    """

    def __init__(
        self, name: str, class_names: Iterable[str], images_per_class: Mapping[_Split, int], split: str, style: str
    ) -> None:
        _check_split(split)
        _check_style(style)
        self.name = name
        self.split = f"{split} (held-out kinds)"
        self.class_names = tuple(class_names)
        self.training = Training({"split": "train"})
        if split == "train":
            self.training = _LACKING
        self._split: _Split = "train" if split == "train" else "test"
        per_class = images_per_class[self._split]
        self.labels = tuple(index // per_class for index in range(per_class * len(self.class_names)))
        self._style = style

    @abstractmethod
    def scene(self, index: int) -> "Scene":
        """Returns what the image at `index` shows."""

    def where(self, index: int) -> str:
        return _place(self.name, self._split, index)

    def description(self, index: int) -> str | None:
        from lgclip.tiny.captions import description_of

        if self._style not in _DESCRIBED:
            return None
        return description_of(self.scene(index))

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": STORE_SCHEMA}


class Shapes(RenderedDataset):
    """Provides the 30 held-out classes of the small synthetic world; no model of the package was trained on them.

    Args:
        split: `test` (40 images per class) or `train` (100, for students).
        style: `photo`, or the same scenes in another style: `sketch`, `inverted`, `noisy`, `evening`, `dusk`.

    Raises:
        ValueError: If the split or style is unknown.
    """

    def __init__(self, split: str = "test", style: str = "photo") -> None:
        from lgclip.tiny.world import HELD_OUT_KINDS, TEST_IMAGES_PER_CLASS, TRAIN_IMAGES_PER_CLASS

        name = "shapes" if style == "photo" else f"shapes_{style}"
        images_per_class: dict[_Split, int] = {"test": TEST_IMAGES_PER_CLASS, "train": TRAIN_IMAGES_PER_CLASS}
        super().__init__(name, [kind.name for kind in HELD_OUT_KINDS], images_per_class, split, style)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        # The defaults are left out: these keys were there before the data set had splits and styles.
        options = {"split": self._split, "style": self._style}
        changed = {name: value for name, value in options.items() if value not in ("test", "photo")}
        return tuple(content_key({"shapes": index, "schema": STORE_SCHEMA, **changed}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_image(self._split, self._style, index))

    def scene(self, index: int) -> "Scene":
        from lgclip.tiny.world import scene_of

        return scene_of(self._split, index)[0]


class ShapesFine(RenderedDataset):
    """Provides the 75 classes of the fine world: held-out kinds, divided by size or background, in evening light.

    A third of the classes have names that do not say what they look like; `llm=field_guide` describes them.

    Args:
        split: `test` (20 images per class) or `train` (40).
        style: `evening`, which no model of the package has seen, or another style of `Shapes`; `photo` has no gap to
            the synthetic images.

    Raises:
        ValueError: If the split or style is unknown.
    """

    def __init__(self, split: str = "test", style: str = "evening") -> None:
        from lgclip.tiny.fine_world import FINE_KINDS, IMAGES_PER_CLASS

        name = "shapes_fine" if style == "evening" else f"shapes_fine_{style}"
        super().__init__(name, [fine_kind.name for fine_kind in FINE_KINDS], IMAGES_PER_CLASS, split, style)

    @cached_property
    def ids(self) -> tuple[str, ...]:
        inputs = {"split": self._split, "style": self._style, "schema": STORE_SCHEMA}
        return tuple(content_key({"shapes_fine": index, **inputs}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_fine_image(self._split, self._style, index))

    def scene(self, index: int) -> "Scene":
        from lgclip.tiny.fine_world import fine_scene

        return fine_scene(self._split, index)[0]


class Digits(Dataset):
    """Provides half of scikit-learn's scans of handwritten digits, enlarged to 64x64.

    The first 898 were in the small models' pre-training, so these ten classes are not unseen, just as
    most classes of public data sets are not unseen to CLIP and Stable Diffusion.

    Args:
        split: `test` (the last 899) or `train` (the first 898).

    Raises:
        ValueError: If the split is unknown.
    """

    name = "digits"

    def __init__(self, split: str = "test") -> None:
        from lgclip.tiny.world import SCANNED_DIGITS, scanned_digits

        _check_split(split)
        self.split = "second half"
        self.training = Training({"split": "train"})
        if split == "train":
            self.split = "first half"
            self.training = _LACKING
        self.class_names = SCANNED_DIGITS
        self._images, labels = scanned_digits(pretrain=split == "train")
        self.labels = tuple(labels.tolist())
        self._split = split

    @cached_property
    def ids(self) -> tuple[str, ...]:
        # As of `Shapes`: the default split is not in the key.
        changed: dict[str, str] = {}
        if self._split != "test":
            changed["split"] = self._split
        return tuple(content_key({"digits": index, "schema": STORE_SCHEMA, **changed}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def where(self, index: int) -> str:
        return _place(self.name, self._split, index)

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": STORE_SCHEMA}


@lru_cache(maxsize=6144)  # 75 MB: a sweep of students uses the same images in each job
def _image(split: _Split, style: str, index: int) -> UInt8[np.ndarray, "64 64 3"]:
    from lgclip.tiny.styles import STYLES
    from lgclip.tiny.world import image_of

    return STYLES[style](image_of(split, index), index)


@lru_cache(maxsize=6144)
def _fine_image(split: _Split, style: str, index: int) -> UInt8[np.ndarray, "64 64 3"]:
    from lgclip.tiny.fine_world import fine_image
    from lgclip.tiny.styles import STYLES

    return STYLES[style](fine_image(split, index), index)


def _check_style(style: str) -> None:
    from lgclip.tiny.styles import STYLES

    if style not in STYLES:
        raise ValueError(f"dataset.style={style}: choose {', '.join(STYLES)}")


def _check_split(split: str) -> None:
    if split not in ("test", "train"):
        raise ValueError(f"dataset.split={split}: choose test or train")


def _place(name: str, split: str, index: int) -> str:
    if split == "test":
        return f"image {index} of {name}"
    return f"image {index} of {name}, {split}"
