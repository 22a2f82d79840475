"""Loads torchmetrics piece by piece: Lightning needs two of its classes, and the whole takes longer than torch itself.

`import torchmetrics` imports torchvision, SciPy's signal processing and transformers for metrics of images, sound and
text. Lightning, and this package, use `Metric` and `MetricCollection` alone. Whatever else is asked of the module loads
all of it, as ever. `importlib.util.LazyLoader` was considered: it loads everything with the first attribute.
"""

import importlib
import logging
import sys
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_NAME = "torchmetrics"
_PLACES = {
    "Metric": f"{_NAME}.metric",
    "MetricCollection": f"{_NAME}.collections",
    "__version__": f"{_NAME}.__about__",
}
"""The attributes that need no more than the module which defines them."""


class _LazyPackage(ModuleType):
    """Stands for torchmetrics until an attribute is asked for that is not in `_PLACES`."""

    def __getattr__(self, name: str) -> Any:
        if name == "_logger":
            return logging.getLogger(_NAME)
        if name in _PLACES:
            if name != "__version__":
                # Its modules import each other in a circle, which begins here when the whole package is loaded.
                importlib.import_module(f"{_NAME}.utilities")
            return getattr(importlib.import_module(_PLACES[name]), name)
        # Python itself looks for attributes such as `__file__` or `__wrapped__`, and these are there or they are not.
        if name.startswith("__"):
            raise AttributeError(f"module {_NAME!r} has no attribute {name!r}")
        load_all(self)
        return getattr(self, name)


def make_lazy() -> None:
    """Makes the next `import torchmetrics` of this process lazy; does nothing where it is imported already."""
    if _NAME in sys.modules:
        return
    spec = find_spec(_NAME)
    if spec is None:
        return
    module = module_from_spec(spec)
    module.__class__ = _LazyPackage
    sys.modules[_NAME] = module


def load_all(module: ModuleType) -> None:
    """Executes the package's own code in a lazy module, which is a plain one from then on."""
    module.__class__ = ModuleType
    assert module.__spec__ is not None
    assert module.__spec__.loader is not None
    module.__spec__.loader.exec_module(module)
