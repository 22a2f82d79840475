"""Opens the unlabelled images that an alignment is estimated from."""

from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.datasets.base import Dataset
from lgclip.datasets.splits import DatasetSplits
from lgclip.datasets.unlabeled import Unlabeled, unlabeled_folder
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.methods.alignment import TEST, TRAINING, Alignment
from lgclip.stages.context import RunContext
from lgclip.stages.extract import encode_pool


def unlabeled_pool(align: Alignment | None, data: DatasetSplits) -> Dataset | None:
    """Returns the unlabelled images of an alignment; None if it uses the evaluated ones, or none.

    Args:
        align: The alignment; None for no alignment.
        data: The data set with its splits.

    Raises:
        ValueError: If there is no such split or folder, or it has too few images.
    """
    if align is None or align.pool is None:
        return None
    if align.pool == TEST:
        if data.evaluated.has_images:
            align.check(len(data.evaluated))
        return None
    pool = Unlabeled(_images(align.pool, data), align.limit)
    align.check(len(pool))
    return pool


def _images(source: str, data: DatasetSplits) -> Dataset:
    if source != TRAINING:
        return unlabeled_folder(Path(source).expanduser(), "align.images")
    try:
        return data.training
    except ValueError as error:
        raise ValueError(
            f"align.images={TRAINING}: {error}; give a folder of unlabelled photographs, align.images={TEST} or "
            "align=none"
        ) from error


def pool_features(
    context: RunContext, align: Alignment | None, data: DatasetSplits, encoder: Encoder, scales: Scales
) -> Float[Tensor, "u d"] | None:
    """Returns the fused features of the unlabelled images of a classifier that is built; None if it needs none.

    Raises:
        ValueError: If they are those of an evaluation, which does not take place.
    """
    if align is None or align.pool is None:
        return None
    pool = unlabeled_pool(align, data)
    if pool is None:
        raise ValueError(f"align.images={align.pool}: nothing is evaluated; give a folder of unlabelled photographs")
    stream = encode_pool(context, pool, encoder, scales)
    return torch.cat([scales.fuse(batch.features) for batch in stream.batches()])
