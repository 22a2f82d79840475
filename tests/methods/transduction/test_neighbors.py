"""Tests the search for nearest images, and how copies of an image are counted."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from unlabeled_pools import cosine_graph, random_pool

from lgclip.methods.transduction import moments, neighbors
from lgclip.methods.transduction.neighbors import distinct_images, nearest_neighbors, neighbor_graph, top_columns


@given(st.integers(0, 999), st.integers(1, 20), st.integers(1, 6))
def test_graph_holds_the_nearest_images(seed: int, n: int, k: int) -> None:
    features = random_pool(seed, n).features
    graph = cosine_graph(features.numpy(), k)
    np.testing.assert_allclose(neighbor_graph(features, k).to_dense(), graph + graph.T, atol=1e-12)


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    features = random_pool(0, 33).features
    cosines, places = nearest_neighbors(features, 4)
    monkeypatch.setattr(moments, "BLOCK", 70)  # two rows at once
    few_cosines, few_places = nearest_neighbors(features, 4)
    assert torch.equal(places, few_places)
    torch.testing.assert_close(cosines, few_cosines)


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=5), st.integers(0, 7))
def test_first_of_equal_values_wins(rows: list[list[int]], k: int) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    for row, columns in zip(rows, top_columns(values, k).tolist(), strict=True):
        ranked = sorted(range(7), key=lambda column: (-row[column], column))
        assert sorted(columns) == sorted(ranked[:k])


def test_image_is_no_neighbor_of_itself_nor_of_its_copy() -> None:
    pool = random_pool(0, 5)
    rows = torch.tensor([3, 0, 3, 1, 0, 2, 3])
    copies = pool._replace(features=pool.features[rows], scores=pool.scores[rows])
    images = distinct_images(copies)
    assert images.rows.tolist() == [0, 1, 0, 2, 1, 3, 0]
    assert images.counts.tolist() == [3, 2, 1, 1]
    assert torch.equal(images.pool.features, pool.features[[3, 0, 1, 2]])
    assert torch.equal(images.pool.scores[images.rows], copies.scores)
    _, places = neighbors.nearest_neighbors(images.pool.features, 9)
    assert [sorted(row) for row in places.tolist()] == [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]]
