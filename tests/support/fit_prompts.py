"""Tunes prompts with one process and with two, in OUT/1 and OUT/2; or in OUT/killed, ended in its second round.

python tests/support/fit_prompts.py OUT [killed]
"""

import os
import signal
import sys
from functools import partial
from pathlib import Path

import torch
from multiprocess_runs import run_in_ranks
from prompt_factories import encoder_of, setup_of, train_prompts, tuning_data_of
from student_factories import one_cpu

from lgclip.batches import PromptBatch
from lgclip.training.prompt_tuning.module import PromptRound

RECIPE = {
    "modality": "both", "epochs": 3, "batch_size": 7, "synthetic_weight": 0.5, "synthetic_batch": 3,
    "auxiliary": "fixed", "aux_neighbors": 3, "warm_start": True, "checkpoint_every": 2,
}  # fmt: skip
"""Everything at once."""


def fit(out: Path, folder: Path, devices: int) -> None:
    """Runs in each process."""
    setup = setup_of(out, tuning_data_of(out, "ssl", images=4), **RECIPE)
    strategy = "ddp" if devices > 1 else "auto"
    train_prompts(setup, folder / "store", partial(one_cpu, devices=devices, strategy=strategy))


def kill(module: PromptRound, batch: PromptBatch, batch_idx: int) -> torch.Tensor:
    """Kills the process in the middle of the second round, instead of a step."""
    if batch.step == 5 and list(Path().glob("*/store/prompts_learned/*/checkpoints/rounds.safetensors")):
        os.kill(os.getpid(), signal.SIGKILL)
    return STEP(module, batch, batch_idx)


STEP = PromptRound.training_step


def main(out: Path, mode: str = "") -> None:
    """Runs both, one after the other, or the killed one."""
    torch.set_num_threads(1)
    encoder_of(out)
    if mode == "killed":
        os.chdir(out)
        PromptRound.training_step = kill  # pyright: ignore[reportAttributeAccessIssue]
        fit(out, out / "killed", 1)
    tuning_data_of(out, "ssl", images=4)
    for devices in (1, 2):
        run_in_ranks(devices, out / str(devices), partial(fit, out, out / str(devices), devices))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
