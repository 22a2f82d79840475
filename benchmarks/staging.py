"""The project's stages without a command: one device, nothing shown."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lgclip.diffuser.base import ImageGenerator, LoadedPipeline
from lgclip.stages.runner import StageBar, Stages, quiet


@dataclass(frozen=True)
class Loaded(ImageGenerator):
    """An image generator whose pipeline is in memory already.

    Attributes:
        brush: The pipeline.
        described: What its images are stored by.
        batch_size: Images drawn at once.
        size: Height and width of the images; None if the pipeline decides.
        retries: How often a faulty image is generated again.
    """

    brush: LoadedPipeline
    described: Mapping[str, object]
    batch_size: int | str
    size: int | None = None
    retries: int = 0

    def inputs(self) -> dict[str, object]:
        return dict(self.described)

    def load(self, device: torch.device) -> LoadedPipeline:
        return self.brush


def stages_on(accelerator: str = "cpu") -> Stages:
    """Stages on one device, with the trainer that `conf/trainer/auto.yaml` builds."""
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
