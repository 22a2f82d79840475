"""Loads torchmetrics piece by piece: Lightning needs two of its classes, and the whole takes longer than torch itself.

`import torchmetrics` imports torchvision, SciPy's signal processing and transformers for metrics of images, sound and
text. Lightning, and this package, use `Metric` and `MetricCollection` alone. Whatever else is asked of the module loads
all of it, as ever. `importlib.util.LazyLoader` was considered: it loads everything with the first attribute.
"""

import importlib
import logging
import sys
from importlib.metadata import version
from importlib.util import find_spec, module_from_spec
from types import ModuleType
from typing import Any

_NAME = "torchmetrics"
_PLACES = {"Metric": f"{_NAME}.metric", "MetricCollection": f"{_NAME}.collections"}
"""The classes that need no more than the module which defines them."""


class _LazyPackage(ModuleType):
    """Stands in for torchmetrics until an attribute outside `_PLACES` is requested."""

    @property
    def __path__(self) -> Any:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Returns where submodules are; Python asks for it before it imports one."""
        if "_begun" not in self.__dict__:
            self.__dict__["_begun"] = True
            # The submodules import each other in a circle, which begins here when the whole package is loaded.
            importlib.import_module(f"{_NAME}.utilities")
        return self.__dict__["__path__"]

    def __getattr__(self, name: str) -> Any:
        if name == "__version__":
            return version(_NAME)
        if name == "_logger":
            return logging.getLogger(_NAME)
        if name in _PLACES:
            return getattr(importlib.import_module(_PLACES[name]), name)
        # Python itself looks for attributes such as `__wrapped__`; `import *` looks for this one.
        if name.startswith("__") and name != "__all__":
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
