"""Exports the features of a run to files that can be read without this package."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool

from lgclip.methods.alignment import ALIGNMENT, FittedAlignment, alignment_tensors, read_alignment
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.selection import Selection
from lgclip.reporting.restore import RestoredRun, restore_run
from lgclip.reporting.run_folder import Run
from lgclip.stages.extract import text_prototypes
from lgclip.store.atomic import atomic_write


def export_features(run: Path, out: Path) -> str:
    """Writes everything from which the rows of a run's result are computed, as arrays.

    - `real` (n, s, d), `real_labels`, `real_ids` and `real_index`, the position in the complete data set.
    - `synthetic` (c, k, s, d) and `synthetic_ids`. Where images are missing the classes differ in their number:
      `synthetic` is then (m, s, d), and `synthetic_labels` (m,) holds the class of each image.
    - `kept`, for each row of the result whether it uses each synthetic image, in the order of `rows`.
    - `text` (t, d) and `text_labels`, the sentences; `sentences` spells them out. Each further text baseline has its
      own, such as `text_llm`, `text_llm_labels` and `text_llm_sentences`: the field `text` of its row in `rules` names
      them. The row's prototypes are the means of each class's sentences, at unit length unless `text_averages_scores`
      (`text_llm_averages_scores`) is true.
    - `views` and `weights` (s,), the names of the views and the weights of their fusion.
    - `pool_mean` and `offset` (d,), of a run with `align`: the mean of the unlabelled images, and its difference to the
      synthetic images of the same classes. The features are those before the alignment.
    - `class_names` and `rows`, the names of the rows; `rules`, a JSON object with the parameters of each row.

    All features are unit vectors in float32.

    Args:
        run: A run's folder.
        out: The .npz file to write.

    Returns:
        One line on what was written.

    Raises:
        ValueError: If the folder holds no finished run, or its store is not complete any more.
    """
    finished = Run.read(run)
    restored = restore_run(finished)
    arrays = {**_real(restored), **_text(restored), **_synthetic(restored)}
    predictor = finished.result.predictor
    alignment = None
    if (run / ALIGNMENT).is_file():
        alignment = read_alignment(run / ALIGNMENT)
        arrays |= {name: tensor.numpy() for name, tensor in alignment_tensors(alignment).items()}
    if restored.synthetic_images is not None:
        arrays["kept"] = _used_masks(restored, predictor, alignment)
    arrays["class_names"] = np.array(restored.dataset.class_names)
    arrays["rows"] = np.array(list(predictor))
    rules = {"predictor": dict(predictor), "confidence": asdict(finished.result.confidence)}
    arrays["rules"] = np.array(json.dumps(rules, ensure_ascii=False))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(out) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
    shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in arrays.items() if array.shape)
    return f"{out}: {shapes}"


def _real(restored: RestoredRun) -> dict[str, np.ndarray]:
    real = restored.streams["real"]
    weights = np.asarray(restored.scales.weights, dtype=np.float64)
    return {
        "real": real.features().numpy(),
        "real_labels": np.array(real.labels, dtype=np.int64),
        "real_ids": np.array(list(real.ids)),
        "real_index": np.array(restored.dataset.places, dtype=np.int64),
        "views": np.array(real.views),
        "weights": weights / weights.sum(),
    }


def _text(restored: RestoredRun) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    for name, stream in restored.streams.items():
        if not stream.is_text:
            continue
        arrays[name] = stream.features()[:, 0].numpy()
        arrays[f"{name}_labels"] = np.array(stream.labels, dtype=np.int64)
        arrays[f"{name}_averages_scores"] = np.array(stream.averages_scores)
        sentences = np.array([str(stream.load(place)) for place in range(len(stream.ids))])
        arrays["sentences" if name == "text" else f"{name}_sentences"] = sentences
    return arrays


def _synthetic(restored: RestoredRun) -> dict[str, np.ndarray]:
    if restored.synthetic_images is None:
        return {}
    synthetic = restored.streams["synthetic"]
    arrays = {"synthetic_ids": np.array(list(synthetic.ids))}
    if restored.synthetic_images.missing:
        arrays["synthetic"] = synthetic.features().numpy()
        arrays["synthetic_labels"] = np.array(synthetic.labels, dtype=np.int64)
    else:
        # Generated class by class, and every class has prompts_per_class * images_per_prompt images.
        classes = len(restored.dataset.class_names)
        arrays["synthetic"] = synthetic.features().unflatten(0, (classes, -1)).numpy()
    return arrays


def _used_masks(
    restored: RestoredRun, predictor: Mapping[str, Mapping[str, Any]], alignment: FittedAlignment | None
) -> Bool[np.ndarray, "r m"]:
    """Returns a mask of the synthetic images that each row of the result uses."""
    synthetic = restored.streams["synthetic"]
    classes = len(restored.dataset.class_names)
    fused = torch.cat([restored.scales.fuse(batch.features) for batch in synthetic.batches()])
    support = SupportSet(fused, torch.tensor(synthetic.labels), classes, restored.full_image)
    text = restored.streams.get("text")
    sentences = None
    if text is not None:
        sentences = text_prototypes(text, classes)
    compared = References(support, sentences)
    if alignment is not None:
        compared = alignment.references(compared)
    assert compared.support is not None
    kinds = {kind.key_name: kind for kind in Selection.__subclasses__()}
    used = np.zeros((len(predictor), len(synthetic.ids)), dtype=bool)
    for row, described in enumerate(predictor.values()):
        if described.get("text_weight") == 1:
            continue
        choice = described.get("selection")
        if choice is None:  # a trained predictor: its training used all
            used[row] = True
            continue
        settings = {name: value for name, value in choice.items() if name != "part"}
        used[row] = kinds[choice["part"]](**settings).mask(compared.support, compared.text).numpy()
    return used
