"""Trains a student, tunes prompts or a LoRA, or trains a small model: `python train.py method=student`."""

from omegaconf import DictConfig

import lgclip
from lgclip.cli.script import script


@script("train", resumes=False)
def main(cfg: DictConfig) -> None:
    lgclip.Experiment.from_config(cfg).fit()


if __name__ == "__main__":
    main()
