"""The stage that trains a student: images to a folder of the store that an encoder reads.

STORE/students/KEY/model.safetensors    its weights
STORE/students/KEY/student.json         what it is and what it was made from; written last
STORE/students/KEY/checkpoints/         while it is trained, so that the same command goes on
"""

from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from safetensors.torch import save_file

from lgclip.checkpoint import SafetensorsIO, last_checkpoint
from lgclip.encoder.backbone import Network, Tower, with_head
from lgclip.encoder.files import read_config
from lgclip.encoder.precision import decided
from lgclip.encoder.student import ABOUT, WEIGHTS
from lgclip.identity import digest_of, key_of
from lgclip.ledger import Account
from lgclip.lesson import Lesson, mixture_of
from lgclip.methods.student import Learner
from lgclip.mixture import Mixture
from lgclip.stages import Stages
from lgclip.steps import StepBar
from lgclip.training import PRECISION, Fitted, train_once
from lgclip.whole import write_json, write_whole


def _last_epoch(learner: Learner) -> dict[str, float]:
    """The last epoch's loss, and its accuracy on the held-out images."""
    return {name: row[name] for row in learner.history[-1:] for name in ("loss", "accuracy") if name in row}


def folder_of(lesson: Lesson, root: Path) -> Path:
    """Where the student of a lesson lies, or will lie.

    Args:
        lesson: Who learns, and from what.
        root: The store's folder.
    """
    return root / "students" / key_of(lesson.inputs())


def is_trained(folder: Path) -> bool:
    """Whether a student's training has ended."""
    return (folder / ABOUT).is_file() and (folder / WEIGHTS).is_file()


def learn(
    stages: Stages,
    make_trainer: Callable[..., Trainer],
    lesson: Lesson,
    root: Path,
    *,
    logger: Any = False,
    workers: int = 0,
) -> Path:
    """Trains a student, unless it is there; one whose training was interrupted goes on.

    Args:
        stages: Keeps account of it.
        make_trainer: Makes a Lightning trainer of the run's devices from the arguments it is given besides.
        lesson: Who learns, and from what.
        root: The store's folder.
        logger: Of Lightning; False for none.
        workers: Processes that make batches.

    Returns:
        The student's folder, which `encoder.student.StudentEncoder` reads.

    Raises:
        ValueError: If an image cannot be read, or the backbone cannot be built.
    """
    folder = folder_of(lesson, root)

    def train() -> Fitted:
        tower, network = _network(lesson)
        mixture = mixture_of(lesson, tower, workers)
        learner = Learner(network, lesson.student, tower.mean, tower.std)
        trainer = _fit(make_trainer, learner, mixture, folder, logger)
        found = _of_network(tower, network) | _of_images(lesson, mixture)
        return trainer, lambda spent: _write(folder, lesson, learner, spent | found)

    spared = Account("student", 0, lesson.student.epochs, 0.0, "epoch")
    return train_once(folder, stages, spared, train, there=is_trained(folder))


def _network(lesson: Lesson) -> tuple[Tower, Network]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(lesson.student.seed)  # the first weights
        tower = lesson.student.tower(lesson.encoder)
        return tower, with_head(tower, len(lesson.dataset.class_names), frozen=lesson.student.frozen)


def _fit(
    make_trainer: Callable[..., Trainer], learner: Learner, mixture: Mixture, folder: Path, logger: Any
) -> Trainer:
    """Trains, from the last checkpoint if there is one."""
    student = learner.student
    trainer = make_trainer(
        max_steps=mixture.steps,
        max_epochs=-1,
        precision=PRECISION[decided(student.precision)],
        plugins=[SafetensorsIO()],
        callbacks=[last_checkpoint(folder / "checkpoints", student.checkpoint_every), StepBar("student", _last_epoch)],
        logger=logger,
        log_every_n_steps=mixture.steps_per_epoch,
    )
    last = folder / "checkpoints" / "last.safetensors"
    trainer.fit(learner, datamodule=mixture, ckpt_path=last if last.exists() else None)
    return trainer


def _of_network(tower: Tower, network: Network) -> dict[str, object]:
    """What `StudentEncoder` needs to know of a network and of its images."""
    return {
        "network": asdict(tower.plan),
        "width": network.head.in_features,
        "frozen": network.frozen,
        "image_size": tower.image_size,
        "mean": list(tower.mean),
        "std": list(tower.std),
        "interpolation": tower.interpolation,
    }


def _of_images(lesson: Lesson, mixture: Mixture) -> dict[str, object]:
    """What a student was trained on: how many images of each kind, and where they are from."""
    own, training, drawn = lesson.student, lesson.training, lesson.synthetic
    judged = 0 if mixture.judged is None or own.select_on == "real" else len(mixture.judged)
    return {
        "trained_on": {
            "mix": own.mix,
            **{kind: len(mixture.sources.get(kind, ())) for kind in ("synthetic", "real")},
            "held_out": judged,
            "dataset": lesson.dataset.name,
            "split": training.split if own.needs_real and training is not None else None,
            "images": drawn.key if own.needs_synthetic and drawn is not None else None,
        },
        "steps": mixture.steps,
    }


def _write(folder: Path, lesson: Lesson, learner: Learner, found: dict[str, object]) -> None:
    """Writes the student, and what is told of it last."""
    student = lesson.student
    with write_whole(folder / WEIGHTS) as temporary:
        save_file(learner.weights(), temporary)
    epoch = learner.best_epoch or student.epochs
    about = {
        "key": folder.name,
        "backbone": student.backbone,
        "seed": student.seed,
        "selected_on": lesson.selected_on,
        "epoch": epoch,
        "accuracy": learner.history[epoch - 1].get("accuracy"),
        "class_names": list(lesson.dataset.class_names),
        "num_classes": len(lesson.dataset.class_names),
        "centre": student.centre,
        "sha256": digest_of(folder / WEIGHTS),
        **found,
        "versions": {name: version(name) for name in ("torch", "torchvision", "timm", "lightning")},
        "inputs": lesson.inputs(),
        "history": learner.history,
    }
    write_json(folder / ABOUT, about)


def told(folder: Path) -> str:
    """One line on a trained student: its folder, and how it was selected.

    Args:
        folder: Where it lies.
    """
    about = read_config(folder / ABOUT)
    accuracy, on = about["accuracy"], {"synthetic": "synthetic", "training": "real training"}
    if accuracy is None:
        return f"{folder}: trained for {about['epoch']} epochs, nothing held out"
    marked = "; selected on the real test images" if about["selected_on"] == "real" else ""
    images = on.get(about["selected_on"], "test" if marked else "held-out")
    return f"{folder}: {accuracy:.1%} of the held-out {images} images after epoch {about['epoch']}{marked}"
