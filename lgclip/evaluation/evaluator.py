"""Evaluates a method on a data set, on shifted sets of the same classes, and for membership inference."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from lgclip.datasets.base import Dataset, check_size
from lgclip.datasets.subsets import First, Selected, classes_in
from lgclip.datasets.unlabeled import Unlabeled
from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.evaluation.membership_inference import attack
from lgclip.evaluation.metrics import metrics
from lgclip.evaluation.pools import PoolComparison
from lgclip.evaluation.robustness import shift_of
from lgclip.methods.base import Classifier, Predictions
from lgclip.methods.evaluated_pool import start_temperature
from lgclip.methods.logits import log_probs
from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.zero_shot import ZeroShot
from lgclip.stages.context import RunContext
from lgclip.stages.extract import encode, encode_pool, pool_stream
from lgclip.stages.streams import Stream, Streams
from lgclip.stages.text import RunTexts
from lgclip.training.predictor import TrainedPredictor
from lgclip.types import Role


class Shift(NamedTuple):
    """Holds an out-of-distribution set.

    Attributes:
        dataset: Its images.
        classes: Index of each of its classes in the in-distribution data set.
    """

    dataset: Dataset
    classes: tuple[int, ...]


def shifts_of(reference: Dataset, sets: Mapping[str, Dataset]) -> dict[str, Shift]:
    """Returns out-of-distribution sets, by name.

    Args:
        reference: The data set that the classifier is built for.
        sets: The out-of-distribution data sets.

    Raises:
        ValueError: If one has classes that the data set lacks, fewer than two classes, or no image.
    """
    for name, dataset in sets.items():
        # Over one class every prediction is correct.
        check_size(dataset, f"ood.{name}")
    return {name: Shift(dataset, classes_in(reference, dataset, name)) for name, dataset in sets.items()}


@dataclass(frozen=True)
class Evaluation:
    """Holds an evaluated run; its report is written from this.

    Attributes:
        data: The streams that were evaluated.
        dataset: The images that were evaluated: the readable ones.
        method: The method, after its test.
        synthetic_images: The synthetic images; None if the method needs none.
        entries: Further entries of result.json: `ood`, `student`, `prompt_tuning`, `membership`.
        texts: The text sides; None without a text tower.
    """

    data: Streams
    dataset: Dataset
    method: Classifier
    synthetic_images: SyntheticImages | None
    entries: Mapping[str, Any]
    texts: RunTexts | None = None


@dataclass(frozen=True)
class Evaluator:
    """Evaluates one method in the same way on every data set of a run.

    Attributes:
        context: Runs the test and the stages before it.
        method: The method.
        encoder: Turns images and sentences into features.
        scales: Views of an image.
        predictor: The predictor that the method trained; None if it trains nothing.
        pool: Unlabelled images that the method uses; None if it needs none, or the evaluated ones.
        texts: The text sides; None for the data set's templates alone.
    """

    context: RunContext
    method: Classifier
    encoder: Encoder
    scales: Scales
    predictor: TrainedPredictor | None = None
    pool: Dataset | None = None
    texts: RunTexts | None = None

    def evaluate(
        self,
        dataset: Dataset,
        synthetic_images: SyntheticImages | None,
        classes: tuple[int, ...] | None = None,
        name: str = "",
    ) -> tuple[Streams, Dataset]:
        """Computes the missing features and tests the method, which stores its `results`.

        Args:
            dataset: The images to evaluate.
            synthetic_images: The synthetic images of its classes; None if the method needs none.
            classes: Indices of these classes among the run's; None for all of them, in order.
            name: Name of a shifted set, used in the names of the stages.

        Returns:
            The streams, and the images that were evaluated: the readable ones.
        """
        context = self.context
        title = f"features {name}".strip()
        data, dataset = encode(
            context, dataset, self.encoder, self.scales,
            synthetic_images=synthetic_images, title=title, texts=self.texts, classes=classes,
        )  # fmt: skip
        pool = self._pool_stream(dataset)
        if pool is not None:
            data.streams.insert(-1, pool)
        if self.predictor is not None:
            predictor = self.predictor if classes is None else self.predictor.for_classes(classes)
            stage = f"{predictor.stage} {name}".strip()
            # Before the images to evaluate, which are last: the method must have what it compares them with before they
            # come.
            data.streams.insert(-1, predictor.stream(context, dataset, data, stage))
            self.method.use(predictor)
        with context.stages.timed(f"evaluation {name}".strip(), unit="image", total=len(dataset)):
            context.trainer.test(self.method, datamodule=data, verbose=False)
        return data, dataset

    def _pool_stream(self, dataset: Dataset) -> Stream | None:
        """Returns the unlabelled images of the method's alignment, encoded."""
        align = self.method.align
        if align is None or align.pool is None:
            return None
        if self.pool is not None:
            return encode_pool(self.context, self.pool, self.encoder, self.scales)
        # The evaluated images, whose features are stored already.
        return pool_stream(Unlabeled(dataset, align.limit), self.encoder, self.scales, self.context.store)

    def compare_pools(self, data: Streams, comparison: PoolComparison | None) -> list[dict[str, Any]]:
        """Compares transductive rules over pools of the evaluated images, from the scores of the method and baselines.

        Call it after `evaluate` of the test images.

        Args:
            data: The streams that were evaluated.
            comparison: What is compared; None for nothing.

        Returns:
            The entries of `pools` in result.json.
        """
        if comparison is None or not isinstance(self.method, ZeroShot) or not self.context.trainer.is_global_zero:
            return []
        real = data.streams[-1]
        starts: dict[str, UnlabeledPool] = {}
        for name, predictor in self.method.prototype_predictors.items():
            batches = [(predictor.features(batch), predictor.logits(batch)) for batch in real.batches()]
            features, scores = (torch.cat(parts) for parts in zip(*batches, strict=True))
            temperature = start_temperature(predictor.temperature).value
            starts[name] = UnlabeledPool(features, scores, temperature, predictor.prototypes)
        if self.method.predictor is not None:
            predicted = next(stream for stream in data.streams if stream.role is Role.PREDICTED)
            scores = torch.cat([self.method.predictor.logits(batch) for batch in predicted.batches()])
            features = torch.cat([self.scales.fuse(batch.features) for batch in real.batches()])
            temperature = start_temperature(self.method.predictor.temperature).value
            starts = {self.method.names[0]: UnlabeledPool(features, scores, temperature, None), **starts}
        with self.context.stages.timed("pools", unit="image", total=len(real.ids)):
            return [asdict(result) for result in comparison.results(starts, torch.tensor(real.labels))]

    def evaluate_shifts(
        self, reference: Dataset, synthetic_images: SyntheticImages | None, shifts: Mapping[str, Shift]
    ) -> dict[str, dict[str, Any]]:
        """Evaluates out-of-distribution sets, each next to the in-distribution images of the same classes.

        Call it after `evaluate` of the data set itself; the method's results are restored afterwards.

        A set with some of the classes is evaluated on those: a trained predictor's other logits and the other
        classes' prototypes are left out, as is standard for ImageNet-R and -A.

        Args:
            reference: The images that were evaluated.
            synthetic_images: The synthetic images of their classes.
            shifts: The shifted sets, by name.

        Returns:
            The entry of each set in `result.json`.
        """
        entries = {}
        for name, shift in shifts.items():
            # Evaluating a set overwrites the method's results on the last one, and each set is compared with the data
            # set itself.
            with _unchanged(self.method):
                entries[name] = self._evaluate_shift(reference, synthetic_images, shift, name)
        return entries

    def _evaluate_shift(
        self, reference: Dataset, synthetic_images: SyntheticImages | None, shift: Shift, name: str
    ) -> dict[str, Any]:
        dataset, classes = shift
        is_complete = classes == tuple(range(len(reference.class_names)))
        columns = None
        # With fewer classes to choose from every accuracy is higher. So the in-distribution images of these classes are
        # evaluated again over them: otherwise the difference would be of the number of classes, not of the shift.
        if not is_complete:
            columns = classes
            if synthetic_images is not None:
                synthetic_images = synthetic_images.only(classes)
            self.evaluate(Selected(reference, classes), synthetic_images, columns, f"in distribution {name}")
        # Copied, because the next test fills the same dictionary.
        earlier = dict(self.method.results)
        _, evaluated = self.evaluate(dataset, synthetic_images, columns, name)
        shifted = self._metrics(self.method.results, len(classes))
        before = self._metrics(earlier, len(classes))
        first = self.method.names[0]
        return {
            "dataset": {"name": dataset.name, "split": dataset.split, "source": dataset.source()},
            "n": len(evaluated),
            "images_in_dataset": len(dataset),
            "num_classes": len(classes),
            "metrics": shifted.pop(first),
            "baselines": shifted,
            "in_distribution": before.pop(first),
            "in_distribution_baselines": before,
            "shift": shift_of(_correct(earlier[first]), _correct(self.method.results[first])),
        }

    @staticmethod
    def _metrics(results: Mapping[str, Predictions], num_classes: int) -> dict[str, dict[str, object]]:
        return {name: _metrics_of(predictions, num_classes) for name, predictions in results.items()}

    def report_training(self, dataset: Dataset, prompt_form: str | None) -> dict[str, Any]:
        """Returns the entries of result.json about what the method trained; each is None where it does not apply.

        Call it after `evaluate` of the test images.

        Args:
            dataset: The test images.
            prompt_form: Prompt format of the synthetic images; None if it has no name.
        """
        entries: dict[str, Any] = {"prompt_tuning": None, "student": None, "membership": None}
        if self.predictor is not None:
            entries |= self.predictor.report(self.method.results, dataset, prompt_form)
        return entries

    def infer_membership(self, training: Dataset, images_per_class: int) -> dict[str, Any]:
        """Measures how well a threshold on the true class's probability separates training images from test images.

        Args:
            training: The real training images of the data set.
            images_per_class: Number of training images per class that the predictor was trained with, the first ones.

        Raises:
            ValueError: If the method trains nothing.
        """
        if self.predictor is None:
            raise ValueError("membership=true asks a trained predictor, and this method trains none")
        members = First(training, images_per_class)
        stream = self.predictor.stream(self.context, members, None, f"{self.predictor.stage} members")
        # Logarithms, because the probabilities of a trained model are so near to 1 that many would be equal.
        parts = [log_probs(self.predictor.logits(batch), batch.labels) for batch in stream.batches()]
        non_members = self.method.results[self.method.names[0]].log_prob
        return attack(torch.cat(parts), non_members.double())


@contextmanager
def _unchanged(method: Classifier) -> Iterator[None]:
    """Restores a method's results after another data set has been evaluated."""
    results = dict(method.results)
    choices = dict(method.choices)
    temperatures = dict(method.temperatures)
    support = method.support
    # Without `finally`: after an error the run ends, and nothing reads the method again.
    yield
    method.results = results
    method.choices = choices
    method.temperatures = temperatures
    method.support = support


def _correct(predictions: Predictions) -> np.ndarray:
    return (predictions.rank == 0).numpy()


def _metrics_of(predictions: Predictions, num_classes: int) -> dict[str, object]:
    return metrics(predictions.label.numpy(), predictions.rank.numpy(), num_classes)
