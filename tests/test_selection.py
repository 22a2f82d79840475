"""Which images stay, against loops over classes."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prototypes import Support
from lgclip.selection import ByText, Consensus, First, LeaveOneOut, Medoid, Selection

CLASSES, WIDTH = 3, 5
SEEDS = st.integers(0, 9999)


def rows(seed: int, n: int) -> np.ndarray:
    found = np.random.default_rng(seed).normal(size=(n, WIDTH))
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def world(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, Support, torch.Tensor]:
    images, text = rows(seed, 14), rows(seed + 1, CLASSES)
    labels = np.random.default_rng(seed).permutation(np.arange(14) % CLASSES)
    support = Support(torch.from_numpy(images), torch.from_numpy(labels), CLASSES)
    return images, text, labels, support, torch.from_numpy(text)


def kept(selection: Selection, support: Support, text: torch.Tensor | None = None) -> list[list[float]]:
    return selection.select(support, text).features.tolist()


def by_class(images: np.ndarray, labels: np.ndarray, keep: int, worth: np.ndarray) -> list[list[float]]:
    """Images of the highest worth in each class, in the order in which they came."""
    chosen = []
    for c in range(CLASSES):
        own = np.flatnonzero(labels == c)
        chosen += own[np.argsort(-worth[own], kind="stable")[:keep]].tolist()
    return images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_the_first_are_the_first(seed: int, keep: int) -> None:
    images, _, labels, support, _ = world(seed)
    assert kept(First(keep), support) == by_class(images, labels, keep, -np.arange(14.0))


@given(SEEDS, st.integers(1, 6))
def test_by_text_the_right_ones_come_first(seed: int, keep: int) -> None:
    """As the official release chooses: judged right before judged wrong, then by likeness."""
    images, text, labels, support, sentences = world(seed)
    scores = images @ text.T
    right, own = scores.argmax(axis=1) == labels, scores[np.arange(14), labels]
    chosen = []
    for c in range(CLASSES):
        mine = [i for i in range(14) if labels[i] == c]
        good = sorted((i for i in mine if right[i]), key=lambda i: -own[i])
        bad = sorted((i for i in mine if not right[i]), key=lambda i: -own[i])
        chosen += (good + bad)[:keep]
    assert kept(ByText(keep), support, sentences) == images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_a_medoid_is_most_like_its_class(seed: int, keep: int) -> None:
    images, _, labels, support, _ = world(seed)
    worth = np.array([(images[labels == labels[i]] @ images[i]).sum() for i in range(14)])
    assert kept(Medoid(keep), support) == by_class(images, labels, keep, worth)


@given(SEEDS, st.integers(1, 6))
def test_consensus_sheds_the_odd_one_out(seed: int, keep: int) -> None:
    images, _, labels, support, _ = world(seed)
    chosen = []
    for c in range(CLASSES):
        left = np.flatnonzero(labels == c)
        while len(left) > keep:
            odd = 1 if len(left) == 2 else (images[left] @ images[left].mean(axis=0)).argmin()
            left = np.delete(left, odd)
        chosen += left.tolist()
    assert kept(Consensus(keep), support) == images[sorted(chosen)].tolist()


@given(SEEDS, st.integers(1, 6))
def test_leave_one_out_judges_an_image_by_the_others(seed: int, keep: int) -> None:
    images, _, labels, support, _ = world(seed)
    worth = np.empty(14)
    for i in range(14):
        others = np.arange(14) != i
        scores = [images[i] @ unit(images[others & (labels == c)].mean(axis=0)) for c in range(CLASSES)]
        worth[i] = scores[labels[i]] - max(s for c, s in enumerate(scores) if c != labels[i])
    assert kept(LeaveOneOut(keep), support) == by_class(images, labels, keep, worth)


@pytest.mark.parametrize("kind", [First, ByText, Medoid, Consensus, LeaveOneOut])
def test_all_stay_if_none_is_to_go(kind: type[Selection]) -> None:
    _, _, _, support, _ = world(0)
    for keep in (None, 5, 99):
        assert kind(keep).select(support, None) is support
    with pytest.raises(ValueError, match=r"selection\.keep=0"):
        kind(0)


def test_an_outlier_is_left_out_by_all_but_the_first() -> None:
    near = unit(np.array([[1, 0.1, 0], [1, -0.1, 0], [1, 0, 0.1]]))
    images = np.concatenate([[[0, 0, 1.0]], near, np.eye(3)[[1, 1, 1, 1]]])
    support = Support(torch.from_numpy(images), torch.tensor([0] * 4 + [1] * 4), 2)
    text = torch.tensor([[1.0, 0, 0], [0, 1.0, 0]], dtype=torch.float64)
    for kind in (ByText, Medoid, Consensus, LeaveOneOut):
        assert kind(3).select(support, text).features[:3].tolist() == near.tolist(), kind
