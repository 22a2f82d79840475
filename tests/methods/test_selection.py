"""Tests which images are selected against loops over classes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.methods.prototypes import SupportSet
from lgclip.methods.selection import ByText, Consensus, First, LeaveOneOut, Medoid, Selection

CLASSES = 3
WIDTH = 5
SEEDS = st.integers(0, 9999)


def rows(seed: int, n: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(n, WIDTH))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, SupportSet, torch.Tensor]:
    images = rows(seed, 14)
    text = rows(seed + 1, CLASSES)
    labels = np.random.default_rng(seed).permutation(np.arange(14) % CLASSES)
    support = SupportSet(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
    return images, text, labels, support, torch.from_numpy(text)


def select_features(selection: Selection, support: SupportSet, text: torch.Tensor | None = None) -> list[list[float]]:
    return selection.select(support, text).features.tolist()


def select_by_class(images: np.ndarray, labels: np.ndarray, count: int, rank_scores: np.ndarray) -> list[list[float]]:
    """Returns the images of the highest score in each class, in their original order."""
    chosen = []
    for c in range(CLASSES):
        members = np.flatnonzero(labels == c)
        chosen += members[np.argsort(-rank_scores[members], kind="stable")[:count]].tolist()
    return images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_first_selects_the_first_images(seed: int, count: int) -> None:
    images, _, labels, support, _ = world(seed)
    assert select_features(First(count), support) == select_by_class(images, labels, count, -np.arange(14.0))


@given(SEEDS, st.integers(1, 6))
def test_by_text_prefers_correct_images(seed: int, count: int) -> None:
    """Compares with the release's selection: correct before incorrect, then by similarity."""
    images, text, labels, support, sentences = world(seed)
    scores = images @ text.T
    right = scores.argmax(axis=1) == labels
    label_scores = scores[np.arange(14), labels]
    chosen = []
    for c in range(CLASSES):
        mine = [i for i in range(14) if labels[i] == c]
        good = sorted((i for i in mine if right[i]), key=lambda i: -label_scores[i])
        bad = sorted((i for i in mine if not right[i]), key=lambda i: -label_scores[i])
        chosen += (good + bad)[:count]
    assert select_features(ByText(count), support, sentences) == images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_by_text_compares_full_images(seed: int, count: int) -> None:
    """The release ranks images by their full view, whatever crops a prototype is fused from."""
    _, _, _, support, sentences = world(seed)
    other = torch.from_numpy(rows(seed + 2, 14))

    selected = ByText(count).select(support._replace(full_image=other), sentences)

    ranked = ByText(count).select(support._replace(features=other), sentences)
    assert selected.full_image is not None
    assert torch.equal(selected.full_image, ranked.features)
    assert len(selected.features) == len(ranked.features)


@given(SEEDS, st.integers(1, 6))
def test_medoid_is_most_similar_to_its_class(seed: int, count: int) -> None:
    images, _, labels, support, _ = world(seed)
    rank_scores = np.array([(images[labels == labels[i]] @ images[i]).sum() for i in range(14)])
    assert select_features(Medoid(count), support) == select_by_class(images, labels, count, rank_scores)


@given(SEEDS, st.integers(1, 6))
def test_consensus_drops_outliers(seed: int, count: int) -> None:
    images, _, labels, support, _ = world(seed)
    chosen = []
    for c in range(CLASSES):
        left = np.flatnonzero(labels == c)
        while len(left) > count:
            unusual = 1 if len(left) == 2 else (images[left] @ images[left].mean(axis=0)).argmin()
            left = np.delete(left, unusual)
        chosen += left.tolist()
    assert select_features(Consensus(count), support) == images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_leave_one_out_scores_by_other_images(seed: int, count: int) -> None:
    images, _, labels, support, _ = world(seed)
    rank_scores = np.empty(14)
    for i in range(14):
        is_other = np.arange(14) != i
        scores = [images[i] @ unit(images[is_other & (labels == c)].mean(axis=0)) for c in range(CLASSES)]
        rank_scores[i] = scores[labels[i]] - max(s for c, s in enumerate(scores) if c != labels[i])
    assert select_features(LeaveOneOut(count), support) == select_by_class(images, labels, count, rank_scores)


@pytest.mark.parametrize("kind", [First, ByText, Medoid, Consensus, LeaveOneOut])
def test_selection_keeps_all_by_default(kind: type[Selection]) -> None:
    _, _, _, support, _ = world(0)
    for count in (None, 5, 99):
        assert kind(count).select(support, None) is support
    with pytest.raises(ValueError, match=r"selection\.keep=0"):
        kind(0)


def test_outlier_is_dropped_by_every_other_selection() -> None:
    near = unit(np.array([[1, 0.1, 0], [1, -0.1, 0], [1, 0, 0.1]]))
    images = np.concatenate([[[0, 0, 1.0]], near, np.eye(3)[[1, 1, 1, 1]]])
    support = SupportSet(torch.from_numpy(images), torch.tensor([0] * 4 + [1] * 4), 2)
    text = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    for kind in (ByText, Medoid, Consensus, LeaveOneOut):
        assert kind(3).select(support, text).features[:3].tolist() == near.tolist(), kind
