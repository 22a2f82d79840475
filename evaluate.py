"""Judges a label list: `python evaluate.py dataset=shapes encoder=tiny`. What is stored is not made again."""

import hydra
from omegaconf import DictConfig, OmegaConf

from lgclip.allowed import build
from lgclip.errors import plain_errors
from lgclip.sweeps import objective, resumed, run_key


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@resumed
def evaluate(cfg: DictConfig) -> float | None:
    from functools import partial

    from lgclip.agreement import SameConfig
    from lgclip.damage import OnBadImage
    from lgclip.generation import draw, whole_numbers
    from lgclip.jobs import choices, output_folder, sweep_job
    from lgclip.judging import Bench, shifts_of
    from lgclip.publishing import publish
    from lgclip.stages import StageBar, Stages, quiet
    from lgclip.store import open_root
    from lgclip.taught import asked_of, classifier
    from lgclip.tracking import track

    quiet()
    counts, policy = whole_numbers(cfg), OnBadImage.of(cfg.on_bad_image)
    folder, root = output_folder(), open_root(cfg.paths.store)
    make, dataset = partial(build, _convert_="all"), build(cfg.dataset, _convert_="all")
    parts = {group: make(cfg[group]) for group in ("llm", "diffuser", "encoder", "scales")}
    shifts = shifts_of(dataset, {name: make(one) for name, one in cfg.ood.items()})
    # Runtime objects do not go through OmegaConf, which would turn dataclasses into dicts.
    ways = {group: build(cfg[group]) for group in ("prototype", "selection", "calibration") if cfg.get(group)}
    method = classifier(cfg.method)(**ways, scales=parts["scales"], has_text=parts["encoder"].has_text)
    learner = partial(asked_of, method, lambda group: make(cfg[group]), cfg.ckpt, dataset, membership=cfg.membership)
    asked = learner((parts["encoder"], parts["scales"]))
    trainer = build(
        cfg.trainer, logger=False, enable_checkpointing=False, callbacks=[StageBar(), SameConfig(run_key(cfg))]
    )
    parts["encoder"] = parts["encoder"].on(trainer.strategy.root_device)
    parts["encoder"].inputs()  # one that cannot be had is said before hours of drawing
    opened = partial(make, cfg.dataset)
    real = {"training": lambda: opened(**dataset.training_values()), "on_bad_image": policy, "workers": cfg.workers}
    with track(cfg.get("logger"), folder, OmegaConf.to_container(cfg, resolve=True), choices(), sweep_job()) as tracker:
        stages, drawn_by = Stages(trainer), (parts["llm"], parts["diffuser"], root, cfg.paths.images)
        drawing = draw(stages, dataset.subjects, *drawn_by, **counts, **real) if method.needs_images else None
        where = (root, policy, cfg.workers, tracker.logger)
        bench = Bench(trainer, stages, method, parts["encoder"], parts["scales"], *where)
        bench = bench.taught(asked, partial(build, cfg.trainer), dataset, drawing, opened, cfg.prompts_per_class)
        judged = bench.judge(dataset, drawing)
        found = {"ood": bench.shifted(judged[1], drawing, shifts)}
        found |= bench.of_learnt(judged[1], cfg.llm.get("form"), opened if cfg.membership else None)
        if trainer.is_global_zero:
            return objective(cfg, publish(folder, cfg, judged, parts, method, stages, drawing, found, tracker))


main = plain_errors(evaluate)
if __name__ == "__main__":
    main()
