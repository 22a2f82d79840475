"""Trains a student, `python train.py method=student`, or a small model of the package, `method=tiny_encoder`."""

import hydra
from omegaconf import DictConfig

from lgclip.allowed import build, target_of
from lgclip.errors import plain_errors


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def train(cfg: DictConfig) -> None:
    from functools import partial
    from pathlib import Path

    import torch

    from lgclip.stages import quiet
    from lgclip.tiny.recipe import Recipe, fit

    quiet()
    if not issubclass(target_of(cfg.method), Recipe):
        return _student(cfg)
    torch.manual_seed(cfg.seed)  # the models' first weights
    recipe, folder = build(cfg.method, corpus=build(cfg.corpus)), Path(cfg.paths.build) / cfg.name
    logger = build(cfg.logger, save_dir=folder) if "_target_" in cfg.logger else False
    fit(recipe, partial(build, cfg.trainer), logger, folder, every=cfg.checkpoint_every, ema=cfg.ema)


def _student(cfg: DictConfig) -> None:
    from functools import partial
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from lgclip.damage import OnBadImage
    from lgclip.generation import draw, whole_numbers
    from lgclip.learning import learn, told
    from lgclip.lesson import Lesson, check_asked
    from lgclip.stages import StageBar, Stages
    from lgclip.store import open_root

    check_asked(cfg.name, cfg.method.get("text_weight", 0), cfg.get("student"))
    counts, root, folder = whole_numbers(cfg), open_root(cfg.paths.store), Path(HydraConfig.get().runtime.output_dir)
    groups = ("dataset", "llm", "diffuser", "encoder", "student")
    dataset, writer, diffuser, encoder, student = (build(cfg[group], _convert_="all") for group in groups)
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    encoder, student = (part.on(trainer.strategy.root_device) for part in (encoder, student))
    stages, more = Stages(trainer), {**counts, "on_bad_image": OnBadImage.of(cfg.on_bad_image), "workers": cfg.workers}
    real = lambda: build(cfg.dataset, **dataset.training_values(), _convert_="all")  # noqa: E731
    drawn = partial(draw, stages, dataset.subjects, writer, diffuser, root, cfg.paths.images, training=real, **more)
    lesson = Lesson.of(student, dataset, encoder, drawn, real, cfg.prompts_per_class)
    logger = build(cfg.logger, save_dir=folder) if "_target_" in cfg.logger else False
    learned = learn(stages, partial(build, cfg.trainer), lesson, root, logger=logger, workers=cfg.workers)
    if trainer.is_global_zero:
        print(told(learned))


main = plain_errors(train)
if __name__ == "__main__":
    main()
