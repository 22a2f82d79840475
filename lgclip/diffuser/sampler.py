"""Schedulers of diffusers by name: how the noise is taken out, step by step."""

import difflib
import inspect
from collections.abc import Mapping
from typing import Any


def scheduler_class(name: str) -> Any:
    """A scheduler of diffusers.

    Args:
        name: Name of its class, such as `DPMSolverMultistepScheduler`.

    Raises:
        ValueError: If there is none of that name.
    """
    import diffusers
    from diffusers.schedulers.scheduling_utils import SchedulerMixin

    known = [entry for entry in dir(diffusers) if entry.endswith("Scheduler")]
    found = getattr(diffusers, name) if name in known else None
    if not (inspect.isclass(found) and issubclass(found, SchedulerMixin)):
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"diffuser.scheduler={name}: diffusers has no such scheduler{hint}")
    return found


def check_scheduler(name: str, options: Mapping[str, object]) -> None:
    """Refuses a scheduler that is not there, or options that it does not take.

    Raises:
        ValueError: With the names that it takes.
    """
    known = [parameter for parameter in inspect.signature(scheduler_class(name)).parameters if parameter != "kwargs"]
    for option in options:
        if option not in known:
            raise ValueError(f"diffuser.scheduler_options.{option}: {name} takes {', '.join(known)}")


def replace_scheduler(pipeline: Any, name: str, options: Mapping[str, object]) -> None:
    """Puts another scheduler in a pipeline, with the settings that its own had.

    Raises:
        ValueError: If one is made for flow matching and the other is not: they count noise in other
            units, and the images would be noise without an error.
    """
    own = pipeline.scheduler
    other = scheduler_class(name).from_config(own.config, **options)
    if _flows(own) != _flows(other):
        said = "is made for flow matching" if _flows(other) else "is not made for flow matching"
        raise ValueError(
            f"diffuser.scheduler={name} {said}, unlike {type(own).__name__} of {type(pipeline).__name__}; "
            "choose another (some take scheduler_options.use_flow_sigmas)"
        )
    pipeline.scheduler = other


def _flows(scheduler: Any) -> bool:
    return "FlowMatch" in type(scheduler).__name__ or bool(scheduler.config.get("use_flow_sigmas"))
