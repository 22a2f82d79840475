"""Creates images in the folder layout of the LGCLIP release, and runs on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from factories import NAMES, Sandbox, run_command
from PIL import Image


def write_patch(path: Path, seed: int) -> Path:
    """Writes an image of colored patches, all different."""
    colors = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(colors).resize((40, 32)).save(path, quality=95)
    return path


def make_release_folder(root: Path, names: tuple[str, ...] = NAMES, per_class: int = 4) -> Path:
    """Creates the layout of LGCLIP's release: ROOT/CLASS/NUMBER_CLASS.jpg."""
    for c, name in enumerate(names):
        for i in range(per_class):
            write_patch(root / name / f"{i}_{name}.jpg", 100 * c + i)
    return root


def evaluate_folder(sandbox: Sandbox, root: Path, run: Path, *overrides: str) -> dict[str, Any]:
    """Evaluates with images from a folder, without a language model or a diffuser."""
    base_overrides = [o for o in sandbox.evaluate_overrides() if not o.startswith(("diffuser.", "llm"))]
    run_command(
        "evaluate", *base_overrides, "diffuser=folder", f"diffuser.root={root}", f"hydra.run.dir={run}", *overrides
    )
    return json.loads((run / "result.json").read_text(encoding="utf-8"))
