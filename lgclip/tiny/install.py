"""Copies newly built small models into the package: `python -m lgclip.tiny.install [BUILD_DIR]`."""

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
"""Maximum size of all weights together, in bytes."""


def install(build: Path) -> int:
    """Copies the models of a build.

    Args:
        build: The folder that `train.py` wrote to.

    Returns:
        Total size of the weights in bytes.

    Raises:
        ValueError: If a model is missing, or together they are too large for the repository.
    """
    for recipe in PARTS.values():
        if not (build / recipe / "model").is_dir():
            raise ValueError(f"{build / recipe / 'model'} is not there: run python train.py method={recipe}")
    # Everything is checked before the first file is replaced: the package must not end up with models of two builds.
    size = 0
    for recipe in PARTS.values():
        size += sum(path.stat().st_size for path in (build / recipe / "model").rglob("*.safetensors"))
    if size > LIMIT:
        raise ValueError(f"the weights have {size} bytes, at most {LIMIT} may go into the package")
    for name, recipe in PARTS.items():
        shutil.rmtree(WEIGHTS / name, ignore_errors=True)
        # `copyfile` leaves out the permissions of the build, which may be those of one user alone.
        shutil.copytree(build / recipe / "model", WEIGHTS / name, copy_function=shutil.copyfile)
    return size


if __name__ == "__main__":
    build_folder = Path(".tiny-build")
    if len(sys.argv) > 1:
        build_folder = Path(sys.argv[1])
    print(f"{install(build_folder)} bytes of weights in {WEIGHTS}")
