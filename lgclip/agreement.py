"""Every device runs the same config, or none does."""

import torch
from lightning import Callback, LightningModule, Trainer


class SameConfig(Callback):
    """Compares the devices' configs before the first stage.

    Each process composes its config for itself; were one to judge another job's, the figures would be of a mixture.

    Args:
        key: `sweeps.run_key` of this process's config.
    """

    def __init__(self, key: str) -> None:
        self._key, self._agreed = key, False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Runs on every device at once, and each sees all keys, so that all of them stop.

        Raises:
            ValueError: If two differ.
        """
        if self._agreed or trainer.world_size == 1:
            return
        keys: list[str] = [""] * trainer.world_size
        torch.distributed.all_gather_object(keys, self._key)
        other = [rank for rank, key in enumerate(keys) if key != keys[0]]
        if other:
            raise ValueError(
                f"processes {other} of {trainer.world_size} have another config than process 0: they were started with "
                "other arguments, or files of conf/ changed in between; start them all anew"
            )
        self._agreed = True
