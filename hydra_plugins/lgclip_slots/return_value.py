"""Passes the return value of a job from its process to the sweep."""

import os
from pathlib import Path

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from lgclip.store.atomic import write_json


class ReturnValue(Callback):
    """Writes the return value of a job to a file, which the launcher reads.

    Args:
        path: The file. It is not written if the job fails or returns something other than a number.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: object) -> None:
        """Writes the value; called by Hydra."""
        # A job on several devices has a process for each, all of which return the same.
        is_first = os.environ.get("LOCAL_RANK", "0") == "0"
        if not is_first or job_return.status != JobStatus.COMPLETED:
            return
        if isinstance(job_return.return_value, int | float):
            write_json(self.path, job_return.return_value)
