"""Who learns, from which images, and what all of that depends on."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from lgclip.augmentation import augmentation, centred
from lgclip.datasets.base import Dataset, check_same_classes
from lgclip.datasets.selected import First
from lgclip.diffuser.base import Pictures
from lgclip.encoder.backbone import Tower
from lgclip.encoder.base import Encoder
from lgclip.identity import SCHEMA, inputs_of
from lgclip.mixture import Mixture, Source, held_out
from lgclip.student_spec import Student


@dataclass(frozen=True)
class Lesson:
    """Who learns, and from what.

    Args:
        student: The recipe.
        dataset: What the student will be judged on: the classes, and with `select_on=real` the images.
        synthetic: Synthetic images; needed unless `mix` is 1.
        training: Real images; needed unless `mix` is 0.
        encoder: The run's own, whose vision tower `backbone=encoder` stands for.

    Raises:
        ValueError: If images that `mix` asks for are not given, or the classes are not the same.
    """

    student: Student
    dataset: Dataset
    synthetic: Pictures | None = None
    training: Dataset | None = None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        mix = self.student.mix
        if self.student.needs_real and self.training is None:
            raise ValueError(f"student.mix={mix} takes real training images, and there are none; mix=0 takes none")
        if self.student.needs_synthetic and self.synthetic is None:
            raise ValueError(f"student.mix={mix} takes synthetic images, and there are none; mix=1 takes none")
        if self.student.needs_real and self.training is not None:
            check_same_classes(self.dataset, self.training)
        if self.student.needs_synthetic and self.synthetic is not None:
            drawn = tuple(subject.name for subject in self.synthetic.subjects)
            if drawn != self.dataset.class_names:
                raise ValueError(
                    f"the synthetic images are of {len(drawn)} other classes than the {len(self.dataset.class_names)} "
                    f"of dataset={self.dataset.name}; draw them for that data set"
                )

    @classmethod
    def of(
        cls,
        student: Student,
        dataset: Dataset,
        encoder: Encoder | None,
        draw: Callable[[], Pictures],
        training: Callable[[], Dataset],
        each: int,
    ) -> "Lesson":
        """A lesson whose images are made now: only those that `mix` asks for.

        Args:
            student: The recipe.
            dataset: What the student will be judged on.
            encoder: The run's own.
            draw: Makes the synthetic images.
            training: Opens the real ones. That comes first: that there are none is said before hours of drawing.
            each: How many real images of each class are learned from, the first ones: those that captions are of.
        """
        if encoder is not None and (source := student.source(encoder)) is not None:
            source.inputs()  # one that cannot be had is said then, too
        real = First(training(), each) if student.needs_real else None
        return cls(student, dataset, draw() if student.needs_synthetic else None, real, encoder)

    def sources(self) -> dict[str, Source]:
        """The images that `mix` asks for, by their kind, those that will be held out among them."""
        found = {}
        if self.student.needs_synthetic and self.synthetic is not None:
            drawn = self.synthetic
            found["synthetic"] = Source(drawn.ids, [prompt.class_index for prompt in drawn.prompts], drawn.image)
        if self.student.needs_real and self.training is not None:
            found["real"] = Source(self.training.ids, self.training.labels, self.training.image)
        return found

    @property
    def selected_on(self) -> str:
        """What its epoch is chosen on: `synthetic`, `training` (held-out real training images), `last` or `real`."""
        return "training" if self.student.select_on == "synthetic" and self.student.mix == 1 else self.student.select_on

    def inputs(self) -> dict[str, object]:
        """Everything that the weights depend on."""
        source = self.student.source(self.encoder)
        judged = Source(self.dataset.ids, self.dataset.labels, self.dataset.image)
        return {
            "student": inputs_of(self.student),
            "tower": None if source is None else source.inputs(),
            "class_names": list(self.dataset.class_names),
            "images": {name: _content(images) for name, images in self.sources().items()},
            "judged": _content(judged) if self.student.select_on == "real" else None,
            "schema": SCHEMA,
        }


def _content(source: Source) -> str:
    """Hash of the ids and the labels of some images, in their order."""
    digest = hashlib.sha256()
    for name, label in zip(source.ids, source.labels, strict=True):
        digest.update(f"{name} {label}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def mixture_of(lesson: Lesson, tower: Tower, workers: int) -> Mixture:
    """What a student learns from and is selected on, as its backbone wants it.

    Args:
        lesson: Who learns, and from what.
        tower: The backbone.
        workers: Processes that make batches.

    Raises:
        ValueError: If nothing is held out to select on.
    """
    student, sources = lesson.student, lesson.sources()
    kind = "synthetic" if "synthetic" in sources else "real"
    share = 0.0 if student.select_on == "real" else student.validation
    sources[kind], out = held_out(sources[kind], share, student.seed)
    if student.select_on == "synthetic" and not len(out):
        raise ValueError(
            f"student.validation={student.validation} holds out none of {len(sources[kind])} {kind} images to select "
            "on; raise it, draw more images a class, or set student.select_on=last"
        )
    if student.select_on == "real":
        out = Source(lesson.dataset.ids, lesson.dataset.labels, lesson.dataset.image)
    size, how = tower.image_size, tower.interpolation
    return Mixture(
        sources,
        student.mix,
        batch_size=student.batch_size,
        epochs=student.epochs,
        seed=student.seed,
        change=augmentation(size, student.crop, flip=student.flip, colour_jitter=student.colour_jitter, how=how),
        look=centred(size, student.centre, how),
        judged=out if len(out) else None,
        workers=workers,
    )
