"""Exports the features of a run to files that can be read without this package."""

from pathlib import Path

import numpy as np

from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run
from lgclip.store.atomic import atomic_write


def export_features(run: Path, out: Path) -> str:
    """Writes a run's features: `real` (n, s, d), `real_labels` (n,), `synthetic` (c, k, s, d), float32.

    Where images are missing the classes differ in their number: `synthetic` is then (m, s, d),
    and `synthetic_labels` (m,) holds the class of each image.

    Args:
        run: A run's folder.
        out: The .npz file to write.

    Returns:
        One line on what was written.

    Raises:
        ValueError: If the folder holds no finished run, or its store is not complete any more.
    """
    restored = restore_run(Run.read(run))
    real = restored.streams["real"]
    arrays = {"real": real.features().numpy(), "real_labels": np.array(real.labels, dtype=np.int64)}
    if restored.synthetic_images is not None:
        synthetic = restored.streams["synthetic"]
        if restored.synthetic_images.missing:
            arrays["synthetic"] = synthetic.features().numpy()
            arrays["synthetic_labels"] = np.array(synthetic.labels, dtype=np.int64)
        else:
            # Drawn class by class, and every class has prompts_per_class * images_per_prompt images.
            classes = len(restored.dataset.class_names)
            arrays["synthetic"] = synthetic.features().unflatten(0, (classes, -1)).numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items())
    return f"{out}: {shapes}"
