"""Looks up schedulers of diffusers by name."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


def scheduler_class(name: str) -> Any:
    """Returns a scheduler class of diffusers.

    Args:
        name: Name of its class, such as `DPMSolverMultistepScheduler`.

    Raises:
        ValueError: If there is none of that name.
    """
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    scheduler_names = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    scheduler: Any = None
    # By the list and not by `getattr` alone, which would also import any other part of diffusers by its name.
    if name in scheduler_names:
        scheduler = getattr(diffusers, name)
    # Some entries are placeholders for a package that is not installed; they derive from nothing.
    if not (inspect.isclass(scheduler) and issubclass(scheduler, SchedulerMixin)):
        close = difflib.get_close_matches(name, scheduler_names, n=3, cutoff=0.3)
        hint = ""
        if close:
            hint = f"; did you mean {' or '.join(close)}?"
        raise ValueError(f"diffuser.scheduler={name}: diffusers has no such scheduler{hint}")
    return scheduler


def check_scheduler(name: str, options: Mapping[str, object]) -> None:
    """Rejects a scheduler that does not exist, or options that it does not take.

    Raises:
        ValueError: With the names that it takes.
    """
    parameters = [
        parameter for parameter in inspect.signature(scheduler_class(name)).parameters if parameter != "kwargs"
    ]
    for option in options:
        if option not in parameters:
            raise ValueError(f"diffuser.scheduler_options.{option}: {name} takes {', '.join(parameters)}")


def replace_scheduler(pipeline: Any, name: str, options: Mapping[str, object]) -> None:
    """Replaces the scheduler of a pipeline, with the settings of the previous one.

    Raises:
        ValueError: If only one of the two is for flow matching: they define noise levels differently,
            and the images would be noise without an error.
    """
    current = pipeline.scheduler
    # From the old one's settings: the schedule of the noise is part of how the network was trained.
    replacement = scheduler_class(name).from_config(current.config, **options)
    if _flows(current) != _flows(replacement):
        problem = "is made for flow matching" if _flows(replacement) else "is not made for flow matching"
        raise ValueError(
            f"diffuser.scheduler={name} {problem}, unlike {type(current).__name__} of {type(pipeline).__name__}; "
            "choose another (some take scheduler_options.use_flow_sigmas)"
        )
    pipeline.scheduler = replacement


def _flows(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))
