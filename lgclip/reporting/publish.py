"""Publishes an evaluated run: writes its files, logs metrics, prints the table, and adds pictures and tables last."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omegaconf import DictConfig

from lgclip.datasets.unreadable import OnBadImage, quarantine
from lgclip.evaluation.evaluator import Evaluation
from lgclip.reporting.console_table import CONTACT_SHEET, next_steps, table
from lgclip.reporting.contact_sheet import sheet_of
from lgclip.reporting.result import report
from lgclip.reporting.result_schema import RunResult
from lgclip.reporting.wandb.tracking import Tracker
from lgclip.runtime.sweep_job import sweep_job
from lgclip.stages.parts import RunParts
from lgclip.stages.runner import Stages

log = logging.getLogger(__name__)


def publish(
    folder: Path, config: DictConfig, evaluation: Evaluation, parts: RunParts, stages: Stages, tracker: Tracker
) -> RunResult:
    """Writes a run's files, logs and prints its metrics; only on the first device.

    What only shows the result is written after the metrics, and where it fails, the run has a warning instead.

    Args:
        folder: The run's folder.
        config: The run's config.
        evaluation: The evaluation.
        parts: The parts of the run.
        stages: Statistics of each stage.
        tracker: Logs it.

    Returns:
        Content of result.json.
    """
    dataset = evaluation.dataset
    synthetic_images = evaluation.synthetic_images
    groups = {name: getattr(parts, name) for name in ("llm", "diffuser", "encoder", "scales")}
    result = report(folder, config, evaluation, groups, stages)
    tracker.log_metrics(result)
    print(f"{table(result)}\n{folder}")
    # The jobs of a sweep share their images; `lgclip report` shows them once for all jobs.
    if sweep_job() is None:
        with _optional("the contact sheet"):
            # The sheet of an earlier run in this folder would show other images.
            (folder / CONTACT_SHEET).unlink(missing_ok=True)
            predictions = evaluation.method.results[result.method]
            sheet_of(folder / CONTACT_SHEET, dataset, synthetic_images, predictions, config.tile)
    if config.on_bad_image == OnBadImage.QUARANTINE:
        with _optional("the copies of unreadable images"):
            quarantine(folder, dataset)
    with _optional("the tables of the logger"):
        tracker.log_tables(result, dataset, synthetic_images)
    # After all files of the folder are written, because they are sent.
    with _optional("the artifacts of the logger"):
        tracker.log_artifacts(result, synthetic_images)
    if sweep_job() is None:
        print(next_steps(folder))
    return result


@contextmanager
def _optional(name: str) -> Iterator[None]:
    """Turns the failure of what only shows a result into a warning.

    Args:
        name: What is written or sent, for the warning.
    """
    try:
        yield
    # Of any type: a damaged picture, a full disk and a service that refuses have no common one.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        log.warning("%s could not be written: %s; the metrics are complete", name, reason)
        log.debug("%s", name, exc_info=True)
