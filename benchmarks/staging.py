"""Builds the stages of a run without its command: one device, no progress bar."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lgclip.diffuser.base import ImageGenerator, LoadedPipeline
from lgclip.stages.runner import StageBar, Stages, quiet


@dataclass(frozen=True)
class PreloadedDiffuser(ImageGenerator):
    """Holds a pipeline that is already in memory.

    Attributes:
        pipeline: The pipeline.
        key_inputs: Inputs of the key under which the images are stored.
        batch_size: Images generated at once.
        size: Height and width of the images; None if the pipeline decides.
        retries: How often a faulty image is generated again.
    """

    pipeline: LoadedPipeline
    key_inputs: Mapping[str, object]
    batch_size: int | str
    size: int | None = None
    retries: int = 0

    def inputs(self) -> dict[str, object]:
        return dict(self.key_inputs)

    def load(self, device: torch.device) -> LoadedPipeline:
        return self.pipeline


def build_stages(accelerator: str = "cpu") -> Stages:
    """Returns stages on one device, with the trainer that `conf/trainer/auto.yaml` builds."""
    from lightning import Trainer

    quiet()
    bar = StageBar()
    bar.disable()
    return Stages(
        Trainer(
            accelerator=accelerator,
            devices=1,
            precision="32-true",
            use_distributed_sampler=False,
            enable_model_summary=False,
            logger=False,
            enable_checkpointing=False,
            callbacks=[bar],
        )
    )
