"""What a run's number came from, in files that need nothing of this package to be read."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lgclip.features import real_stream, synthetic_stream
from lgclip.generation import wanted_images
from lgclip.store import PromptStore, open_root, write_whole
from lgclip.writing import Writing


def export_features(run: Path, out: Path) -> str:
    """Writes a run's features: `real` (n, s, d), `real_labels` (n,), `synthetic` (c, k, s, d), float32.

    Where images are missing the classes differ in how many they have: `synthetic` is then (m, s, d),
    and `synthetic_labels` (m,) says which class each image is of.

    Args:
        run: A run's folder.
        out: The .npz file to write.

    Returns:
        One line on what was written.

    Raises:
        ValueError: If the folder holds no finished run, or its store is not complete any more.
    """
    path = run / "result.json"
    if not path.is_file():
        raise ValueError(f"{run} holds no result.json: name the folder of a finished run")
    result = json.loads(path.read_text(encoding="utf-8"))
    cfg: Any = OmegaConf.create(result["config"])
    for group in ("encoder", "diffuser"):  # what `auto` was decided to be where the run was
        if "precision" in (result[group] or {}):
            cfg[group].precision = result[group]["precision"]
    root = open_root(cfg.paths.store)
    groups = ("dataset", "llm", "diffuser", "encoder", "scales")
    dataset, writer, diffuser, encoder, scales = (instantiate(cfg[group], _convert_="all") for group in groups)
    real = real_stream(dataset, encoder, scales, root)
    arrays = {"real": real.features().numpy(), "real_labels": np.array(real.labels, dtype=np.int64)}
    if result["diffuser"]:
        writing = Writing(writer, PromptStore(root), dataset.subjects, cfg.prompts_per_class, cfg.seed)
        wanted = wanted_images(diffuser, writing, cfg.prompts_per_class, cfg.images_per_prompt)
        drawing = diffuser.stage(root, dataset.subjects, wanted, cfg.seed).pictures()
        synthetic = synthetic_stream(drawing, encoder, scales, root)
        if drawing.missing:
            arrays["synthetic"] = synthetic.features().numpy()
            arrays["synthetic_labels"] = np.array(synthetic.labels, dtype=np.int64)
        else:
            # Drawn class by class, and every class has prompts_per_class * images_per_prompt images.
            arrays["synthetic"] = synthetic.features().unflatten(0, (len(dataset.class_names), -1)).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    return f"{out}: {shapes}"
