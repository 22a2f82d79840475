"""The project's stages without a command: one device, nothing shown."""

from lgclip.stages import StageBar, Stages, quiet


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
