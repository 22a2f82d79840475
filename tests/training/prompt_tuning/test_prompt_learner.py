"""Tests a round of prompt tuning: losses, weights and batches against NumPy and a loop by hand."""

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
from prompt_factories import encoder_of, setup_of, small_config, tuning_data_of
from student_factories import one_cpu
from torch.nn.functional import one_hot

from lgclip.runtime.instantiate import build
from lgclip.stages.runner import quiet
from lgclip.training.prompt_tuning.config import PromptTuningConfig
from lgclip.training.prompt_tuning.data import Batches, CachedImages, Rows
from lgclip.training.prompt_tuning.module import PromptRound, Prompts, candidate_losses, rate, weights_of
from lgclip.training.prompt_tuning.pool import Images
from lgclip.training.prompt_tuning.pseudo_labels import training_part
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt

CONF = Path(__file__).parents[3] / "conf"


def test_candidate_loss_matches_numpy() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(6, 4)) * 5
    sets = rng.random((6, 4)) < 0.5
    sets[np.arange(6), rng.integers(0, 4, 6)] = True
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = -np.log((shares * sets).sum(axis=1))
    result = candidate_losses(torch.tensor(logits, dtype=torch.float32), torch.tensor(sets))
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_candidate_loss_has_cross_entropy_limit() -> None:
    logits = torch.randn(7, 5) * 30
    labels = torch.randint(5, (7,))
    losses = candidate_losses(logits, one_hot(labels, 5).bool())
    torch.testing.assert_close(losses, F.cross_entropy(logits, labels, reduction="none"))
    assert candidate_losses(logits, torch.ones(7, 5, dtype=torch.bool)).abs().max() < 1e-5


def test_balance_follows_the_paradigm() -> None:
    spec = small_config(synthetic_weight=0.5)
    assert weights_of("ul", 0, 40, spec) == (0.0, 1.0, 0.5)
    assert weights_of("ssl", 10, 40, spec) == (0.25, 1.0, 0.5)
    assert weights_of("trzsl", 10, 40, spec) == (1.0, 0.25, 0.5)
    assert weights_of("trzsl", 10, 0, spec) == (1.0, 0.0, 0.5), "nothing could be guessed"


def test_release_swaps_the_balance_once() -> None:
    assert weights_of("ssl", 10, 40, small_config(release_bugs=True, rounds=1)) == (4.0, 1.0, 0.0)
    assert weights_of("ssl", 10, 40, small_config(release_bugs=True, rounds=2)) == (0.25, 1.0, 0.0)
    assert weights_of("trzsl", 10, 40, small_config(release_bugs=True, rounds=1)) == (1.0, 0.25, 0.0)
    both = small_config(release_bugs=True, rounds=1, modality="both")
    assert weights_of("trzsl", 10, 40, both) == (1.0, 0.5, 0.0)
    assert weights_of("ssl", 10, 40, both) == (2.0, 1.0, 0.0)


@pytest.mark.parametrize(("step", "share"), [(0, 0.0), (5, 0.5), (10, 1.0), (20, 0.5), (30, 0.0)])
def test_learning_rate_warms_up_and_decays(step: int, share: float) -> None:
    assert rate(small_config(epochs=3), step, 30, 10) == pytest.approx(share)


def test_round_matches_manual_sgd(tmp_path: Path) -> None:
    """Compares labelled, pseudo-labelled and synthetic images, with warm-up, cosine schedule, momentum, decay."""
    quiet()
    tuning_data = tuning_data_of(tmp_path, "ssl", images=4)
    spec = small_config(epochs=3, synthetic_weight=0.5, synthetic_batch=3, temperature=0.1)
    towers = encoder_of(tmp_path).learning_towers(torch.device("cpu"), "text")
    context = TextContext(tokens=4)
    weights = weights_of("ssl", 6, 18, spec)
    places = torch.arange(24)
    sets = one_hot(torch.arange(24) % 3, 3).bool()
    real = Rows(places, sets, (places >= 6).long())
    synthetic = Rows(torch.arange(12), one_hot(tuning_data.synthetic_labels, 3).bool(), torch.full((12,), 2))
    assert tuning_data.synthetic is not None
    looks = {"real": CachedImages(tuning_data.pool, None), "synthetic": CachedImages(tuning_data.synthetic, None)}
    batches = Batches(
        {"real": real, "synthetic": synthetic}, looks, {"real": 8, "synthetic": 3}, epochs=3, seed=5
    )  # fmt: skip
    prompts = Prompts(TextPrompt(towers, context, tuning_data.class_names), None, tuning_data.sentences, 0.1)
    module = PromptRound(prompts, spec, weights)
    trainer = one_cpu(max_steps=batches.steps, max_epochs=-1, logger=False, enable_checkpointing=False)
    trainer.fit(module, datamodule=batches)

    prompt = TextPrompt(towers, context, tuning_data.class_names)
    speed = torch.zeros(4, 32)
    losses = []
    for step in range(batches.steps):
        batch = batches.steps_of(0, 1)[step]
        share = torch.softmax(batch.inputs @ prompt().T / 0.1, dim=1)
        cross_entropies = -(share * batch.sets).sum(dim=1).log()
        parts = [w * cross_entropies[batch.kinds == kind] for kind, w in enumerate(weights)]
        loss = torch.stack([part.mean() for part in parts if len(part)]).sum()
        (gradient,) = torch.autograd.grad(loss, prompt.vectors)
        lr = 0.05 * (step / 3 if step < 3 else (1 + math.cos(math.pi * (step - 3) / 6)) / 2)
        with torch.no_grad():
            speed = 0.9 * speed + gradient + 0.1 * prompt.vectors
            prompt.vectors.sub_(lr * speed)
        losses.append(loss.item())
    assert len(losses) == 9
    torch.testing.assert_close(prompts.learned_prompts()["text.vectors"], prompt.vectors.detach(), rtol=1e-4, atol=1e-6)
    assert module.losses == pytest.approx([np.mean(losses[index : index + 3]) for index in (0, 3, 6)], rel=1e-4)


def streamed(n: int = 10, generated: int = 4, seed: int = 0) -> Batches:
    def rows(count: int, kind: int) -> Rows:
        return Rows(torch.arange(count), one_hot(torch.arange(count) % 3, 3).bool(), torch.full((count,), kind))

    def cached_images(count: int) -> CachedImages:
        names = [str(index) for index in range(count)]
        images = Images(names, torch.arange(count)[:, None] + 0.0, lambda index: None)  # pyright: ignore[reportArgumentType]
        return CachedImages(images, None)

    kinds = {"real": rows(n, 1), "synthetic": rows(generated, 2)}
    return Batches(
        kinds,
        {"real": cached_images(n), "synthetic": cached_images(generated)},
        {"real": 4, "synthetic": 3},
        epochs=2,
        seed=seed,
    )


def test_passes_shuffle_all_images() -> None:
    batches = streamed()
    assert (batches.steps_per_epoch, batches.steps) == (3, 6)
    steps = [batches.steps_of(0, 1)[index] for index in range(5)]
    real = torch.cat([step.inputs[step.kinds == 1] for step in steps]).flatten().tolist()
    synthetic = torch.cat([step.inputs[step.kinds == 2] for step in steps]).flatten().tolist()
    assert sorted(real[:10]) == sorted(real[10:]) == list(range(10))
    assert real[:10] != real[10:]
    assert all(sorted(synthetic[index : index + 4]) == [0, 1, 2, 3] for index in (0, 4, 8))
    assert steps[0].totals.tolist() == [0, 4, 3]


@pytest.mark.slow
@given(st.integers(1, 4), st.integers(0, 5), st.integers(0, 3))
def test_step_does_not_depend_on_history_or_devices(world: int, step: int, seed: int) -> None:
    full = streamed(seed=seed).steps_of(0, 1)[step]
    shares = [streamed(seed=seed).steps_of(rank, world)[step] for rank in range(world)]
    combined = sorted(
        (kind, value)
        for part in shares
        for kind, value in zip(part.kinds.tolist(), part.inputs.flatten().tolist(), strict=True)
    )
    assert combined == sorted(zip(full.kinds.tolist(), full.inputs.flatten().tolist(), strict=True))
    assert all(part.totals.equal(full.totals) for part in shares)


def test_round_without_images_is_rejected() -> None:
    nothing = Rows(torch.arange(0), torch.zeros(0, 3, dtype=torch.bool), torch.zeros(0, dtype=torch.long))
    images = Images([], torch.zeros(0, 2), lambda index: None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="no image to train on"):
        Batches({"real": nothing}, {"real": CachedImages(images, None)}, {"real": 4}, epochs=1, seed=0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rounds": -1}, r"prompt_tuning\.rounds=-1: it must be an integer, at least 0"),
        ({"lr": float("nan")}, r"prompt_tuning\.lr=nan: it must be above 0"),
        ({"epochs": 0}, r"prompt_tuning\.epochs=0: it must be an integer, at least 1"),
        ({"shots": True}, r"prompt_tuning\.shots=True: it must be an integer"),
        ({"modality": "audio"}, r"prompt_tuning\.modality=audio: choose text, visual, both"),
        ({"auxiliary": "yes"}, r"prompt_tuning\.auxiliary=yes: choose none, fixed, selected"),
        ({"warmup_epochs": 2}, r"prompt_tuning\.warmup_epochs=2: a round has 2 epochs"),
        ({"deep": True}, r"prompt_tuning\.deep=true is of visual prompts"),
        ({"per_class": True, "modality": "visual"}, r"prompt_tuning\.per_class=true is of text prompts"),
        ({"candidate_labels": True, "release_bugs": True}, r"prompt_tuning\.release_bugs=true is of GRIP's release"),
        ({"template": "a photo"}, r"prompt_tuning\.template=a photo: it needs \{\} once"),
    ],
)
def test_invalid_value_is_named(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_config(**values)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "prompt_tuning").glob("*.yaml")))
def test_presets_match_their_papers(name: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        spec = build(compose("train", [f"prompt_tuning={name}"]).prompt_tuning)
    assert isinstance(spec, PromptTuningConfig)
    rounds, shots = {"zero_shot": (0, None), "fpl": (1, 16), "ifpl": (10, 16)}.get(name, (10, None))
    assert (spec.rounds, spec.shots) == (rounds, shots)
    assert (spec.tokens, spec.momentum, spec.position) == (16, 0.9, "front")
    assert spec.candidate_labels == (name == "cpl")
    assert spec.needs_images == (name == "air")
    recipe = (spec.epochs, spec.batch_size, spec.lr, spec.weight_decay, spec.warmup_epochs, spec.gradient_clip)
    assert recipe == ((50, 64, 0.02, 0.05, 2, 0.8) if name == "cpl" else (150, 16, 0.1, 0.1, 5, None))


def test_key_changes_with_every_value(tmp_path: Path) -> None:
    tuning_data = tuning_data_of(tmp_path)
    plain = setup_of(tmp_path, tuning_data).inputs()
    assert plain == setup_of(tmp_path, tuning_data, checkpoint_every=3).inputs()
    variants = [
        {"seed": 1}, {"tokens": 5}, {"rounds": 3}, {"shots": 3}, {"position": "end"}, {"template": "a {}"},
        {"candidate_labels": True}, {"warm_start": True}, {"gradient_clip": 1.0}, {"release_bugs": True},
        {"temperature": None},
    ]  # fmt: skip
    assert all(setup_of(tmp_path, tuning_data, **values).inputs() != plain for values in variants)


@pytest.mark.parametrize("count", [1, 4, 5, 37, 620])
def test_release_trains_on_the_published_part(count: int) -> None:
    """As the release samples: seed 0 of NumPy's global generator, then a choice without replacement."""
    state = np.random.get_state()
    np.random.seed(0)
    expected = sorted(np.random.choice(range(count), size=int(count * 0.8), replace=False).tolist())
    np.random.set_state(state)

    assert training_part(count).tolist() == expected
