"""Defines the inputs of a student's training: recipe, images, and its content key."""

import hashlib
from dataclasses import dataclass

from lgclip.datasets.base import Dataset, check_same_classes
from lgclip.datasets.subsets import First
from lgclip.diffuser.base import SyntheticImages
from lgclip.encoder.backbone import Tower
from lgclip.encoder.base import Encoder
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.keys import key_inputs
from lgclip.training.augmentation import augmentation, center_cropped
from lgclip.training.student.config import Student
from lgclip.training.student.data import MixedData, Source, held_out
from lgclip.training.task import TrainingInputs


@dataclass(frozen=True)
class StudentSetup:
    """Holds the recipe and the images of a student's training.

    Args:
        student: The recipe.
        dataset: The data set to evaluate: its classes, and with `select_on=real` its images.
        synthetic: Synthetic images; needed unless `real_fraction` is 1.
        training: Real images; needed unless `real_fraction` is 0.
        encoder: The run's own, whose vision tower is used by `backbone=encoder`.

    Raises:
        ValueError: If images that `real_fraction` requires are missing, or the classes are not the same.
    """

    student: Student
    dataset: Dataset
    synthetic: SyntheticImages | None = None
    training: Dataset | None = None
    encoder: Encoder | None = None

    def __post_init__(self) -> None:
        real_fraction = self.student.real_fraction
        if self.student.needs_real and self.training is None:
            raise ValueError(
                f"student.real_fraction={real_fraction} takes real training images, and there are none; "
                f"real_fraction=0 takes none"
            )
        if self.student.needs_synthetic and self.synthetic is None:
            raise ValueError(
                f"student.real_fraction={real_fraction} takes synthetic images, and there are none; real_fraction=1 "
                f"takes none"
            )
        if self.student.needs_real and self.training is not None:
            check_same_classes(self.dataset, self.training)
        if self.student.needs_synthetic and self.synthetic is not None:
            # The student's logits have the order of these classes, and the labels of both kinds of image are indices
            # into it.
            synthetic = tuple(target_class.name for target_class in self.synthetic.target_classes)
            if synthetic != self.dataset.class_names:
                raise ValueError(
                    f"the synthetic images are of {len(synthetic)} other classes than the "
                    f"{len(self.dataset.class_names)} "
                    f"of dataset={self.dataset.name}; generate them for that data set"
                )

    @classmethod
    def of(cls, student: Student, inputs: TrainingInputs) -> "StudentSetup":
        """Prepares a setup on the images of a run: only those that `real_fraction` requires.

        Args:
            student: The recipe.
            inputs: The parts of the run. Real images are loaded first: if there are none, the error comes before
                hours of generation.
        """
        source = student.source(inputs.encoder)
        if source is not None:
            source.inputs()  # an encoder that cannot be loaded is an error before that, too
        # `inputs.data.training` opens the data set, which may have no training images at all.
        real = None
        if student.needs_real:
            real = First(inputs.data.training, inputs.images_per_class)
        synthetic = None
        if student.needs_synthetic:
            synthetic = inputs.synthetic_images()
        return cls(student, inputs.data.evaluated, synthetic, real, inputs.encoder)

    def sources(self) -> dict[str, Source]:
        """Returns the images that `real_fraction` requires, by kind, including those that will be held out."""
        sources = {}
        # Both conditions: images that `real_fraction` does not take must not be in the key, even if they were given.
        if self.student.needs_synthetic and self.synthetic is not None:
            synthetic = self.synthetic
            sources["synthetic"] = Source(
                synthetic.ids, [prompt.class_index for prompt in synthetic.prompts], synthetic.image
            )
        if self.student.needs_real and self.training is not None:
            sources["real"] = Source(self.training.ids, self.training.labels, self.training.image)
        return sources

    @property
    def selected_on(self) -> str:
        """Returns the basis of epoch selection: `synthetic`, `training` (held-out real images), `last` or `real`."""
        # Without synthetic images the held-out ones are real, which the report must not call synthetic.
        if self.student.select_on == "synthetic" and self.student.real_fraction == 1:
            return "training"
        return self.student.select_on

    def inputs(self) -> dict[str, object]:
        """Returns everything that the weights depend on."""
        source = self.student.source(self.encoder)
        tower = None
        if source is not None:
            tower = source.inputs()
        # The test images choose the epoch only with `real`; otherwise the same student serves any test set.
        evaluated = None
        if self.student.select_on == "real":
            evaluated = _content(Source(self.dataset.ids, self.dataset.labels, self.dataset.image))
        return {
            "student": key_inputs(self.student),
            "tower": tower,
            "class_names": list(self.dataset.class_names),
            "images": {name: _content(images) for name, images in self.sources().items()},
            "evaluated": evaluated,
            "schema": STORE_SCHEMA,
        }


def _content(source: Source) -> str:
    """Returns the hash of the ids and the labels of some images, in their order."""
    digest = hashlib.sha256()
    for name, label in zip(source.ids, source.labels, strict=True):
        digest.update(f"{name} {label}\n".encode())
    return f"sha256:{digest.hexdigest()[:32]}"


def build_mixed_data(setup: StudentSetup, tower: Tower, workers: int) -> MixedData:
    """Builds the training data and the images to select on, preprocessed for the backbone.

    Args:
        setup: The recipe and the images.
        tower: The backbone.
        workers: Number of processes that build batches.

    Raises:
        ValueError: If nothing is held out to select on.
    """
    student = setup.student
    sources = setup.sources()
    kind = "synthetic" if "synthetic" in sources else "real"
    # Selected on the test images, the student needs no held-out ones, so it learns from all.
    share = student.validation
    if student.select_on == "real":
        share = 0.0
    sources[kind], out = held_out(sources[kind], share, student.seed)
    # A fraction above 0 can still round to no image where the classes are small.
    if student.select_on == "synthetic" and not len(out):
        raise ValueError(
            f"student.validation={student.validation} holds out none of {len(sources[kind])} {kind} images to select "
            "on; raise it, generate more images per class, or set student.select_on=last"
        )
    if student.select_on == "real":
        out = Source(setup.dataset.ids, setup.dataset.labels, setup.dataset.image)
    size = tower.image_size
    interpolation = tower.interpolation
    return MixedData(
        sources,
        student.real_fraction,
        batch_size=student.batch_size,
        epochs=student.epochs,
        seed=student.seed,
        augmentation=augmentation(
            size, student.crop, flip=student.flip, color_jitter=student.color_jitter, interpolation=interpolation
        ),
        eval_transform=center_cropped(size, student.center_crop, interpolation),
        evaluated=out if len(out) else None,
        workers=workers,
    )
