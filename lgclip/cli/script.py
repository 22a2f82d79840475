"""Turns a function of a config into an entry script."""

from collections.abc import Callable
from typing import Any

import hydra

from lgclip.cli.errors import plain_errors, plain_job
from lgclip.cli.sweeps import resumed
from lgclip.runtime.config_aliases import register_second_encoders
from lgclip.runtime.lazy_torchmetrics import make_lazy


def script(config_name: str, *, resumes: bool = True) -> Callable[[Callable[..., Any]], Callable[[], object]]:
    """Gives a function Hydra's command line, resumable sweeps, and one-line errors.

    Args:
        config_name: The YAML file of `conf/` that describes the script's values.
        resumes: Whether finished jobs of a sweep are skipped, and a failing one does not stop the others.
    """

    def decorate(run: Callable[..., Any]) -> Callable[[], object]:
        register_second_encoders()
        make_lazy()
        main = hydra.main(version_base="1.3", config_path="conf", config_name=config_name)
        return plain_errors(main(plain_job(resumed(run) if resumes else run)))

    return decorate
