"""Judges a label list: `python evaluate.py dataset=shapes encoder=tiny`. What is stored is not made again."""

import hydra
from omegaconf import DictConfig, OmegaConf

from lgclip.allowed import build
from lgclip.errors import plain_errors
from lgclip.sweeps import objective, resumed, run_key


@hydra.main(version_base="1.3", config_path="conf", config_name="evaluate")
@resumed
def evaluate(cfg: DictConfig) -> float | None:
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from lgclip.agreement import SameConfig
    from lgclip.contact_sheet import sheet_of
    from lgclip.damage import OnBadImage
    from lgclip.features import encode
    from lgclip.generation import draw, whole_numbers
    from lgclip.jobs import choices, sweep_job
    from lgclip.report import report, table
    from lgclip.stages import StageBar, Stages, quiet
    from lgclip.store import open_root
    from lgclip.tracking import track

    quiet()
    counts, policy = whole_numbers(cfg), OnBadImage.of(cfg.on_bad_image)
    folder, root = Path(HydraConfig.get().runtime.output_dir), open_root(cfg.paths.store)
    groups = ("dataset", "llm", "diffuser", "encoder", "scales")
    dataset, writer, diffuser, encoder, scales = (build(cfg[group], _convert_="all") for group in groups)
    # Runtime objects do not go through OmegaConf, which would turn dataclasses into dicts.
    ways = {group: build(cfg[group]) for group in ("prototype", "selection", "calibration") if cfg.get(group)}
    method = build(cfg.method, _partial_=True, _convert_="all")(**ways, scales=scales, has_text=encoder.has_text)
    callbacks = [StageBar(), SameConfig(run_key(cfg))]
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False, callbacks=callbacks)
    encoder = encoder.on(trainer.strategy.root_device)
    encoder.inputs()  # one that cannot be had is said before hours of drawing
    with track(cfg.get("logger"), folder, OmegaConf.to_container(cfg, resolve=True), choices(), sweep_job()) as tracker:
        stages, how = Stages(trainer), cfg.paths.images
        drawing = draw(stages, dataset.subjects, writer, diffuser, root, how, **counts) if method.needs_images else None
        data, dataset = encode(stages, dataset, encoder, scales, root, policy, drawing=drawing, workers=cfg.workers)
        with stages.timed("judging", unit="image", total=len(dataset)):
            trainer.test(method, datamodule=data, verbose=False)
        if trainer.is_global_zero:
            parts = {"llm": writer, "diffuser": diffuser, "encoder": encoder, "scales": scales}
            result = report(folder, cfg, dataset, parts, data, method, stages, drawing)
            if sweep_job() is None:  # a sweep's jobs share their pictures, which `lgclip report` shows
                sheet_of(folder / "prototypes.png", dataset, drawing, method.results[result["method"]])
            tracker.log(result, dataset, drawing)
            print(f"{table(result)}\n{folder}")
            return objective(cfg, result)


main = plain_errors(evaluate)

if __name__ == "__main__":
    main()
