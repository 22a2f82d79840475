"""Projects the stored features of a run onto two dimensions: its prototypes, synthetic and real images."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.reporting.dashboard.schema import FeatureMap
from lgclip.reporting.restore import RestoredRun
from lgclip.reporting.run_folder import Run
from lgclip.stages.streams import Stream

REAL = 400
"""Maximum number of real images on a map; more would overlap."""

SYNTHETIC = 300
"""Maximum number of synthetic images on a map."""

CLASSES = 300
"""Maximum number of classes whose prototypes are on a map."""

DIGITS = 3
"""Decimals of a coordinate; unit features lie within 1 of the center."""


def compute_feature_map(run: Run, restored: RestoredRun) -> FeatureMap | None:
    """Computes the first two principal components of a run's features.

    The features are fused over their views, as the prototypes are. A prototype is the normalized mean of its class's
    synthetic images, or of its sentences in a run without images. The components are those of the images on the map:
    prototypes of another modality would otherwise take the first one.

    Args:
        run: The run.
        restored: Its inputs; only its stored features are read.

    Returns:
        The map; None if the run stored no features of its test images, as one that classifies by a student.

    Raises:
        ValueError: If features are not in the store any more.
    """
    if "real" not in run.result.store or "real" not in restored.streams:
        return None
    real = restored.streams["real"]
    real_places = _spread(len(real.ids), REAL)
    features = [_fused(restored, real, real_places)]
    labels = [run.predictions.label[real_places]]
    synthetic = restored.streams.get("synthetic")
    synthetic_places = np.arange(0)
    if synthetic is not None:
        synthetic_places = _spread(len(synthetic.ids), SYNTHETIC)
        features.append(_fused(restored, synthetic, synthetic_places))
        labels.append(np.array(synthetic.labels)[synthetic_places])
    prototypes, classes = _prototypes(restored)
    images = torch.cat(features).double().numpy()
    center = images.mean(axis=0)
    axes, explained = _principal_axes(images - center)
    points = np.concatenate([images, prototypes.double().numpy()]) - center
    projected = (points @ axes).round(DIGITS)
    correct: list[bool | None] = (run.predictions.rank[real_places] == 0).tolist()
    correct += [None] * (len(points) - len(real_places))
    kinds = ["real"] * len(real_places) + ["synthetic"] * len(synthetic_places) + ["prototype"] * len(classes)
    return FeatureMap(
        explained=[round(float(fraction), DIGITS) for fraction in explained],
        kind=kinds,
        class_index=[*np.concatenate(labels).tolist(), *classes.tolist()],
        x=projected[:, 0].tolist(),
        y=projected[:, 1].tolist(),
        correct=correct,
    )


def _spread(count: int, most: int) -> Int[np.ndarray, " m"]:
    """Returns at most `most` of `count` indices at equal distances, so that every class in order is among them."""
    if count <= most:
        return np.arange(count)
    return np.linspace(0, count - 1, most).round().astype(np.int64)


def _fused(restored: RestoredRun, stream: Stream, places: Int[np.ndarray, " m"]) -> Float[Tensor, "m d"]:
    batch = stream.rows(torch.from_numpy(places))
    return restored.scales.fuse(batch.features)


def _prototypes(restored: RestoredRun) -> tuple[Float[Tensor, "c d"], Int[np.ndarray, " c"]]:
    """Returns the prototypes of at most `CLASSES` classes that have one, and their classes."""
    stream = restored.streams.get("synthetic") or restored.streams.get("text")
    if stream is None:
        real = restored.streams["real"]
        return torch.empty(0, real.store.width(real.ids[0], real.views[0])), np.arange(0)
    labels = np.array(stream.labels)
    chosen = np.unique(labels)
    chosen = chosen[_spread(len(chosen), CLASSES)]
    prototypes = []
    for class_index in chosen:
        batch = stream.rows(torch.from_numpy(np.flatnonzero(labels == class_index)))
        # A sentence has one view, which needs no fusion.
        features = restored.scales.fuse(batch.features) if stream.name == "synthetic" else batch.features[:, 0]
        prototypes.append(torch.nn.functional.normalize(features.mean(dim=0), dim=0))
    return torch.stack(prototypes), chosen


def _principal_axes(
    centered: Float[np.ndarray, "n d"],
) -> tuple[Float[np.ndarray, "d 2"], Float[np.ndarray, " 2"]]:
    """Returns the two directions of the largest variance, and the fraction of the variance that each explains."""
    # The eigenvectors of the covariance and not an SVD of all rows: the features are narrower than they are many.
    values, vectors = np.linalg.eigh(centered.T @ centered)
    axes = vectors[:, [-1, -2]]
    # An eigenvector's sign is arbitrary. The largest entry is made positive, so that a report is the same each time.
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.sign(axes[largest, [0, 1]])
    return axes, values[[-1, -2]].clip(0) / max(float(values.clip(0).sum()), 1e-12)
