"""Give class names, get an image classifier: no real image, no image-text pair, no text tower."""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lgclip.api import build, evaluate, load
    from lgclip.classifier.model import ImageClassifier
    from lgclip.classifier.parts import ImagePrediction
    from lgclip.experiment import Experiment

__all__ = ["Experiment", "ImageClassifier", "ImagePrediction", "build", "evaluate", "load"]
__version__ = "0.1.0"

# Before torch multiplies: a row of a product is then the same to the last bit whatever the other rows are and however
# many threads there are, at the same speed. Only MKL's supported CPUs honor it; elsewhere it is ignored.
os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


_PLACES = {
    "Experiment": "lgclip.experiment",
    "ImageClassifier": "lgclip.classifier.model",
    "ImagePrediction": "lgclip.classifier.parts",
    "build": "lgclip.api",
    "evaluate": "lgclip.api",
    "load": "lgclip.api",
}


def __getattr__(name: str) -> Any:
    """Loads the public names when they are first used: importing lgclip alone stays light (PEP 562)."""
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    """Lists the public names, for completion."""
    return sorted({*globals(), *__all__})
