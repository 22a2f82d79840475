"""Publishes an evaluated run: writes its files and contact sheet, logs metrics, prints the table."""

import shlex
from pathlib import Path

from omegaconf import DictConfig

from lgclip.evaluation.evaluator import Evaluation
from lgclip.reporting.console_table import table
from lgclip.reporting.contact_sheet import sheet_of
from lgclip.reporting.result import report
from lgclip.reporting.result_schema import RunResult
from lgclip.reporting.wandb.tracking import Tracker
from lgclip.runtime.sweep_job import sweep_job
from lgclip.stages.parts import RunParts
from lgclip.stages.runner import Stages


def publish(
    folder: Path, config: DictConfig, evaluation: Evaluation, parts: RunParts, stages: Stages, tracker: Tracker
) -> RunResult:
    """Writes a run's files, logs and prints its metrics; only on the first device.

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
    method = evaluation.method
    groups = {name: getattr(parts, name) for name in ("llm", "diffuser", "encoder", "scales")}
    result = report(folder, config, evaluation, groups, stages)
    # The jobs of a sweep share their images; `lgclip report` shows them once for all jobs.
    if sweep_job() is None:
        predictions = method.results[result.method]
        sheet_of(folder / "prototypes.png", dataset, synthetic_images, predictions, config.tile)
    # After the files are written, because the tracker sends them as artifacts.
    tracker.log(result, dataset, synthetic_images)
    print(f"{table(result)}\n{folder}")
    if sweep_job() is None:
        print(_next_steps(folder))
    return result


def _next_steps(folder: Path) -> str:
    """Names the contact sheet of a run and the command for its report."""
    steps = []
    if (folder / "prototypes.png").is_file():
        steps.append(f"images   {folder / 'prototypes.png'}")
    steps.append(f"report   lgclip report {shlex.quote(str(folder))}")
    return "\n".join(steps)
