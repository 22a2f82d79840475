"""Tests batches of real and synthetic images: their order, augmentation and sharding against a plain count."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from student_factories import NAMES, ColorPatches, color_patch

from lgclip.batches import TrainingBatch
from lgclip.datasets.embedded import Shapes
from lgclip.training.augmentation import augmentation, center_cropped, normalized, seeded
from lgclip.training.student.data import MixedData, Source, _Steps, held_out, real_before

CHANGE = augmentation(16, (0.3, 1.0), flip=True, color_jitter=0.4)


def source(data: ColorPatches) -> Source:
    return Source(data.ids, data.labels, data.image)


def mixed_data(mix: float = 0.5, *, seed: int = 0, batch_size: int = 6, real: int = 4, synthetic: int = 7) -> MixedData:
    sources = {"real": source(ColorPatches(real, "real")), "synthetic": source(ColorPatches(synthetic, "drawn"))}
    settings: dict[str, Any] = {
        "batch_size": batch_size,
        "epochs": 4,
        "seed": seed,
        "augmentation": CHANGE,
        "eval_transform": center_cropped(16),
    }
    return MixedData(sources, mix, **settings)


def batches(mixed: MixedData, rank: int = 0, world: int = 1) -> list[TrainingBatch]:
    steps = _Steps(mixed, rank, world)
    return [steps[step] for step in range(mixed.steps)]


@given(st.decimals(0, 1, places=3), st.integers(1, 300), st.integers(0, 5000))
def test_real_fraction_is_exact(mix: Any, batch_size: int, step: int) -> None:
    before, after = (real_before(index, batch_size, float(mix)) for index in (step, step + 1))
    assert 0 <= step * batch_size * mix - before < 1
    assert 0 <= after - before <= batch_size


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 1.0])
def test_batches_are_full_and_cover_every_image(mix: float) -> None:
    mixed = mixed_data(mix)
    steps = _Steps(mixed, 0, 1)
    counts = []
    for step in range(mixed.steps):
        for image in steps.images(step):
            counts.append(image)
    assert len(counts) == mixed.steps * 6
    for kind, n in (("real", 12), ("synthetic", 21)):
        order = [(place, turn) for name, place, turn in counts if name == kind]
        assert max(Counter(order).values(), default=1) == 1
        assert [turn for _, turn in order] == [index // n for index in range(len(order))], "one pass after another"
        orders = []
        for pass_index in (0, 1):
            orders.append([place for place, turn in order if turn == pass_index])
        assert len(orders[1]) < n or sorted(orders[0]) == sorted(orders[1]) == list(range(n))
        assert not orders[1] or orders[0][: len(orders[1])] != orders[1], "in another order"


def test_epoch_covers_the_larger_set() -> None:
    assert [mixed_data(mix).steps_per_epoch for mix in (0.0, 0.5, 1.0)] == [4, 4, 2]
    assert mixed_data(0.5).steps == 16


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_devices_share_one_batch(devices: int) -> None:
    alone = batches(mixed_data())
    shares = [batches(mixed_data(), rank, devices) for rank in range(devices)]
    for step, full_batch in enumerate(alone):
        for rank in range(devices):
            share = shares[rank][step]
            assert (share.step, share.total) == (step, 6)
            assert torch.equal(share.pixels, full_batch.pixels[rank::devices])
            assert torch.equal(share.labels, full_batch.labels[rank::devices])


def test_batch_depends_on_seed_and_step() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = batches(mixed_data())
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are taken"
    torch.manual_seed(6)
    later = _Steps(mixed_data(), 0, 1)[9]  # of another process, without the steps before
    assert torch.equal(later.pixels, first[9].pixels)
    reseeded = _Steps(mixed_data(seed=1), 0, 1)[9]
    assert not torch.equal(reseeded.pixels, first[9].pixels)


def test_augmentation_differs_between_passes() -> None:
    mixed = mixed_data(1.0, batch_size=12, real=4)  # one pass a step
    steps = _Steps(mixed, 0, 1)
    seen = []
    for step in (0, 1):
        places = [place for _, place, _ in steps.images(step)]
        seen.append(steps[step].pixels[places.index(0)])
    assert not torch.equal(*seen)


@pytest.mark.slow
def test_workers_give_the_same_batches() -> None:
    class Alone:
        global_rank = 0
        world_size = 1
        global_step = 3
        strategy = type("S", (), {"root_device": torch.device("cpu")})

    data = Shapes()
    few = Source(data.ids, data.labels, data.image).subset(range(0, 1200, 100))
    results = []
    for workers in (0, 2):
        mixed = MixedData(
            {"synthetic": few},
            0.0,
            batch_size=4,
            epochs=2,
            seed=0,
            augmentation=CHANGE,
            eval_transform=center_cropped(16),
            workers=workers,
        )
        mixed.trainer = Alone()  # pyright: ignore[reportAttributeAccessIssue]
        results.append(list(mixed.train_dataloader()))
    assert [batch.step for batch in results[0]] == [3, 4, 5], "a resumed training begins where it stopped"
    for alone, parallel in zip(*results, strict=True):
        assert torch.equal(alone.pixels, parallel.pixels)
        assert torch.equal(alone.labels, parallel.labels)


@given(st.integers(1, 40), st.floats(0, 0.9))
def test_held_out_fraction_is_per_class(per_class: int, share: float) -> None:
    learned, out = held_out(source(ColorPatches(per_class)), share, 0)
    assert sorted([*learned.ids, *out.ids]) == sorted(ColorPatches(per_class).ids)
    expected = min(per_class - 1, int(share * per_class + 0.5))
    assert Counter(out.labels) == ({} if not expected else dict.fromkeys(range(len(NAMES)), expected))


def test_held_out_images_depend_on_ids() -> None:
    data = source(ColorPatches(10))
    _, out = held_out(data, 0.3, 0)
    _, turned = held_out(data.subset(list(range(len(data)))[::-1]), 0.3, 0)
    assert set(out.ids) == set(turned.ids) != set(held_out(data, 0.3, 1)[1].ids)
    assert torch.equal(
        *(torch.tensor(list(s.load(0).tobytes())) for s in (out, data.subset([data.ids.index(out.ids[0])])))
    )


def test_missing_images_of_a_mixture_are_named() -> None:
    with pytest.raises(ValueError, match=r"student\.real_fraction=0\.5 takes real images"):
        MixedData(
            {"synthetic": source(ColorPatches())},
            0.5,
            batch_size=2,
            epochs=1,
            seed=0,
            augmentation=CHANGE,
            eval_transform=center_cropped(16),
        )


def test_transforms_match_torchvision() -> None:
    from torchvision import transforms
    from torchvision.transforms.functional import pil_to_tensor, to_tensor

    image = color_patch(0, 0)
    old = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16)])
    assert torch.equal(center_cropped(16, 0.8)(pil_to_tensor(image)), old(pil_to_tensor(image)))
    assert center_cropped(16, squash=True)(pil_to_tensor(image)).shape == (3, 16, 16)
    mean = torch.tensor([0.1, 0.2, 0.3])
    std = torch.tensor([0.5, 0.6, 0.7])
    expected = transforms.Normalize(mean, std)(to_tensor(image))
    torch.testing.assert_close(normalized(pil_to_tensor(image), mean[:, None, None], std[:, None, None]), expected)


def test_seeded_block_restores_the_random_state() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError), seeded(7):
        raise RuntimeError(torch.rand(100))
    assert torch.equal(torch.rand(3), expected)
