"""What a judged run leaves behind and says: its files, its picture, its log, its table."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lgclip.contact_sheet import sheet_of
from lgclip.data import Streams
from lgclip.datasets.base import Dataset
from lgclip.diffuser.base import Pictures
from lgclip.jobs import sweep_job
from lgclip.methods.base import Classifier
from lgclip.report import report
from lgclip.result_table import table
from lgclip.stages import Stages
from lgclip.tracking import Tracker


def publish(
    folder: Path,
    config: DictConfig,
    judged: tuple[Streams, Dataset],
    parts: Mapping[str, Any],
    method: Classifier,
    stages: Stages,
    drawing: Pictures | None,
    found: Mapping[str, Any],
    tracker: Tracker,
) -> dict[str, Any]:
    """Writes a run's files, logs and prints its figures; on the first device alone.

    Args:
        folder: The run's folder.
        config: The run's config.
        judged: The streams that were judged, and the images.
        parts: The parts by config group.
        method: The method, after its test.
        stages: What each stage did.
        drawing: The synthetic images; None if the method needs none.
        found: What else result.json says.
        tracker: Logs it.

    Returns:
        Content of result.json.
    """
    data, dataset = judged
    result = report(folder, config, dataset, parts, data, method, stages, drawing, found)
    if sweep_job() is None:  # a sweep's jobs share their pictures, which `lgclip report` shows
        sheet_of(folder / "prototypes.png", dataset, drawing, method.results[result["method"]])
    tracker.log(result, dataset, drawing)
    print(f"{table(result)}\n{folder}")
    return result
