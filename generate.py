"""Generates prompts and images: `python generate.py dataset=shapes`. Reuses stored results."""

from omegaconf import DictConfig

import lgclip
from lgclip.cli.script import script


@script("generate")
def main(cfg: DictConfig) -> None:
    lgclip.Experiment.from_config(cfg).generate()


if __name__ == "__main__":
    main()
