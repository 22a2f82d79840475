"""Trains a student, soft prompts, an adapter or a small model: `python train.py method=student|air|diffuser_lora`."""

import hydra
from omegaconf import DictConfig

from lgclip.allowed import build, target_of
from lgclip.errors import plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def train(cfg: DictConfig) -> None:
    from lgclip.stages import quiet
    from lgclip.tiny.recipe import Recipe

    quiet()
    (_model if issubclass(target_of(cfg.method), Recipe) else _from_images)(cfg)


def _model(cfg: DictConfig) -> None:
    """A small model of the package."""
    from functools import partial
    from pathlib import Path

    import torch

    from lgclip.tiny.recipe import fit

    torch.manual_seed(cfg.seed)  # the models' first weights
    recipe, folder = build(cfg.method, corpus=build(cfg.corpus)), Path(cfg.paths.build) / cfg.name
    logger = build(cfg.logger, save_dir=folder) if "_target_" in cfg.logger else False
    fit(recipe, partial(build, cfg.trainer), logger, folder, every=cfg.checkpoint_every, ema=cfg.ema)


def _from_images(cfg: DictConfig) -> None:
    from functools import partial

    from lgclip.damage import OnBadImage
    from lgclip.generation import draw, whole_numbers
    from lgclip.jobs import output_folder
    from lgclip.stages import StageBar, Stages
    from lgclip.store import open_root
    from lgclip.taught import recipe_of
    from lgclip.workshop import Workshop, told

    counts, root, make = whole_numbers(cfg), open_root(cfg.paths.store), partial(build, _convert_="all")
    asked = recipe_of(cfg.name, cfg.method, lambda group: make(cfg[group]))
    parts = {group: make(cfg[group]) for group in ("dataset", "llm", "diffuser", "encoder", "scales")}
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    stages, dataset, opened = Stages(trainer), parts["dataset"], partial(make, cfg.dataset)
    more = {"on_bad_image": (policy := OnBadImage.of(cfg.on_bad_image)), "workers": cfg.workers, **counts}
    drawn_by = (dataset.subjects, parts["llm"], parts["diffuser"], root, cfg.paths.images)
    drawn = partial(draw, stages, *drawn_by, training=lambda: opened(**dataset.training_values()), **more)
    logger = build(cfg.logger, save_dir=output_folder()) if "_target_" in cfg.logger else False
    shop = Workshop(stages, partial(build, cfg.trainer), root, dataset, opened, drawn, logger, cfg.workers, policy)
    trainer.print(told(asked, shop.make(asked, trainer.strategy.root_device, parts, cfg.prompts_per_class)))


main = plain_errors(train)
if __name__ == "__main__":
    main()
