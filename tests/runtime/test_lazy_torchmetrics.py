"""Tests that torchmetrics loads piece by piece, and all of it when more is asked for; each in a process of its own."""

import json
import subprocess
import sys
from importlib.metadata import version
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SETUP = "import json, sys\nfrom lgclip.runtime.lazy_torchmetrics import make_lazy\nmake_lazy()\n"
FUNCTIONAL = "'torchmetrics.functional' in sys.modules"


def answer(code: str) -> Any:
    """Returns the JSON that a program prints last."""
    process = subprocess.run([sys.executable, "-c", SETUP + code], capture_output=True, text=True, check=True)
    return json.loads(process.stdout.splitlines()[-1])


def test_lightning_loads_two_classes() -> None:
    loaded = answer(
        "import lightning\n"
        "from torchmetrics import Metric, MetricCollection\n"
        "names = ('torchvision', 'transformers', 'scipy.signal', 'torchmetrics.functional')\n"
        "print(json.dumps([[name for name in names if name in sys.modules], Metric.__module__]))\n"
    )
    assert loaded == [[], "torchmetrics.metric"]


def test_version_needs_no_class() -> None:
    code = "import torchmetrics\nprint(json.dumps([torchmetrics.__version__, 'torch' in sys.modules]))\n"
    assert answer(code) == [version("torchmetrics"), False]


def test_everything_else_is_there() -> None:
    code = (
        "import lightning, torch, torchmetrics\n"
        f"before = {FUNCTIONAL}\n"
        "accuracy = torchmetrics.Accuracy(task='multiclass', num_classes=2)\n"
        "value = accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]))\n"
        "same = torchmetrics.functional.accuracy(torch.tensor([0]), torch.tensor([0]), task='binary')\n"
        "kind = isinstance(accuracy, torchmetrics.Metric) and type(torchmetrics).__name__ == 'module'\n"
        f"print(json.dumps([before, {FUNCTIONAL}, float(value), float(same), kind]))\n"
    )
    before, after, value, is_same, kind = answer(code)
    assert (before, after, is_same, kind) == (False, True, 1.0, True)
    assert abs(value - 2 / 3) < 1e-6


def test_submodules_and_stars_are_loaded() -> None:
    code = (
        "from torchmetrics.classification import MulticlassAccuracy\n"
        "from torchmetrics.functional import mean_squared_error\n"
        "from torchmetrics import *\n"
        "print(json.dumps([MulticlassAccuracy.__name__, mean_squared_error.__name__, Precision.__name__]))\n"
    )
    assert answer(code) == ["MulticlassAccuracy", "mean_squared_error", "Precision"]


def test_missing_attribute_is_an_error() -> None:
    code = (
        "import torchmetrics\n"
        "print(json.dumps([hasattr(torchmetrics, '__wrapped__'), hasattr(torchmetrics, 'NoSuchMetric')]))\n"
    )
    assert answer(code) == [False, False]


def test_imported_package_stays() -> None:
    code = "import torchmetrics\nmake_lazy()\nimport torchmetrics as again\nprint(json.dumps(again is torchmetrics))\n"
    assert answer(code) is True
