"""Give class names, get an image classifier: no real image, no image-text pair, no text tower."""

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgclip.experiment import Experiment
    from lgclip.reporting.run_classifier import load

__all__ = ["Experiment", "load"]
__version__ = "0.1.0"

# Before torch multiplies: a row of a product is then the same to the last bit whatever the other rows are and however
# many threads there are, at the same speed. Only MKL's supported CPUs honor it; elsewhere it is ignored.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def __getattr__(name: str) -> Any:
    """Loads the public names when they are first used: importing lgclip alone stays light (PEP 562)."""
    if name == "Experiment":
        from lgclip.experiment import Experiment

        return Experiment
    if name == "load":
        from lgclip.reporting.run_classifier import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
