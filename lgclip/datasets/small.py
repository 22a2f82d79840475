"""The data sets that come with the package or with scikit-learn."""

from functools import cached_property

from PIL import Image

from lgclip.datasets.base import Dataset
from lgclip.identity import SCHEMA, key_of


class Shapes(Dataset):
    """The 30 held-out kinds of the small world, 40 images each; no small model was trained on them."""

    name = "shapes"
    split = "test (held-out kinds)"

    def __init__(self) -> None:
        from lgclip.tiny.world import HELD_OUT_KINDS, TEST_IMAGES_PER_CLASS

        self.class_names = tuple(kind.name for kind in HELD_OUT_KINDS)
        self.labels = tuple(c for c in range(len(HELD_OUT_KINDS)) for _ in range(TEST_IMAGES_PER_CLASS))

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(key_of({"shapes": index, "schema": SCHEMA}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        from lgclip.tiny.world import image_of

        return Image.fromarray(image_of("test", index))

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}


class Digits(Dataset):
    """The last 899 of scikit-learn's scans of handwritten digits, enlarged to 64x64.

    The first 898 were in the small models' pre-training, so these ten classes are not unseen, as
    most classes of public data sets are not unseen to CLIP and Stable Diffusion.
    """

    name = "digits"
    split = "second half"

    def __init__(self) -> None:
        from lgclip.tiny.world import SCANNED_DIGITS, scanned_digits

        self.class_names = SCANNED_DIGITS
        self._images, labels = scanned_digits(pretrain=False)
        self.labels = tuple(labels.tolist())

    @cached_property
    def ids(self) -> tuple[str, ...]:
        return tuple(key_of({"digits": index, "schema": SCHEMA}) for index in range(len(self)))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._images[index])

    def source(self) -> dict[str, object]:
        return {"dataset": self.name, "schema": SCHEMA}
