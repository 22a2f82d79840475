"""The data sets that come with the package or with scikit-learn."""

from functools import cached_property, lru_cache

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from lgclip.datasets.base import Dataset, Training
from lgclip.identity import SCHEMA, key_of

_LACKING = Training(lacking=" beside dataset.split=train: choose dataset.split=test, which leaves images to train on")


class Shapes(Dataset):
    """The 30 held-out kinds of the small world; no model of the package was trained on them.

    Args:
        split: `test` (40 images a class) or `train` (100, for students).
        style: `photo`, or the same scenes in another style: `sketch`, `inverted`, `noisy`.

    Raises:
        ValueError: If there is no such split or style.
    """

    def __init__(self, split: str = "test", style: str = "photo") -> None:
        from lgclip.tiny.styles import STYLES
        from lgclip.tiny.world import HELD_OUT_KINDS, TEST_IMAGES_PER_CLASS, TRAIN_IMAGES_PER_CLASS

        _check_split(split)
        if style not in STYLES:
            raise ValueError(f"dataset.style={style}: choose {', '.join(STYLES)}")
        each = TRAIN_IMAGES_PER_CLASS if split == "train" else TEST_IMAGES_PER_CLASS
        self.name = "shapes" if style == "photo" else f"shapes_{style}"
        self.split = f"{split} (held-out kinds)"
        self.class_names = tuple(kind.name for kind in HELD_OUT_KINDS)
        self.labels = tuple(c for c in range(len(HELD_OUT_KINDS)) for _ in range(each))
        self.training = _LACKING if split == "train" else Training({"split": "train"})
        self._split, self._style = split, style

    @cached_property
    def ids(self) -> tuple[str, ...]:
        # What is as it was at first is not told, so that those keys stay.
        told = {"split": self._split, "style": self._style}
        other = {name: value for name, value in told.items() if value not in ("test", "photo")}
        return tuple(key_of({"shapes": index, "schema": SCHEMA, **other}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(_picture(self._split, self._style, index))

    def where(self, index: int) -> str:
        return _place(self.name, self._split, index)

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


class Digits(Dataset):
    """Half of scikit-learn's scans of handwritten digits, enlarged to 64x64.

    The first 898 were in the small models' pre-training, so these ten classes are not unseen, as
    most classes of public data sets are not unseen to CLIP and Stable Diffusion.

    Args:
        split: `test` (the last 899) or `train` (the first 898).

    Raises:
        ValueError: If there is no such split.
    """

    name = "digits"

    def __init__(self, split: str = "test") -> None:
        from lgclip.tiny.world import SCANNED_DIGITS, scanned_digits

        _check_split(split)
        self.split = "first half" if split == "train" else "second half"
        self.class_names = SCANNED_DIGITS
        self._images, labels = scanned_digits(pretrain=split == "train")
        self.labels = tuple(labels.tolist())
        self.training = _LACKING if split == "train" else Training({"split": "train"})
        self._split = split

    @cached_property
    def ids(self) -> tuple[str, ...]:
        other = {} if self._split == "test" else {"split": self._split}
        return tuple(key_of({"digits": index, "schema": SCHEMA, **other}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def where(self, index: int) -> str:
        return _place(self.name, self._split, index)

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


@lru_cache(maxsize=6144)  # 75 MB: a sweep of students looks at the same pictures in each job
def _picture(split: str, style: str, index: int) -> UInt8[np.ndarray, "64 64 3"]:
    from lgclip.tiny.styles import STYLES
    from lgclip.tiny.world import image_of

    return STYLES[style](image_of("train" if split == "train" else "test", index), index)


def _check_split(split: str) -> None:
    if split not in ("test", "train"):
        raise ValueError(f"dataset.split={split}: choose test or train")


def _place(name: str, split: str, index: int) -> str:
    return f"image {index} of {name}" + (f", {split}" if split != "test" else "")
