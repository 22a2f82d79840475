"""Defines the interface of a trained predictor: the origin of its features, and its entries in a result."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lgclip.datasets.base import Dataset
from lgclip.methods.base import Predictions
from lgclip.methods.predictor import Predictor
from lgclip.stages.context import RunContext
from lgclip.stages.streams import Stream, Streams


class TrainedPredictor(Predictor):
    """Defines a predictor that `train.py` or `evaluate.py` has trained.

    Attributes:
        stage: Name of the stage that computes its outputs.
    """

    stage: ClassVar[str]

    @abstractmethod
    def stream(self, context: RunContext, dataset: Dataset, data: Streams | None, title: str) -> Stream:
        """Returns the features of some images in the form that `logits` takes; computes missing ones.

        Args:
            context: Runs the stage.
            dataset: The images.
            data: The encoder's streams of the same images and of the class names; None if it cannot use them.
            title: Name of the stage.
        """

    def for_classes(self, classes: Sequence[int]) -> "TrainedPredictor":
        """Returns the predictor restricted to some of its classes, in the given order.

        Args:
            classes: The classes, by their index.
        """
        # A predictor that compares with class names has no logits to choose from: it is given other names instead.
        return self

    def report(self, results: Mapping[str, Predictions], dataset: Dataset, prompt_form: str | None) -> dict[str, Any]:
        """Returns entries of result.json about the training; none unless a class adds some.

        Args:
            results: The predictions for all images, by the name of the method and of its baselines.
            dataset: The images.
            prompt_form: Prompt format of the synthetic images; None if it has no name.
        """
        return {}
