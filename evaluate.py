"""Evaluates an image classifier built from class names: `python evaluate.py dataset=shapes encoder=tiny`."""

from omegaconf import DictConfig

import lgclip
from lgclip.cli.script import script


@script("evaluate")
def main(cfg: DictConfig) -> object:
    return lgclip.Experiment.from_config(cfg).report()


if __name__ == "__main__":
    main()
