"""Puts newly built small models into the package: `python -m lgclip.tiny.install [BUILD_DIR]`."""

import shutil
import sys
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
PARTS = {
    "encoder": "tiny_encoder",
    "diffuser": "tiny_denoiser",
    "language": "tiny_language",
    "captioner": "tiny_captioner",
}
"""Folder of the package, and the recipe that fills it; the autoencoder is part of the diffuser."""

LIMIT = 20_000_000
"""Most bytes that all weights together may have."""


def install(build: Path) -> int:
    """Copies the models of a build.

    Args:
        build: The folder that `train.py` wrote to.

    Returns:
        Bytes of all weights together.

    Raises:
        ValueError: If a model is not there, or together they are too large for the repository.
    """
    for recipe in PARTS.values():
        if not (build / recipe / "model").is_dir():
            raise ValueError(f"{build / recipe / 'model'} is not there: run python train.py method={recipe}")
    size = sum(p.stat().st_size for recipe in PARTS.values() for p in (build / recipe / "model").rglob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the weights have {size} bytes, at most {LIMIT} may go into the package")
    for name, recipe in PARTS.items():
        shutil.rmtree(WEIGHTS / name, ignore_errors=True)
        shutil.copytree(build / recipe / "model", WEIGHTS / name, copy_function=shutil.copyfile)
    return size


if __name__ == "__main__":
    print(f"{install(Path(sys.argv[1] if len(sys.argv) > 1 else '.tiny-build'))} bytes of weights in {WEIGHTS}")
