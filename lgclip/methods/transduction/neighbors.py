"""Finds the nearest images within a pool, exactly and in bounded memory, and connects them in a graph."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.moments import row_blocks


class DistinctImages(NamedTuple):
    """Holds the distinct images of a pool.

    Copies of an image would be neighbors of each other, and confirm what they have in common; and which of several
    copies is the neighbor of a third image would be an accident. So copies are one image, which counts several times.

    Attributes:
        pool: The images without copies, in the order of their first places.
        counts: Number of copies of each.
        rows: For each image of the complete pool its row in `pool`.
    """

    pool: UnlabeledPool
    counts: Float[Tensor, " m"]
    rows: Int[Tensor, " n"]


def distinct_images(pool: UnlabeledPool) -> DistinctImages:
    """Removes images with equal features from a pool; the scores are those of the first copy."""
    n = len(pool.features)
    places = torch.arange(n, device=pool.features.device)
    unique, group = torch.unique(pool.features, dim=0, return_inverse=True)
    if len(unique) == n:
        return DistinctImages(pool, pool.features.new_ones(n), places)
    # `unique` sorts by value; the order of the first places is kept instead, as it decides between equal scores.
    first = torch.full((len(unique),), n, device=places.device).scatter_reduce(0, group, places, "amin")
    first, order = first.sort()
    rows = order.argsort()[group]
    counts = torch.bincount(rows, minlength=len(first)).to(pool.features)
    return DistinctImages(pool._replace(features=pool.features[first], scores=pool.scores[first]), counts, rows)


def top_columns(values: Float[Tensor, "b n"], k: int) -> Int[Tensor, "b k"]:
    """Returns the columns of the k highest values of each row; among equal values the first columns.

    Args:
        values: Values, none of them NaN.
        k: Number of columns, at most n.
    """
    highest, columns = values.topk(k, dim=1)
    if k == 0:
        return columns
    # `topk` takes any of equal values. A stable sort is much slower, so it is left to the rows where that matters.
    tied = ((values >= highest[:, -1:]).sum(dim=1) > k).nonzero()[:, 0]
    if len(tied):
        columns[tied] = values[tied].argsort(dim=1, descending=True, stable=True)[:, :k]
    return columns


def nearest_neighbors(features: Float[Tensor, "n d"], k: int) -> tuple[Float[Tensor, "n k"], Int[Tensor, "n k"]]:
    """Finds the k nearest other images of each image, by an exact search over blocks.

    Args:
        features: Unit features.
        k: Number of neighbors; with fewer than k other images, all of them are neighbors.

    Returns:
        The cosine of each neighbor and its row.
    """
    n = len(features)
    k = min(k, n - 1)
    cosines = features.new_empty(n, k)
    neighbors = torch.empty(n, k, dtype=torch.long, device=features.device)
    for rows in row_blocks(n, n):
        block = features[rows] @ features.T
        block.diagonal(rows.start).fill_(-torch.inf)  # an image is no neighbor of itself
        neighbors[rows] = top_columns(block, k)
        cosines[rows] = block.gather(1, neighbors[rows])
    return cosines, neighbors


def neighbor_graph(features: Float[Tensor, "n d"], k: int) -> Tensor:
    """Returns the symmetric affinity of the images, `W + W^T` with the cosines to k nearest images in W.

    Args:
        features: Unit features.
        k: Number of neighbors.

    Returns:
        A coalesced sparse tensor of shape (n, n); two images that are neighbors of each other have twice their cosine.
    """
    cosines, neighbors = nearest_neighbors(features, k)
    n = len(features)
    rows = torch.arange(n, device=features.device).repeat_interleave(neighbors.shape[1])
    columns = neighbors.flatten()
    places = torch.stack([torch.cat([rows, columns]), torch.cat([columns, rows])])
    values = cosines.flatten().repeat(2)
    return torch.sparse_coo_tensor(places, values, (n, n), check_invariants=False).coalesce()
