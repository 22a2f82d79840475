"""How the value of a job comes back from its process."""

import os
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lgclip.store.atomic import write_json


class Returned(Callback):
    """Writes what a job returns to a file, for the sweep that waits for it.

    Args:
        path: The file. It is not written if the job fails, or returns something else than a number.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # of a job's own devices one is enough
        if first and job_return.status == JobStatus.COMPLETED and isinstance(job_return.return_value, int | float):
            write_json(self.path, job_return.return_value)
