"""Batches of real and synthetic images: which, how changed, on how many devices; held against a plain recount."""

from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from student_worlds import NAMES, Patches, patch

from lgclip.augmentation import augmentation, centred, normalised, seeded
from lgclip.batch import TrainingBatch
from lgclip.datasets.small import Shapes
from lgclip.mixture import Mixture, Source, _Steps, held_out, real_before

CHANGE = augmentation(16, (0.3, 1.0), flip=True, colour_jitter=0.4)


def source(data: Patches) -> Source:
    return Source(data.ids, data.labels, data.image)


def mixture(mix: float = 0.5, *, seed: int = 0, batch_size: int = 6, real: int = 4, synthetic: int = 7) -> Mixture:
    sources = {"real": source(Patches(real, "real")), "synthetic": source(Patches(synthetic, "drawn"))}
    more: dict[str, Any] = {"batch_size": batch_size, "epochs": 4, "seed": seed, "change": CHANGE, "look": centred(16)}
    return Mixture(sources, mix, **more)


def batches(made: Mixture, rank: int = 0, world: int = 1) -> list[TrainingBatch]:
    steps = _Steps(made, rank, world)
    return [steps[step] for step in range(made.steps)]


@given(st.decimals(0, 1, places=3), st.integers(1, 300), st.integers(0, 5000))
def test_the_share_of_real_images_is_exact_to_less_than_one_image(mix: Any, batch_size: int, step: int) -> None:
    before, after = (real_before(at, batch_size, float(mix)) for at in (step, step + 1))
    assert 0 <= step * batch_size * mix - before < 1
    assert 0 <= after - before <= batch_size


@pytest.mark.parametrize("mix", [0.0, 0.25, 0.5, 1.0])
def test_every_batch_is_full_and_every_pass_takes_each_image_once(mix: float) -> None:
    made = mixture(mix)
    steps = _Steps(made, 0, 1)
    taken = [image for step in range(made.steps) for image in steps.images(step)]
    assert len(taken) == made.steps * 6
    for kind, n in (("real", 12), ("synthetic", 21)):
        own = [(place, turn) for name, place, turn in taken if name == kind]
        assert max(Counter(own).values(), default=1) == 1
        assert [turn for _, turn in own] == [at // n for at in range(len(own))], "one pass after another"
        orders = [[place for place, turn in own if turn == which] for which in (0, 1)]
        assert len(orders[1]) < n or sorted(orders[0]) == sorted(orders[1]) == list(range(n))
        assert not orders[1] or orders[0][: len(orders[1])] != orders[1], "in another order"


def test_an_epoch_goes_once_through_the_larger_set_that_is_used() -> None:
    assert [mixture(mix).steps_per_epoch for mix in (0.0, 0.5, 1.0)] == [4, 4, 2]
    assert mixture(0.5).steps == 16


@pytest.mark.parametrize("devices", [2, 3, 5])
def test_devices_share_the_very_batch_of_one(devices: int) -> None:
    alone = batches(mixture())
    shares = [batches(mixture(), rank, devices) for rank in range(devices)]
    for step, whole in enumerate(alone):
        for rank in range(devices):
            share = shares[rank][step]
            assert (share.step, share.total) == (step, 6)
            assert torch.equal(share.pixels, whole.pixels[rank::devices])
            assert torch.equal(share.labels, whole.labels[rank::devices])


def test_a_batch_depends_on_seed_and_step_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = batches(mixture())
    assert torch.equal(torch.get_rng_state(), before), "nobody else's random numbers are taken"
    torch.manual_seed(6)
    later = _Steps(mixture(), 0, 1)[9]  # of another process, without the steps before
    assert torch.equal(later.pixels, first[9].pixels)
    other = _Steps(mixture(seed=1), 0, 1)[9]
    assert not torch.equal(other.pixels, first[9].pixels)


def test_an_image_is_changed_otherwise_in_each_pass() -> None:
    made = mixture(1.0, batch_size=12, real=4)  # one pass a step
    steps = _Steps(made, 0, 1)
    seen = []
    for step in (0, 1):
        places = [place for _, place, _ in steps.images(step)]
        seen.append(steps[step].pixels[places.index(0)])
    assert not torch.equal(*seen)


def test_worker_processes_make_the_same_batches() -> None:
    class Alone:
        global_rank, world_size, global_step = 0, 1, 3
        strategy = type("S", (), {"root_device": torch.device("cpu")})

    data = Shapes()
    few = Source(data.ids, data.labels, data.image).at(range(0, 1200, 100))
    found = []
    for workers in (0, 2):
        made = Mixture(
            {"synthetic": few}, 0.0, batch_size=4, epochs=2, seed=0, change=CHANGE, look=centred(16), workers=workers
        )
        made.trainer = Alone()  # pyright: ignore[reportAttributeAccessIssue]
        found.append(list(made.train_dataloader()))
    assert [batch.step for batch in found[0]] == [3, 4, 5], "a resumed training begins where it stopped"
    for alone, other in zip(*found, strict=True):
        assert torch.equal(alone.pixels, other.pixels)
        assert torch.equal(alone.labels, other.labels)


@given(st.integers(1, 40), st.floats(0, 0.9))
def test_the_held_out_share_is_of_every_class_and_leaves_one_image(each: int, share: float) -> None:
    learned, out = held_out(source(Patches(each)), share, 0)
    assert sorted([*learned.ids, *out.ids]) == sorted(Patches(each).ids)
    wanted = min(each - 1, int(share * each + 0.5))
    assert Counter(out.labels) == ({} if not wanted else dict.fromkeys(range(len(NAMES)), wanted))


def test_what_is_held_out_depends_on_ids_and_no_order() -> None:
    data = source(Patches(10))
    _, out = held_out(data, 0.3, 0)
    _, turned = held_out(data.at(list(range(len(data)))[::-1]), 0.3, 0)
    assert set(out.ids) == set(turned.ids) != set(held_out(data, 0.3, 1)[1].ids)
    assert torch.equal(*(torch.tensor(list(s.load(0).tobytes())) for s in (out, data.at([data.ids.index(out.ids[0])]))))


def test_images_that_a_mixture_asks_for_and_are_not_there_are_named() -> None:
    with pytest.raises(ValueError, match=r"student\.mix=0\.5 takes real images"):
        Mixture({"synthetic": source(Patches())}, 0.5, batch_size=2, epochs=1, seed=0, change=CHANGE, look=centred(16))


def test_images_are_seen_as_torchvision_s_first_transforms_show_them() -> None:
    from torchvision import transforms
    from torchvision.transforms.functional import pil_to_tensor, to_tensor

    image = patch(0, 0)
    old = transforms.Compose([transforms.Resize(20), transforms.CenterCrop(16)])
    assert torch.equal(centred(16, 0.8)(pil_to_tensor(image)), old(pil_to_tensor(image)))
    assert centred(16, squash=True)(pil_to_tensor(image)).shape == (3, 16, 16)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.6, 0.7])
    wanted = transforms.Normalize(mean, std)(to_tensor(image))
    torch.testing.assert_close(normalised(pil_to_tensor(image), mean[:, None, None], std[:, None, None]), wanted)


def test_a_seeded_block_leaves_the_random_numbers_as_they_were_even_if_it_fails() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with pytest.raises(RuntimeError), seeded(7):
        raise RuntimeError(torch.rand(100))
    assert torch.equal(torch.rand(3), wanted)
