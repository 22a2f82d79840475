"""What a method has learnt, and how it answers: a student by its logits, soft prompts by their classes' cosines."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from lgclip.allowed import build, target_of
from lgclip.batch import FeatureBatch
from lgclip.data import Stream, Streams
from lgclip.datasets.base import Dataset
from lgclip.encoder.base import Encoder
from lgclip.encoder.prompted import Learnt
from lgclip.encoder.student import StudentEncoder
from lgclip.features import answered
from lgclip.logits import as_unit
from lgclip.lora_spec import LoraTuning
from lgclip.methods.base import Classifier, Judged
from lgclip.paradigms import Paradigm, harmonic
from lgclip.prompt_learning import check_towers
from lgclip.prompt_spec import PromptSpec
from lgclip.prototypes import Support
from lgclip.scales import Scales
from lgclip.stages import Stages
from lgclip.student_spec import Student


class PromptTask(NamedTuple):
    """Prompts to be learnt.

    Attributes:
        spec: How.
        paradigm: Which labels of the pool may be known.
    """

    spec: PromptSpec
    paradigm: Paradigm


Asked = Student | StudentEncoder | PromptTask | Learnt
"""What a run asks for: a recipe, or what was learnt before."""


def classifier(config: DictConfig) -> Callable[..., Classifier]:
    """What makes the method that a config names.

    Args:
        config: Of the method.

    Raises:
        ValueError: If it judges nothing.
    """
    target = target_of(config)
    if not (isinstance(target, type) and issubclass(target, Classifier)):
        raise ValueError(f"method: {target.__name__} judges nothing and only trains; give it to train.py")
    return build(config, _partial_=True, _convert_="all")


def asked_of(
    method: Classifier,
    recipe: Callable[[str], Any],
    folder: str | None,
    dataset: Dataset,
    towers: tuple[Encoder, Scales],
    *,
    membership: bool,
) -> Asked | None:
    """What a run's method learns, or has learnt; None if it learns nothing.

    Args:
        method: The method.
        recipe: Builds a group of the config.
        folder: Where something learnt lies; None to learn it.
        dataset: What it is to judge.
        towers: Who encodes, and the views of an image.
        membership: Whether a student is asked which images it was trained on.

    Raises:
        ValueError: If there is no recipe, or nothing in the folder that can judge this.
    """
    if membership and method.learns != "student":
        raise ValueError("membership=True is asked of a student: use method=student")
    if method.learns is None:
        if folder:
            raise ValueError(f"ckpt={folder} is asked of a student or a prompt: use method=student or method=air")
        return None
    if method.learns == "prompt":
        if folder is not None:
            learnt = Learnt(folder)
            learnt.check(towers[0], dataset.class_names)
            return learnt
        task = PromptTask(recipe("learner"), recipe("paradigm"))
        check_towers(task.spec, *towers)
        return task
    return student_of(recipe, folder, dataset)


def recipe_of(name: str, method: Mapping[str, Any], recipe: Callable[[str], Any]) -> Student | PromptTask | LoraTuning:
    """What `train.py` is asked for.

    Args:
        name: The method's name.
        method: Its config.
        recipe: Builds a group of the config.

    Raises:
        ValueError: If the method trains nothing, or no student is chosen.
    """
    if "text_weight" not in method:
        return recipe("method")
    if method["text_weight"] is not None:
        raise ValueError(
            f"method={name} trains nothing: choose student, air, diffuser_lora or a recipe such as tiny_encoder"
        )
    if method.get("learns") == "prompt":
        return PromptTask(recipe("learner"), recipe("paradigm"))
    student = student_of(recipe, None, None)
    assert isinstance(student, Student)
    return student


def student_of(recipe: Callable[[str], Any], folder: str | None, dataset: Dataset | None) -> Student | StudentEncoder:
    """The student that a run asks for, to be trained or there already; the rest is as of `asked_of`."""
    if folder is None:
        student = recipe("student")
        if not student:  # the config of student=none is empty
            raise ValueError("method=student needs a recipe: student=tiny, small_set, release, probe or finetune")
        return student
    found = StudentEncoder(folder)
    assert dataset is not None
    if found.class_names != tuple(dataset.class_names):
        raise ValueError(
            f"ckpt={folder}: this student knows {len(found.class_names)} classes, {found.class_names[0]!r} "
            f"first, which are not the {len(dataset.class_names)} of dataset={dataset.name}; name the data set that "
            "it was trained for"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class Answers(Stream):
    """What soft prompts say of images whose features are there: logits as unit vectors.

    Attributes:
        classes: Unit feature of each class.
        temperature: What cosines are divided by.
        scales: Adds up the views of an image.
    """

    classes: Float[Tensor, "c d"]
    temperature: float
    scales: Scales

    def rows(self, places: Int[Tensor, " b"]) -> FeatureBatch:
        """The logits of some images, from features that are read when they are asked for."""
        batch = super().rows(places)
        logits = self.scales.fuse(batch.features) @ self.classes.T / self.temperature
        return batch._replace(features=as_unit(logits)[:, None])


@dataclass(frozen=True)
class Prompted:
    """Learnt prompts, ready to answer.

    Attributes:
        learnt: Where they lie.
        encoder: Through whose towers.
        scales: Views of an image.
        device: Where these run.
    """

    learnt: Learnt
    encoder: Encoder
    scales: Scales
    device: torch.device

    def answers(self, stages: Stages, dataset: Dataset, data: Streams, root: Path, workers: int, title: str) -> Stream:
        """What they say of the images of a data set, over its own classes.

        Args:
            stages: Runs what must be made.
            dataset: The images.
            data: The encoder's streams of them.
            root: The store's folder.
            workers: Processes that decode images.
            title: Name of the stage.
        """
        streams = {stream.name: stream for stream in data.streams}
        seen = streams["real"]
        if "visual" in self.learnt.kinds:
            seen = answered(stages, dataset, self.learnt.encoder(self.encoder), root, workers, title)
        classes = self.learnt.class_features(self.encoder, dataset.class_names, self.device)
        if classes is None:
            text = streams["text"]
            support = Support(text.features()[:, 0], torch.tensor(text.labels), len(dataset.class_names))
            classes = support.means(renormalise=True)
        given: dict[str, Any] = {field.name: getattr(seen, field.name) for field in fields(Stream)}
        temperature = float(self.learnt.about["temperature"])
        return Answers(**{**given, "name": "prompted"}, classes=classes, temperature=temperature, scales=self.scales)

    def told(self, results: dict[str, Judged], dataset: Dataset) -> dict[str, Any]:
        """What result.json says of them: where they are from, each round, and in `trzsl` accuracy by kind of class."""
        about = self.learnt.about
        names = ("key", "kinds", "seed", "paradigm", "rounds", "aid", "temperature", "learnt_from")
        found: dict[str, Any] = {name: about.get(name) for name in names}
        if about["unseen"] and tuple(about["class_names"]) == tuple(dataset.class_names):
            found["by_kind"] = {name: _by_kind(one, about["seen"], about["unseen"]) for name, one in results.items()}
        return found


def _by_kind(judged: Judged, seen: list[int], unseen: list[int]) -> dict[str, float]:
    """Top-1 on the images of seen classes and of unseen ones, and the harmonic mean of both."""
    right = judged.rank == 0
    shares = [
        float(right[torch.isin(judged.label, torch.tensor(classes))].float().mean()) for classes in (seen, unseen)
    ]
    return {"seen": shares[0], "unseen": shares[1], "harmonic": harmonic(*shares)}
