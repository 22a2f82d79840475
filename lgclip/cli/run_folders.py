"""Creates the folder of a run or sweep exclusively: two that start within one second must not share one."""

import os
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

_PROCESSES = ("WORLD_SIZE", "SLURM_NTASKS")
_JOB = ("SLURM_JOB_ID", "TORCHELASTIC_RUN_ID", "MASTER_PORT")


def claim_folder(folder: Path, environment: Mapping[str, str] = os.environ) -> Path:
    """Creates a new folder, with a number behind its name if the name is taken, and returns it.

    The processes of one distributed job have to agree on a name without talking to each other. Theirs ends with what
    tells the job apart: the id of the cluster's job or of the launcher's run, or its port.

    Args:
        folder: The requested folder.
        environment: Environment variables, which tell whether this process is one of several.
    """
    if any(int(environment.get(name, "1") or 1) > 1 for name in _PROCESSES):
        job = next((environment[name] for name in _JOB if environment.get(name, "none") != "none"), "")
        folder = folder.with_name(f"{folder.name}-{job}".rstrip("-"))
        folder.mkdir(parents=True, exist_ok=True)
        return folder
    requested = folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    for number in count(2):
        try:
            folder.mkdir()
        except FileExistsError:
            folder = folder.with_name(f"{requested.name}_{number}")
        else:
            return folder
    raise AssertionError("count() does not end")


def is_named_by_time(config: DictConfig) -> bool:
    """Returns whether a folder's name is the time of the start, and not one that the user or a config states."""
    return "${now:" in str(OmegaConf.to_container(config, resolve=False))


class RunFolder(Callback):
    """Gives a run a folder of its own, unless the user names one."""

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        if not is_named_by_time(config.hydra.run):
            return
        folder = claim_folder(Path(config.hydra.run.dir))
        with read_write(config), open_dict(config):
            config.hydra.run.dir = str(folder)
