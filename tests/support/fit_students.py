"""Trains one student with one process and with two, in OUT/1 and OUT/2.

python tests/support/fit_students.py OUT

Its backbone has no batch statistics: torch brings those of several processes together on GPUs alone.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from multiprocess_runs import run_in_ranks
from student_factories import ColorPatches, build_context, build_stages, one_cpu, small_student, synthetic_patches

from lgclip.training.loop import run_training
from lgclip.training.student.task import StudentSetup
from lgclip.training.student.train import StudentTraining


def fit(out: Path, devices: int) -> None:
    """Runs in each process."""
    student = small_student(
        backbone="test_vit", real_fraction=0.5, batch_size=7, label_smoothing=0.1, ema=0.5, select_on="last"
    )
    setup = StudentSetup(student, ColorPatches(), synthetic_patches(out.parent / "drawn"), ColorPatches(8, "train"))
    trainer = partial(one_cpu, devices=devices, strategy="ddp" if devices > 1 else "auto")
    run_training(StudentTraining(setup), build_context(out / "store", trainer, stages=build_stages(trainer)))


def main(out: Path) -> None:
    """Runs both, one after the other."""
    torch.set_num_threads(1)
    synthetic_patches(out / "drawn")
    for devices in (1, 2):
        run_in_ranks(devices, out / str(devices), partial(fit, out / str(devices), devices))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
