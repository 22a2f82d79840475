"""A round of prompt learning: losses, weights and batches against ten lines of NumPy and a loop by hand."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from hypothesis import given
from hypothesis import strategies as st
from prompt_worlds import encoder_of, ground_of, lesson_of, small
from student_worlds import one_cpu
from torch.nn.functional import one_hot

from lgclip.allowed import build
from lgclip.methods.prompt_learner import PromptRound, Prompts, candidate_losses, rate, weights_of
from lgclip.pool import Images
from lgclip.prompt_batches import Batches, Look, Rows
from lgclip.prompt_spec import PromptSpec
from lgclip.soft_prompts import TextContext, TextPrompt
from lgclip.stages import quiet

CONF = Path(__file__).parents[1] / "conf"


def test_the_loss_of_a_set_of_candidates_is_that_of_ten_lines_of_numpy() -> None:
    rng = np.random.default_rng(0)
    logits, sets = rng.normal(size=(6, 4)) * 5, rng.random((6, 4)) < 0.5
    sets[np.arange(6), rng.integers(0, 4, 6)] = True
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = -np.log((shares * sets).sum(axis=1))
    found = candidate_losses(torch.tensor(logits, dtype=torch.float32), torch.tensor(sets))
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-5, atol=1e-6)


def test_with_one_candidate_the_loss_is_cross_entropy_and_with_all_of_them_it_is_0() -> None:
    logits, labels = torch.randn(7, 5) * 30, torch.randint(5, (7,))
    one = candidate_losses(logits, one_hot(labels, 5).bool())
    torch.testing.assert_close(one, F.cross_entropy(logits, labels, reduction="none"))
    assert candidate_losses(logits, torch.ones(7, 5, dtype=torch.bool)).abs().max() < 1e-5


def test_the_balance_is_labelled_over_guessed_and_stands_where_the_paradigm_has_it() -> None:
    spec = small(synthetic_weight=0.5)
    assert weights_of("ul", 0, 40, spec) == (0.0, 1.0, 0.5)
    assert weights_of("ssl", 10, 40, spec) == (0.25, 1.0, 0.5)
    assert weights_of("trzsl", 10, 40, spec) == (1.0, 0.25, 0.5)
    assert weights_of("trzsl", 10, 0, spec) == (1.0, 0.0, 0.5), "nothing could be guessed"


def test_the_release_turns_the_balance_over_in_one_round_with_some_labels_alone() -> None:
    assert weights_of("ssl", 10, 40, small(quirks="release", rounds=1)) == (4.0, 1.0, 0.0)
    assert weights_of("ssl", 10, 40, small(quirks="release", rounds=2)) == (0.25, 1.0, 0.0)
    assert weights_of("trzsl", 10, 40, small(quirks="release", rounds=1)) == (1.0, 0.25, 0.0)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (20, 0.5), (30, 0.0)])
def test_the_rate_rises_from_0_and_falls_by_a_cosine(step: int, share: float) -> None:
    assert rate(small(epochs=3), step, 30, 10) == pytest.approx(share)


def test_a_round_is_stochastic_gradient_descent_as_written_by_hand(tmp_path: Path) -> None:
    """Labelled, guessed and synthetic images with their weights; warm-up, cosine, momentum, decay."""
    quiet()
    ground = ground_of(tmp_path, "ssl", images=4)
    spec = small(epochs=3, synthetic_weight=0.5, synthetic_batch=3, temperature=0.1)
    towers = encoder_of(tmp_path).learning_towers(torch.device("cpu"), "text")
    context, weights = TextContext(tokens=4), weights_of("ssl", 6, 18, spec)
    places, sets = torch.arange(24), one_hot(torch.arange(24) % 3, 3).bool()
    real = Rows(places, sets, (places >= 6).long())
    synthetic = Rows(torch.arange(12), one_hot(ground.drawn, 3).bool(), torch.full((12,), 2))
    assert ground.synthetic is not None
    looks = {"real": Look(ground.pool, None), "synthetic": Look(ground.synthetic, None)}
    batches = Batches(
        {"real": real, "synthetic": synthetic}, looks, {"real": 8, "synthetic": 3}, epochs=3, seed=5
    )  # fmt: skip
    prompts = Prompts(TextPrompt(towers, context, ground.class_names), None, ground.sentences, 0.1)
    module = PromptRound(prompts, spec, weights)
    trainer = one_cpu(max_steps=batches.steps, max_epochs=-1, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=batches)

    own, speed, losses = TextPrompt(towers, context, ground.class_names), torch.zeros(4, 32), []
    for step in range(batches.steps):
        batch = batches.steps_of(0, 1)[step]
        share = torch.softmax(batch.inputs @ own().T / 0.1, dim=1)
        each = -(share * batch.sets).sum(dim=1).log()
        parts = [w * each[batch.kinds == kind] for kind, w in enumerate(weights)]
        loss = torch.stack([part.mean() for part in parts if len(part)]).sum()
        (gradient,) = torch.autograd.grad(loss, own.vectors)
        lr = 0.05 * (step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 6)) / 2)
        with torch.no_grad():
            speed = 0.9 * speed + gradient + 0.1 * own.vectors
            own.vectors.sub_(lr * speed)
        losses.append(loss.item())
    assert len(losses) == 9
    torch.testing.assert_close(prompts.learnt()["text.vectors"], own.vectors.detach(), rtol=1e-4, atol=1e-6)
    assert module.losses == pytest.approx([np.mean(losses[at : at + 3]) for at in (0, 3, 6)], rel=1e-4)


def streamed(n: int = 10, drawn: int = 4, seed: int = 0) -> Batches:
    def rows(count: int, kind: int) -> Rows:
        return Rows(torch.arange(count), one_hot(torch.arange(count) % 3, 3).bool(), torch.full((count,), kind))

    def look(count: int) -> Look:
        return Look(Images([str(at) for at in range(count)], torch.arange(count)[:, None] + 0.0, lambda at: None), None)  # pyright: ignore[reportArgumentType]

    kinds = {"real": rows(n, 1), "synthetic": rows(drawn, 2)}
    return Batches(kinds, {"real": look(n), "synthetic": look(drawn)}, {"real": 4, "synthetic": 3}, epochs=2, seed=seed)


def test_each_pass_goes_through_all_images_once_in_another_order() -> None:
    batches = streamed()
    assert (batches.steps_per_epoch, batches.steps) == (3, 6)
    steps = [batches.steps_of(0, 1)[at] for at in range(5)]
    real = torch.cat([step.inputs[step.kinds == 1] for step in steps]).flatten().tolist()
    synthetic = torch.cat([step.inputs[step.kinds == 2] for step in steps]).flatten().tolist()
    assert sorted(real[:10]) == sorted(real[10:]) == list(range(10))
    assert real[:10] != real[10:]
    assert all(sorted(synthetic[at : at + 4]) == [0, 1, 2, 3] for at in (0, 4, 8))
    assert steps[0].totals.tolist() == [0, 4, 3]


@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_a_step_is_the_same_whatever_came_before_and_however_many_devices_share_it(
    world: int, step: int, seed: int
) -> None:
    whole = streamed(seed=seed).steps_of(0, 1)[step]
    shares = [streamed(seed=seed).steps_of(rank, world)[step] for rank in range(world)]
    found = sorted(
        (kind, value)
        for part in shares
        for kind, value in zip(part.kinds.tolist(), part.inputs.flatten().tolist(), strict=True)
    )
    assert found == sorted(zip(whole.kinds.tolist(), whole.inputs.flatten().tolist(), strict=True))
    assert all(part.totals.equal(whole.totals) for part in shares)


def test_a_round_without_an_image_is_refused() -> None:
    nothing = Rows(torch.arange(0), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    images = Images([], torch.zeros(0, 2), lambda at: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no image to learn from"):
        Batches({"real": nothing}, {"real": Look(images, None)}, {"real": 4}, epochs=1, seed=0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"rounds": -1}, r"learner\.rounds=-1: it must be a whole number, at least 0"),
        ({"lr": float("nan")}, r"learner\.lr=nan: it must be above 0"),
        ({"epochs": 0}, r"learner\.epochs=0: it must be a whole number, at least 1"),
        ({"shots": True}, r"learner\.shots=True: it must be a whole number"),
        ({"prompt": "audio"}, r"learner\.prompt=audio: choose text, visual, both"),
        ({"auxiliary": "yes"}, r"learner\.auxiliary=yes: choose none, given, chosen"),
        ({"warmup_epochs": 2}, r"learner\.warmup_epochs=2: a round has 2 epochs"),
        ({"deep": True}, r"learner\.deep=true is of visual prompts"),
        ({"per_class": True, "prompt": "visual"}, r"learner\.per_class=true is of text prompts"),
        ({"candidates": True, "quirks": "release"}, r"learner\.quirks=release is of GRIP's release"),
        ({"template": "a photo"}, r"learner\.template=a photo: it needs \{\} once"),
    ],
)
def test_a_value_that_cannot_be_is_named(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        small(**values)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "learner").glob("*.yaml")))
def test_a_preset_composes_and_is_what_its_paper_says(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        spec = build(compose("train", [f"learner={name}"]).learner)
    assert isinstance(spec, PromptSpec)
    rounds, shots = {"zero_shot": (0, None), "fpl": (1, 16), "ifpl": (10, 16)}.get(name, (10, None))
    assert (spec.rounds, spec.shots) == (rounds, shots)
    assert (spec.tokens, spec.momentum, spec.position) == (16, 0.9, "front")
    assert spec.candidates == (name == "cpl")
    assert spec.needs_images == (name == "air")
    recipe = (spec.epochs, spec.batch_size, spec.lr, spec.weight_decay, spec.warmup_epochs, spec.clip)
    assert recipe == ((50, 64, 0.02, 0.05, 2, 0.8) if name == "cpl" else (150, 16, 0.1, 0.1, 5, None))


def test_a_key_changes_with_every_value_but_how_often_is_saved(tmp_path: Path) -> None:
    ground = ground_of(tmp_path)
    plain = lesson_of(tmp_path, ground).inputs()
    assert plain == lesson_of(tmp_path, ground, checkpoint_every=3).inputs()
    others = [
        {"seed": 1}, {"tokens": 5}, {"rounds": 3}, {"shots": 3}, {"position": "end"}, {"template": "a {}"},
        {"candidates": True}, {"warm_start": True}, {"clip": 1.0}, {"quirks": "release"}, {"temperature": None},
    ]  # fmt: skip
    assert all(lesson_of(tmp_path, ground, **values).inputs() != plain for values in others)
