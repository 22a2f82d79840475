"""Writes prompts and draws images: `python generate.py dataset=shapes`. What is stored is not made again."""

import hydra
from omegaconf import DictConfig

from lgclip.allowed import build
from lgclip.errors import plain_errors
from lgclip.sweeps import resumed


@hydra.main(version_base="1.3", config_path="conf", config_name="generate")
@resumed
def generate(cfg: DictConfig) -> None:
    from pathlib import Path

    from hydra.core.hydra_config import HydraConfig

    from lgclip.damage import OnBadImage
    from lgclip.generation import draw, whole_numbers, write_list
    from lgclip.stages import StageBar, Stages, quiet
    from lgclip.store import open_root

    quiet()
    counts, policy = whole_numbers(cfg), OnBadImage.of(cfg.on_bad_image)
    folder = Path(HydraConfig.get().runtime.output_dir)
    root = open_root(cfg.paths.store)
    dataset, writer, diffuser = (build(cfg[group], _convert_="all") for group in ("dataset", "llm", "diffuser"))
    trainer = build(cfg.trainer, logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    drawing = draw(
        Stages(trainer), dataset.subjects, writer, diffuser, root, cfg.paths.images, **counts,
        training=lambda: build(cfg.dataset, **dataset.training_values(), _convert_="all"),
        on_bad_image=policy, workers=cfg.workers,
    )  # fmt: skip
    if trainer.is_global_zero:
        write_list(folder / "images.jsonl", drawing, dataset.class_names)
        gone = f", {len(drawing.missing)} could not be had" if drawing.missing else ""
        listed = f"listed in {folder / 'images.jsonl'}"
        print(f"{len(drawing.ids)} images of {len(dataset.class_names)} classes{gone}, {listed}")


main = plain_errors(generate)

if __name__ == "__main__":
    main()
