"""Provides the evaluated split of a data set together with its other splits."""

from collections.abc import Callable
from functools import cached_property

from lgclip.datasets.base import Dataset, check_images, check_size


class DatasetSplits:
    """Provides the evaluated images of a data set and its other splits, each loaded once, on first use.

    Args:
        open_split: Loads the data set. Called with the config values that select another split, or with none.

    Attributes:
        evaluated: The images to evaluate on.

    Raises:
        ValueError: If the data set has no class, one class or no image.
    """

    def __init__(self, open_split: Callable[..., Dataset]) -> None:
        self._open_split = open_split
        # At once, since every run needs it; the others may need a download that most runs can do without.
        self.evaluated = open_split()
        if self.evaluated.has_images:
            check_size(self.evaluated, "dataset")

    @cached_property
    def training(self) -> Dataset:
        """Returns the real training images; none of them is evaluated.

        Raises:
            ValueError: If the data set has no training split, or the split has no image.
        """
        training = self._open_split(**self.evaluated.training_values())
        check_images(training, "the training split of dataset")
        return training

    @cached_property
    def unlabeled_pool(self) -> Dataset:
        """Returns all images that are not evaluated: training and validation images together where both exist.

        Raises:
            ValueError: If the data set has no training split, or the split has no image.
        """
        pool = self._open_split(**self.evaluated.pool_values())
        check_images(pool, "the training split of dataset")
        return pool
