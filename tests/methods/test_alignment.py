"""Tests the alignment of real with synthetic images: against NumPy, by its invariances, and its files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn.functional import normalize

from lgclip.methods.alignment import FittedAlignment, PoolAlignment, StoredAlignment, read_alignment, write_alignment
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.shots import Shots

CLASSES = 6
WIDTH = 24
PER_CLASS = 8


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class World:
    """Has synthetic images of some classes, and real ones that a constant vector moves away from them."""

    def __init__(self, seed: int = 0, shift: float = 1.0, noise: float = 0.3) -> None:
        rng = np.random.default_rng(seed)
        centers = rng.normal(size=(CLASSES, WIDTH))
        common = rng.normal(size=WIDTH)
        moved = shift * rng.normal(size=WIDTH)
        self.labels = np.repeat(np.arange(CLASSES), PER_CLASS)
        noises = noise * rng.normal(size=(2, CLASSES * PER_CLASS, WIDTH))
        self.synthetic = unit(centers[self.labels] + common + noises[0])
        self.real = unit(centers[self.labels] + common + moved + noises[1])
        self.text = unit(centers + 2 * rng.normal(size=WIDTH))

    @property
    def support(self) -> SupportSet:
        return SupportSet(torch.tensor(self.synthetic).float(), torch.tensor(self.labels), CLASSES)

    @property
    def pool(self) -> torch.Tensor:
        return torch.tensor(self.real).float()

    @property
    def references(self) -> References:
        return References(self.support, torch.tensor(self.text).float())

    def accuracy(self, fitted: FittedAlignment | None) -> float:
        references = self.references if fitted is None else fitted.references(self.references)
        assert references.support is not None
        scorer = Mean().fit(references.support)
        if fitted is not None:
            scorer = fitted.scorer(scorer, self.support)
        return float((scorer(self.pool).argmax(dim=1) == self.support.labels).float().mean())


def test_plain_means_match_numpy() -> None:
    world = World()
    fitted = PoolAlignment(shares="equal", shrinkage=0.0).fit(world.pool, world.references)
    aligned = fitted.references(world.references)
    real = unit(world.real - world.real.mean(axis=0))
    synthetic = unit(world.synthetic - world.synthetic.mean(axis=0))
    text = unit(world.text - world.text.mean(axis=0))
    assert aligned.support is not None
    assert aligned.text is not None
    np.testing.assert_allclose(fitted.real(world.pool, world.support), real, atol=1e-6)
    np.testing.assert_allclose(aligned.support.features, synthetic, atol=1e-6)
    np.testing.assert_allclose(aligned.text, text, atol=1e-6)


def test_estimated_shares_match_numpy() -> None:
    world = World()
    alignment = PoolAlignment(least=1, shrinkage=0.0, shares="estimated")
    fitted = alignment.fit(world.pool[:PER_CLASS], world.references)  # one class alone
    means = np.stack([world.synthetic[world.labels == label].mean(axis=0) for label in range(CLASSES)])
    # The temperature is that of left-out synthetic images, which separate perfectly here: any small one does.
    shares = np.eye(CLASSES)[0]
    expected = world.real[:PER_CLASS].mean(axis=0) - shares @ means
    assert fitted.offset is not None
    np.testing.assert_allclose(fitted.offset, expected, atol=0.02)


@pytest.mark.parametrize("seed", range(4))
def test_a_shift_of_the_domain_is_removed(seed: int) -> None:
    world = World(seed, shift=2.0)
    before = world.accuracy(None)
    after = world.accuracy(PoolAlignment().fit(world.pool, world.references))
    assert before < 0.9
    assert after > 0.95


def test_few_classes_are_not_removed() -> None:
    """Checks a pool of two classes, whose plain mean would remove what distinguishes them from others."""
    plain: list[float] = []
    estimated: list[float] = []
    automatic: list[float] = []
    for seed in range(6):
        world = World(seed, shift=0.0, noise=1.2)
        for shares, accuracies in (("equal", plain), ("estimated", estimated), ("auto", automatic)):
            alignment = PoolAlignment(shares=shares, shrinkage=0.0)
            accuracies.append(world.accuracy(alignment.fit(world.pool[: 2 * PER_CLASS], world.references)))
    assert np.mean(estimated) > np.mean(plain) + 0.05
    assert automatic == estimated


def test_the_offset_that_fits_better_is_taken() -> None:
    """Checks a shift that misleads the estimated shares."""
    world = World(shift=2.0)
    equal = PoolAlignment(shares="equal").fit(world.pool, world.references)
    automatic = PoolAlignment().fit(world.pool, world.references)
    torch.testing.assert_close(automatic.offset, equal.offset)
    assert world.accuracy(PoolAlignment(shares="estimated").fit(world.pool, world.references)) < 0.9


@settings(max_examples=20)
@given(st.integers(1, 40), st.floats(0.0, 100.0))
def test_offset_shrinks_with_the_size_of_the_pool(count: int, shrinkage: float) -> None:
    world = World()
    full = PoolAlignment(least=1, shrinkage=0.0).fit(world.pool[:count], world.references).offset
    shrunk = PoolAlignment(least=1, shrinkage=shrinkage).fit(world.pool[:count], world.references).offset
    assert full is not None
    assert shrunk is not None
    torch.testing.assert_close(shrunk, full * count / (count + shrinkage), atol=1e-6, rtol=1e-5)


@settings(max_examples=5)
@given(st.randoms(use_true_random=False))
def test_order_and_duplicates_of_the_pool_do_not_matter(random: object) -> None:
    world = World()
    order = list(range(len(world.pool)))
    random.shuffle(order)  # pyright: ignore[reportAttributeAccessIssue]
    alignment = PoolAlignment(shrinkage=0.0)
    offset = alignment.fit(world.pool, world.references).offset
    twice = alignment.fit(world.pool[order].repeat(2, 1), world.references).offset
    torch.testing.assert_close(twice, offset, atol=1e-6, rtol=1e-5)


def test_order_of_classes_does_not_matter() -> None:
    world = World()
    order = [3, 1, 5, 0, 2, 4]
    other = References(world.support.of_classes(order))
    first = PoolAlignment().fit(world.pool, world.references).offset
    second = PoolAlignment().fit(world.pool, other).offset
    torch.testing.assert_close(second, first, atol=1e-6, rtol=1e-5)


def test_text_alone_is_compared_with_the_pool_mean() -> None:
    world = World()
    fitted = PoolAlignment().fit(world.pool, References(None, world.references.text))
    assert fitted.offset is None
    expected = normalize(world.pool - world.pool.mean(dim=0), dim=1)
    torch.testing.assert_close(fitted.real(world.pool, None), expected)


def test_shots_are_aligned_as_real_images() -> None:
    world = World()
    fitted = PoolAlignment().fit(world.pool, world.references)
    shots = Shots(world.pool[:3], torch.zeros(3, dtype=torch.long), ("a", "b", "c"), 1)
    aligned = fitted.references(world.references._replace(shots=shots)).shots
    assert aligned is not None
    torch.testing.assert_close(aligned.features, fitted.real(world.pool[:3], world.support))


def test_too_few_images_are_refused() -> None:
    world = World()
    with pytest.raises(ValueError, match=r"align\.images=training: 9 unlabelled images, and align\.least=10"):
        PoolAlignment().fit(world.pool[:9], world.references)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"images": "nowhere"}, r"align\.images=nowhere: choose training, test, or a folder"),
        ({"least": 0}, r"align\.least=0: it must be at least 1"),
        ({"limit": 5}, r"align\.limit=5: it must be at least align\.least=10"),
        ({"shrinkage": -1.0}, r"align\.shrinkage=-1\.0"),
        ({"shrinkage": float("nan")}, r"align\.shrinkage=nan"),
        ({"shares": "some"}, r"align\.shares=some: choose auto, estimated, equal"),
    ],
    ids=["images", "least", "limit", "shrinkage", "nan", "shares"],
)
def test_wrong_values_are_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PoolAlignment(**values)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("has_images", [True, False])
def test_a_file_keeps_the_alignment(tmp_path: Path, has_images: bool) -> None:
    world = World()
    references = world.references if has_images else References(None, world.references.text)
    fitted = PoolAlignment().fit(world.pool, references)
    write_alignment(tmp_path / "alignment.safetensors", fitted)
    stored = StoredAlignment(str(tmp_path)).fit(None, references)
    torch.testing.assert_close(stored.pool_mean, fitted.pool_mean, atol=0, rtol=0)
    assert stored.images == fitted.images
    assert stored.source == fitted.source
    if has_images:
        torch.testing.assert_close(stored.offset, fitted.offset, atol=0, rtol=0)
    else:
        with pytest.raises(ValueError, match="made without synthetic images"):
            StoredAlignment(str(tmp_path)).fit(None, world.references)


def test_a_file_of_another_encoder_is_refused(tmp_path: Path) -> None:
    world = World()
    write_alignment(tmp_path / "alignment.safetensors", PoolAlignment().fit(world.pool, world.references))
    narrow = SupportSet(world.support.features[:, :5], world.support.labels, CLASSES)
    with pytest.raises(ValueError, match="24 dimensions, those of this encoder 5"):
        StoredAlignment(str(tmp_path)).fit(None, References(narrow))


@pytest.mark.parametrize("kind", ["missing", "text", "tensors"])
def test_a_wrong_file_is_named(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "alignment.safetensors"
    if kind == "text":
        path.write_text("no tensors", encoding="utf-8")
    if kind == "tensors":
        save_file({"other": torch.zeros(3)}, path)
    with pytest.raises(ValueError, match="no such file" if kind == "missing" else "is no alignment, or damaged"):
        read_alignment(path)
