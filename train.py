"""Trains a method: `python train.py method=tiny_encoder`. An interrupted training goes on where it stopped."""

import hydra
from omegaconf import DictConfig

from lgclip.allowed import build
from lgclip.errors import plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def train(cfg: DictConfig) -> None:
    from pathlib import Path

    import torch
    from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint

    from lgclip.checkpoint import SafetensorsIO
    from lgclip.stages import quiet

    quiet()
    torch.manual_seed(cfg.seed)  # the models' first weights
    recipe = build(cfg.method, corpus=build(cfg.corpus))
    folder = Path(cfg.paths.build) / cfg.name
    keep = ModelCheckpoint(
        folder / "checkpoints",
        "last",
        every_n_train_steps=cfg.checkpoint_every,
        save_top_k=1,
        enable_version_counter=False,  # one file, which is gone on from; also in a folder that was moved
    )
    keep.FILE_EXTENSION = ".safetensors"  # pyright: ignore[reportAttributeAccessIssue]
    trainer = build(
        cfg.trainer,
        max_steps=recipe.steps,
        max_epochs=-1,
        plugins=[SafetensorsIO()],
        callbacks=[keep, EMAWeightAveraging(decay=cfg.ema)],
        logger=build(cfg.logger, save_dir=folder) if "_target_" in cfg.logger else False,
        gradient_clip_val=1.0,
    )
    last = folder / "checkpoints" / "last.safetensors"
    trainer.fit(recipe, ckpt_path=last if last.exists() else None)
    if trainer.is_global_zero:
        recipe.save(folder / "model")


main = plain_errors(train)

if __name__ == "__main__":
    main()
