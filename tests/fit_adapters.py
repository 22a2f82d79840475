"""LoRA weights tuned by one process, by two, and by one that is killed: in the stores OUT/1, OUT/2 and OUT/cut.

python tests/fit_adapters.py OUT MODEL
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
from crowd import forked
from safetensors.torch import load_file
from student_worlds import Patches, one_cpu, stages_of

from lgclip.adaptation import Adaptation
from lgclip.adapting import adapt
from lgclip.diffuser.pipeline import Diffuser
from lgclip.lora_spec import LoraTuning, TuningBatch
from lgclip.methods.diffuser_lora import DiffuserLora

KILLED_AT = 5


def adaptation(model: Path, **values: Any) -> Adaptation:
    """A tuning of a second."""
    chosen: dict[str, Any] = {"steps": 8, "batch_size": 4, "lr": 1e-2, "checkpoint_every": 2, "flip": True} | values
    return Adaptation(LoraTuning(**chosen), Diffuser(str(model), size=32), Patches(2, "train"))


def tuned(what: Adaptation, root: Path, **more: Any) -> Path:
    """The folder of tuned weights."""
    return adapt(stages_of(), partial(one_cpu, **more), what, root)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """What was tuned."""
    return load_file(folder / "pytorch_lora_weights.safetensors")


def about(folder: Path) -> dict[str, Any]:
    """What is told of it."""
    return json.loads((folder / "lora.json").read_text())


def fit(out: Path, model: Path, devices: int = 1, *, killed: bool = False) -> None:
    """What each process does."""
    trainer = partial(one_cpu, devices=devices, strategy="ddp" if devices > 1 else "auto")
    step = DiffuserLora.training_step

    def kill(self: DiffuserLora, batch: TuningBatch, batch_idx: int) -> torch.Tensor:
        if batch.step == KILLED_AT:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, batch, batch_idx)

    if killed:
        DiffuserLora.training_step = kill
    adapt(stages_of(trainer), trainer, adaptation(model), out)


def main(out: Path, model: Path) -> None:
    """One after the other."""
    torch.set_num_threads(1)
    for devices in (1, 2):
        forked(devices, out / f"said-{devices}", partial(fit, out / str(devices), model, devices))
    with suppress(SystemExit):
        forked(1, out / "said-cut", partial(fit, out / "cut", model, killed=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
