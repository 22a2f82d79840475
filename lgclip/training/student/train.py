"""Trains a student into a folder of the store that an encoder reads.

STORE/students/KEY/model.safetensors    its weights
STORE/students/KEY/student.json         its description and its inputs; written last
STORE/students/KEY/checkpoints/         during the training, so that the same command resumes
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Trainer
from safetensors.torch import save_file

from lgclip.encoder.backbone import Network, Tower, with_head
from lgclip.encoder.precision import decided_for_training
from lgclip.encoder.weight_files import is_intact, read_config
from lgclip.stages.context import RunContext
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.checkpoints import SafetensorsIO, last_checkpoint, resumable
from lgclip.store.keys import digest_of
from lgclip.training.loop import PRECISION, StepBar
from lgclip.training.student.data import MixedData
from lgclip.training.student.encoder import ABOUT, WEIGHTS
from lgclip.training.student.module import StudentModule
from lgclip.training.student.task import StudentSetup, build_mixed_data
from lgclip.training.task import FitResult, TrainingTask


def _last_epoch(module: StudentModule) -> dict[str, float]:
    """Returns the last epoch's loss, and its accuracy on the held-out images."""
    if not module.history:
        return {}
    row = module.history[-1]
    # There is no accuracy where nothing is held out.
    return {name: row[name] for name in ("loss", "accuracy") if name in row}


@dataclass(frozen=True)
class StudentTraining(TrainingTask):
    """Trains a classifier on synthetic images, real ones, or both (arXiv:2307.08526).

    Attributes:
        setup: The recipe and the images.
    """

    folder_name: ClassVar[str] = "students"
    stage: ClassVar[str] = "student"
    unit: ClassVar[str] = "epoch"

    setup: StudentSetup

    @property
    def amount(self) -> int:
        return self.setup.student.epochs

    def inputs(self) -> dict[str, object]:
        return self.setup.inputs()

    def is_complete(self, folder: Path) -> bool:
        return (folder / ABOUT).is_file() and is_intact(folder, ABOUT, {"": WEIGHTS})

    def fit(self, context: RunContext, folder: Path) -> FitResult:
        setup = self.setup
        tower, network = _network(setup)
        mixed_data = build_mixed_data(setup, tower, context.training_workers)
        module = StudentModule(network, setup.student, tower.mean, tower.std)
        trainer = _fit(context, module, mixed_data, folder)
        return FitResult(trainer, (module, _of_network(tower, network) | _of_images(setup, mixed_data)))

    def save(self, folder: Path, outcome: Any, cost: Mapping[str, object]) -> None:
        module, described = outcome
        _write(folder, self.setup, module, {**cost, **described})

    @classmethod
    def summary(cls, folder: Path) -> str:
        about = read_config(folder / ABOUT)
        accuracy = about["accuracy"]
        if accuracy is None:
            return f"{folder}: trained for {about['epoch']} epochs, nothing held out"
        kinds = {"synthetic": "synthetic", "training": "real training", "real": "test"}
        images = kinds.get(about["selected_on"], "held-out")
        # Said aloud, because an accuracy on the images that chose the epoch is too high.
        marked = ""
        if about["selected_on"] == "real":
            marked = "; selected on the real test images"
        return f"{folder}: {accuracy:.1%} of the held-out {images} images after epoch {about['epoch']}{marked}"


def _network(setup: StudentSetup) -> tuple[Tower, Network]:
    # The first weights come from torch's global generator. It is restored, so that training here does not affect
    # what comes after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(setup.student.seed)
        tower = setup.student.tower(setup.encoder)
        return tower, with_head(tower, len(setup.dataset.class_names), frozen=setup.student.frozen)


def _fit(context: RunContext, module: StudentModule, mixed_data: MixedData, folder: Path) -> Trainer:
    """Trains, from the last checkpoint if there is one."""
    student = module.student
    trainer = context.make_trainer(
        # Steps end the training: the sampler runs through all epochs, which Lightning sees as one.
        max_steps=mixed_data.steps,
        max_epochs=-1,
        precision=PRECISION[decided_for_training(student.precision)],
        plugins=[SafetensorsIO()],
        callbacks=[last_checkpoint(folder / "checkpoints", student.checkpoint_every), StepBar("student", _last_epoch)],
        logger=context.logger,
        log_every_n_steps=mixed_data.steps_per_epoch,
    )
    checkpoint = resumable(folder / "checkpoints" / "last.safetensors")
    trainer.fit(module, datamodule=mixed_data, ckpt_path=checkpoint)
    return trainer


def _of_network(tower: Tower, network: Network) -> dict[str, object]:
    """Returns the description of a network and its preprocessing that `StudentEncoder` reads."""
    return {
        "network": asdict(tower.plan),
        "width": network.head.in_features,
        "frozen": network.frozen,
        "image_size": tower.image_size,
        "mean": list(tower.mean),
        "std": list(tower.std),
        "interpolation": tower.interpolation,
    }


def _of_images(setup: StudentSetup, mixed_data: MixedData) -> dict[str, object]:
    """Returns the training data of a student: the number of images of each kind, and their origin."""
    student = setup.student
    # With `select_on=real` the evaluated images are the test set, of which nothing was held out.
    held_out = 0
    if mixed_data.evaluated is not None and student.select_on != "real":
        held_out = len(mixed_data.evaluated)
    # A setup may hold images that `real_fraction` does not take. They are not named: the student has not seen them.
    split = None
    if student.needs_real and setup.training is not None:
        split = setup.training.split
    images = None
    if student.needs_synthetic and setup.synthetic is not None:
        images = setup.synthetic.key
    return {
        "trained_on": {
            "real_fraction": student.real_fraction,
            **{kind: len(mixed_data.sources.get(kind, ())) for kind in ("synthetic", "real")},
            "held_out": held_out,
            "dataset": setup.dataset.name,
            "split": split,
            "images": images,
        },
        "steps": mixed_data.steps,
    }


def _write(folder: Path, setup: StudentSetup, module: StudentModule, described: dict[str, object]) -> None:
    """Writes the student, and its metadata last."""
    student = setup.student
    with atomic_write(folder / WEIGHTS) as temporary:
        save_file(module.weights(), temporary)
    # No epoch was selected with `select_on=last`, and epochs count from 1.
    epoch = module.best_epoch or student.epochs
    about = {
        "key": folder.name,
        "backbone": student.backbone,
        "seed": student.seed,
        "selected_on": setup.selected_on,
        "epoch": epoch,
        "accuracy": module.history[epoch - 1].get("accuracy"),
        "class_names": list(setup.dataset.class_names),
        "num_classes": len(setup.dataset.class_names),
        "center_crop": student.center_crop,
        "sha256": digest_of(folder / WEIGHTS),
        **described,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")},
        "inputs": setup.inputs(),
        "history": module.history,
    }
    write_json(folder / ABOUT, about)
