"""One student by one process and by two, in the folders OUT/1 and OUT/2.

python tests/fit_students.py OUT

Its backbone has no batch statistics: torch brings those of several processes together on GPUs alone.
"""

import sys
from functools import partial
from pathlib import Path

import torch
from crowd import forked
from student_worlds import Patches, drawn, one_cpu, small, stages_of

from lgclip.learning import learn
from lgclip.lesson import Lesson


def fit(out: Path, devices: int) -> None:
    """What each process does."""
    student = small(backbone="test_vit", mix=0.5, batch_size=7, label_smoothing=0.1, ema=0.5, select_on="last")
    lesson = Lesson(student, Patches(), drawn(out.parent / "drawn"), Patches(8, "train"))
    trainer = partial(one_cpu, devices=devices, strategy="ddp" if devices > 1 else "auto")
    learn(stages_of(trainer), trainer, lesson, out / "store")


def main(out: Path) -> None:
    """Both, one after the other."""
    torch.set_num_threads(1)
    drawn(out / "drawn")
    for devices in (1, 2):
        forked(devices, out / str(devices), partial(fit, out / str(devices), devices))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
