"""The experiment logger of a run: Lightning's CSV logger, or Weights & Biases with pictures."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from omegaconf import DictConfig

from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.methods.base import Judged

MAX_CLASSES = 200
"""Classes whose prototypes go into the table of images."""


class Tracker:
    """Logs one run's result.

    Args:
        logger: Any of Lightning's loggers, or None.
    """

    def __init__(self, logger: Logger | None) -> None:
        self._logger = logger

    def log(self, result: Mapping[str, Any], dataset: Dataset, drawing: Pictures | None, judged: Judged) -> None:
        """Logs metrics, and to W&B the prototypes' table and the confusion matrix.

        Args:
            result: Content of result.json.
            dataset: What was judged.
            drawing: The synthetic images; None if the method needs none.
            judged: The method's judgement of every image.
        """
        if self._logger is None:
            return
        self._logger.log_metrics(flat_metrics(result))
        self._logger.save()
        if isinstance(self._logger, WandbLogger):
            self._logger.experiment.log(_pictures(dataset, drawing, judged))


def flat_metrics(result: Mapping[str, Any]) -> dict[str, float]:
    """`top1`, ... of the method, and `clip_text/top1`, ... of what stands beside it."""
    names = ("top1", "top5", "mean_per_class")
    flat = {name: float(result["metrics"][name]) for name in names}
    for who, figures in result["beside"].items():
        flat |= {f"{who}/{name}": float(figures[name]) for name in names}
    return flat


def _pictures(dataset: Dataset, drawing: Pictures | None, judged: Judged) -> dict[str, Any]:
    import wandb

    rows = []
    for at, prompt in enumerate(drawing.prompts if drawing else ()):
        if prompt.class_index < MAX_CLASSES:
            assert drawing is not None
            name = dataset.class_names[prompt.class_index]
            rows.append([prompt.class_index, name, prompt.text, wandb.Image(drawing.image(at))])
    confusion = wandb.plot.confusion_matrix(
        y_true=judged.label.tolist(), preds=judged.prediction.tolist(), class_names=list(dataset.class_names)
    )
    return {
        "prototypes": wandb.Table(columns=["class", "name", "prompt", "image"], data=rows),
        "confusion": confusion,
    }


@contextmanager
def track(logger: DictConfig | None, folder: Path, config: Any) -> Iterator[Tracker]:
    """A tracker that is closed with its exit code, so that a sweep's next job opens its own.

    Args:
        logger: The config group's choice; None or empty for no logger.
        folder: The run's folder.
        config: The run's whole config, as plain values.
    """
    if not logger:
        yield Tracker(None)
        return
    made: Logger = instantiate(logger, save_dir=str(folder))
    status = "failed"
    try:
        made.log_hyperparams(config)
        yield Tracker(made)
        status = "success"
    finally:
        made.finalize(status)
        if isinstance(made, WandbLogger):
            made.experiment.finish(exit_code=0 if status == "success" else 1)
