"""Tunes LoRA weights with one process, with two, and killed: in the stores OUT/1, OUT/2 and OUT/cut.

python tests/support/fit_adapters.py OUT MODEL
"""

import json
import os
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from multiprocess_runs import run_in_ranks
from safetensors.torch import load_file
from student_factories import ColorPatches, build_context, build_stages, one_cpu

from lgclip.diffuser.pipeline import Diffuser
from lgclip.training.loop import run_training
from lgclip.training.lora.config import LoraTuning, TuningBatch
from lgclip.training.lora.module import DiffuserLora
from lgclip.training.lora.task import Adaptation
from lgclip.training.lora.train import LoraTraining

KILLED_AT = 5


def adaptation(model: Path, **values: Any) -> Adaptation:
    """Returns a tuning that takes a second."""
    chosen: dict[str, Any] = {"steps": 8, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 2, "flip": True} | values
    return Adaptation(LoraTuning(**chosen), Diffuser(str(model), size=32), ColorPatches(2, "train"))


def tuned(task: Adaptation, root: Path, **kwargs: Any) -> Path:
    """Returns the folder of tuned weights."""
    return run_training(LoraTraining(task), build_context(root, partial(one_cpu, **kwargs)))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Returns the tuned weights."""
    return load_file(folder / "pytorch_lora_weights.safetensors")


def about(folder: Path) -> dict[str, Any]:
    """Returns the metadata of tuned weights."""
    return json.loads((folder / "lora.json").read_text())


def fit(out: Path, model: Path, devices: int = 1, *, killed: bool = False) -> None:
    """Runs in each process."""
    trainer = partial(one_cpu, devices=devices, strategy="ddp" if devices > 1 else "auto")
    step = DiffuserLora.training_step

    def kill(self: DiffuserLora, batch: TuningBatch, batch_idx: int) -> torch.Tensor:
        if batch.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)

    if killed:
        DiffuserLora.training_step = kill
    run_training(LoraTraining(adaptation(model)), build_context(out, trainer, stages=build_stages(trainer)))


def main(out: Path, model: Path) -> None:
    """Runs all variants one after the other."""
    torch.set_num_threads(1)
    for devices in (1, 2):
        run_in_ranks(devices, out / f"said-{devices}", partial(fit, out / str(devices), model, devices))
    with suppress(SystemExit):
        run_in_ranks(1, out / "said-cut", partial(fit, out / "cut", model, killed=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
