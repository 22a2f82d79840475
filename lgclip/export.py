"""What a run's number came from, in files that need nothing of this package to be read."""

from pathlib import Path

import numpy as np

from lgclip.reopen import reopen
from lgclip.runs import Run
from lgclip.whole import write_whole


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
    opened = reopen(Run.read(run))
    real = opened.streams["real"]
    arrays = {"real": real.features().numpy(), "real_labels": np.array(real.labels, dtype=np.int64)}
    if opened.drawing is not None:
        synthetic = opened.streams["synthetic"]
        if opened.drawing.missing:
            arrays["synthetic"] = synthetic.features().numpy()
            arrays["synthetic_labels"] = np.array(synthetic.labels, dtype=np.int64)
        else:
            # Drawn class by class, and every class has prompts_per_class * images_per_prompt images.
            classes = len(opened.dataset.class_names)
            arrays["synthetic"] = synthetic.features().unflatten(0, (classes, -1)).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    return f"{out}: {shapes}"
