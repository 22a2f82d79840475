"""A method judged on a data set and on shifted ones of the same classes, and what a student remembers."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Trainer

from lgclip.damage import OnBadImage
from lgclip.data import Streams
from lgclip.datasets.base import Dataset
from lgclip.datasets.selected import First, Selected, classes_in
from lgclip.diffuser.base import Pictures
from lgclip.encoder.base import Encoder
from lgclip.encoder.prompted import Learnt
from lgclip.encoder.student import StudentEncoder
from lgclip.features import answered, encode
from lgclip.logits import from_unit, log_chances
from lgclip.membership import attack
from lgclip.methods.base import Classifier, Judged
from lgclip.robustness import shift_of
from lgclip.scales import Scales
from lgclip.stages import Stages
from lgclip.statistics import metrics
from lgclip.student_spec import Student
from lgclip.taught import Asked, Prompted, PromptTask
from lgclip.workshop import Workshop


class Shift(NamedTuple):
    """An out-of-distribution set.

    Attributes:
        dataset: Its images.
        classes: Which of the judged data set's classes each of its classes is.
    """

    dataset: Dataset
    classes: tuple[int, ...]


def shifts_of(known: Dataset, sets: Mapping[str, Dataset]) -> dict[str, Shift]:
    """Out-of-distribution sets, by name.

    Args:
        known: The data set that the classifier is made for.
        sets: The others.

    Raises:
        ValueError: If one has classes that the data set has not.
    """
    return {name: Shift(one, classes_in(known, one, name)) for name, one in sets.items()}


@dataclass(frozen=True)
class Bench:
    """What judges: the same for every data set of a run.

    Attributes:
        trainer: Runs the test.
        stages: Runs what must be made before.
        method: The method.
        encoder: Who encodes.
        scales: Views of an image.
        root: The store's folder.
        policy: What to do about images to judge that cannot be read.
        workers: Processes that decode images.
        logger: Of Lightning, which is told of what is learnt while it is learnt; False for none.
        student: A trained student; None if the method has none.
        prompt: Learnt prompts; None if the method has none.
        each: How many real training images of each class a student was taught with, or its prompts made of.
    """

    trainer: Trainer
    stages: Stages
    method: Classifier
    encoder: Encoder
    scales: Scales
    root: Path
    policy: OnBadImage
    workers: int
    logger: Any = False
    student: StudentEncoder | None = None
    prompt: Prompted | None = None
    each: int = 0

    def taught(
        self,
        asked: Asked | None,
        make_trainer: Callable[..., Trainer],
        dataset: Dataset,
        drawing: Pictures | None,
        opened: Callable[..., Dataset],
        each: int,
    ) -> "Bench":
        """This bench with what its method learns, which is learnt if it is not there yet.

        Args:
            asked: A recipe, or what was learnt before; None if the method learns nothing.
            make_trainer: Makes a Lightning trainer of the run's devices.
            dataset: What will be judged.
            drawing: The synthetic images.
            opened: Opens the data set with other values of its config: its training images, or all not judged.
            each: How many training images a student learns from, of each class.

        Raises:
            ValueError: If images that the recipe asks for are not there.
        """
        if asked is None:
            return self
        device = self.trainer.strategy.root_device
        if isinstance(asked, Student | PromptTask):

            def drawn() -> Pictures:
                assert drawing is not None
                return drawing

            where = (self.logger, self.workers, self.policy)
            shop = Workshop(self.stages, make_trainer, self.root, dataset, opened, drawn, *where)
            made = str(shop.make(asked, device, {"encoder": self.encoder, "scales": self.scales}, each))
            asked = StudentEncoder(made) if isinstance(asked, Student) else Learnt(made)
        if isinstance(asked, Learnt):
            return replace(self, prompt=Prompted(asked, self.encoder, self.scales, device))
        return replace(self, student=asked.on(device), each=each)

    def judge(
        self, dataset: Dataset, drawing: Pictures | None, classes: tuple[int, ...] | None = None, name: str = ""
    ) -> tuple[Streams, Dataset]:
        """Makes what is missing and judges; the judgement is in the method's `results`.

        Args:
            dataset: The images to judge.
            drawing: The synthetic images of its classes; None if the method needs none.
            classes: Which of the student's classes these are; None for all of them, in order.
            name: Of a shifted set, for the names of the stages.

        Returns:
            The streams, and the images that were judged: those that can be read.
        """
        title = f"features {name}".strip()
        data, dataset = encode(
            self.stages, dataset, self.encoder, self.scales, self.root, self.policy,
            drawing=drawing, workers=self.workers, student=self.student, title=title,
        )  # fmt: skip
        data.columns = classes
        if self.prompt is not None:
            where = (data, self.root, self.workers, title.replace("features", "prompted"))
            data.streams.insert(-1, self.prompt.answers(self.stages, dataset, *where))
        with self.stages.timed(f"judging {name}".strip(), unit="image", total=len(dataset)):
            self.trainer.test(self.method, datamodule=data, verbose=False)
        return data, dataset

    def shifted(
        self, known: Dataset, drawing: Pictures | None, shifts: Mapping[str, Shift]
    ) -> dict[str, dict[str, Any]]:
        """Judges out-of-distribution sets, each beside the in-distribution images of the same classes.

        To be called after `judge` of the data set itself, whose judgement the method keeps.

        A set with some of the classes is judged over those: the student's other logits and the other classes'
        prototypes are left out, as ImageNet-R and -A ask for.

        Args:
            known: The images that were judged.
            drawing: The synthetic images of their classes.
            shifts: The shifted sets, by name.

        Returns:
            Of each set what `result.json` says of it.
        """
        found = {}
        for name, shift in shifts.items():
            with _unchanged(self.method):
                found[name] = self._shifted(known, drawing, shift, name)
        return found

    def _shifted(self, known: Dataset, drawing: Pictures | None, shift: Shift, name: str) -> dict[str, Any]:
        dataset, classes = shift
        whole = classes == tuple(range(len(known.class_names)))
        some = drawing if whole or drawing is None else drawing.only(classes)
        columns, first = None if whole else classes, self.method.names[0]
        if not whole:
            self.judge(Selected(known, classes), some, columns, f"in distribution {name}")
        earlier = dict(self.method.results)
        _, judged_on = self.judge(dataset, some, columns, name)
        figures, before = (
            {who: _figures(judged, len(classes)) for who, judged in results.items()}
            for results in (self.method.results, earlier)
        )
        return {
            "dataset": {"name": dataset.name, "split": dataset.split, "source": dataset.source()},
            "n": len(judged_on),
            "images_in_dataset": len(dataset),
            "num_classes": len(classes),
            "metrics": figures.pop(first),
            "beside": figures,
            "in_distribution": before.pop(first),
            "in_distribution_beside": before,
            "shift": shift_of(_right(earlier[first]), _right(self.method.results[first])),
        }

    def of_learnt(
        self, dataset: Dataset, form: str | None, opened: Callable[..., Dataset] | None
    ) -> dict[str, dict[str, Any] | None]:
        """What result.json says of what was learnt: `student`, and `membership` if it is asked for; or `learner`.

        To be called after `judge` of the test images.

        Args:
            dataset: The test images.
            form: Of the prompts that its synthetic images were drawn from; None if they have no name.
            opened: Opens the data set with other values of its config: a student is asked about its training images,
                as many as it was taught with; None asks nothing.
        """
        if self.student is None:
            learner = None if self.prompt is None else self.prompt.told(self.method.results, dataset)
            return {"learner": learner, "student": None, "membership": None}
        about = self.student.about
        told = {name: about.get(name) for name in ("key", "backbone", "seed", "selected_on", "epoch", "accuracy")}
        history = about.get("history", [])
        columns = {name: [row[name] for row in history] for name in (history[0] if history else ()) if name != "epoch"}
        told |= {"steps": about.get("steps"), "history": columns}
        told |= {"precision": self.student.precision, "trained_on": {"form": form, **about["trained_on"]}}
        return {
            "student": told,
            "membership": self._membership(First(opened(**dataset.training_values()), self.each)) if opened else None,
        }

    def _membership(self, members: Dataset) -> dict[str, Any]:
        """How well a threshold on the true class's probability tells real training images from the test images."""
        assert self.student is not None
        stream = answered(self.stages, members, self.student, self.root, self.workers, "student members")
        parts = [log_chances(from_unit(batch.features[:, 0]), batch.labels) for batch in stream.batches()]
        others = self.method.results[self.method.names[0]].log_chance
        return attack(torch.cat(parts), others.double())


@contextmanager
def _unchanged(method: Classifier) -> Iterator[None]:
    """Gives a method back what it knew before another data set was judged."""
    results, choices = dict(method.results), dict(method.choices)
    temperatures, support = dict(method.temperatures), method.support
    yield
    method.results, method.choices = results, choices
    method.temperatures, method.support = temperatures, support


def _right(judged: Judged) -> np.ndarray:
    return (judged.rank == 0).numpy()


def _figures(judged: Judged, num_classes: int) -> dict[str, object]:
    return metrics(judged.label.numpy(), judged.rank.numpy(), num_classes)
