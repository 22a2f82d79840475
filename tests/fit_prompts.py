"""The same prompts by one process and by two, in the folders OUT/1 and OUT/2; or OUT/killed, ended in its second round.

python tests/fit_prompts.py OUT [killed]
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from crowd import forked
from prompt_worlds import encoder_of, ground_of, lesson_of, taught
from student_worlds import one_cpu

from lgclip.batch import PromptBatch
from lgclip.methods.prompt_learner import PromptRound

RECIPE = {
    "prompt": "both", "epochs": 3, "batch_size": 7, "synthetic_weight": 0.5, "synthetic_batch": 3,
    "auxiliary": "given", "nearest": 3, "warm_start": True, "checkpoint_every": 2,
}  # fmt: skip
"""Everything at once."""


def fit(out: Path, folder: Path, devices: int) -> None:
    """What each process does."""
    lesson = lesson_of(out, ground_of(out, "ssl", images=4), **RECIPE)
    strategy = "ddp" if devices > 1 else "auto"
    taught(lesson, folder / "store", partial(one_cpu, devices=devices, strategy=strategy))


def kill(module: PromptRound, batch: PromptBatch, batch_idx: int) -> torch.Tensor:
    """In place of a step: ends the process in the middle of the second round."""
    if batch.step == 5 and list(Path().glob("*/store/prompts_learned/*/checkpoints/rounds.safetensors")):
        os.kill(os.getpid(), signal.SIGKILL)
    return STEP(module, batch, batch_idx)


STEP = PromptRound.training_step


def main(out: Path, how: str = "") -> None:
    """Both, one after the other; or the one that is killed."""
    torch.set_num_threads(1)
    encoder_of(out)
    if how == "killed":
        os.chdir(out)
        PromptRound.training_step = kill  # pyright: ignore[reportAttributeAccessIssue]
        fit(out, out / "killed", 1)
    ground_of(out, "ssl", images=4)
    for devices in (1, 2):
        forked(devices, out / str(devices), partial(fit, out, out / str(devices), devices))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
