"""Tests the small captioner: its captions, its saved folder, and its accuracy."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer

from lgclip.stages.runner import quiet
from lgclip.tiny.captioner import IGNORED, MOST_TOKENS, TinyCaptioner, accuracy, describe, tower
from lgclip.tiny.captions import caption_of, description_of, digit_description_of, facts
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.install import WEIGHTS
from lgclip.tiny.world import HELD_OUT_KINDS, SCANNED_DIGITS, TRAIN_IMAGES_PER_CLASS, image_of, scene_of

# The loader only counts: a step's pictures depend on its number.
pytestmark = pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(420, 0, tmp_path_factory.mktemp("build"))


def recipe(corpus: Corpus) -> TinyCaptioner:
    torch.manual_seed(0)
    return TinyCaptioner(corpus, steps=3, batch_size=6, lr=1e-3, warmup=1, layers=1, blocks=1)


def fit(model: TinyCaptioner) -> None:
    quiet()
    Trainer(
        accelerator="cpu", max_steps=model.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(model)  # fmt: skip


# What is said.


@given(st.integers(0, 10_000))
def test_description_equals_the_caption_facts(index: int) -> None:
    scene, _ = scene_of("pretrain", index)
    described = facts(description_of(scene))
    assert all(len(words) == 1 for name, words in described.items() if name not in ("size", "grain"))
    assert (described["colour"], described["shape"], described["pattern"]) == (
        (scene.kind.color,), (scene.kind.shape,), (scene.kind.pattern,)
    )  # fmt: skip
    assert described["background"] == (f"{scene.background} background",)
    for seed in range(20):  # a caption of the grammar says less, and the same where it says something
        captioned = facts(caption_of(scene, np.random.default_rng(seed), paraphrase=0.0))
        assert all(words in ((), described[name]) for name, words in captioned.items())


def test_facts_differ_for_wrong_captions() -> None:
    right = facts("a small striped red star on the left upright on a grey background")
    wrong = facts("a small striped blue star on the left tilted to the left on a grey background")
    assert {name for name in right if right[name] != wrong[name]} == {"colour", "tilt"}
    assert not any(facts("nothing of the kind").values())


@pytest.mark.parametrize(("ink", "stroke"), [(0.2, "a thin "), (0.3, "a "), (0.4, "a bold ")])
def test_digit_description_has_the_stroke(ink: float, stroke: str) -> None:
    assert digit_description_of(3, ink) == f"{stroke}{SCANNED_DIGITS[3]} on a black background"


@pytest.mark.slow
def test_longest_description_fits(corpus: Corpus) -> None:
    model = recipe(corpus)
    lengths = (model.tokens != IGNORED).sum(dim=1)
    assert lengths.max() <= MOST_TOKENS
    for index in (0, 77, len(corpus) - 1):
        ids = model.tokens[index][: lengths[index]]
        assert ids[-1] == model.tokenizer.eos_token_id
        assert model.tokenizer.decode(ids[:-1]) == corpus.description(index)


# How it is trained.


def test_tower_encodes_positions() -> None:
    """Checks the tower without position embeddings: on one color, only the borders distinguish places."""
    torch.manual_seed(0)
    eye = tower(32, 128, 3).eval()
    with torch.inference_mode():
        (places,) = eye(torch.full((1, 3, 64, 64), 0.5)).last_hidden_state
    assert places.shape == (64, 128)
    assert len({tuple(place.tolist()) for place in places}) == 64


def test_saved_config_matches_training(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    captioner = recipe(corpus)
    folder = tmp_path
    fit(captioner)
    captioner.save(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json"}
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    synthetic_images = corpus.images[:4]
    pixels = processor([x.permute(1, 2, 0).numpy() for x in synthetic_images], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, synthetic_images.float() / 127.5 - 1, rtol=0, atol=1e-6)
    tokens = captioner.tokens[:4].clamp(min=0)
    with torch.inference_mode():
        actual = captioner.model.eval()(pixel_values=pixels, decoder_input_ids=tokens).logits
        expected = model(pixel_values=pixels, decoder_input_ids=tokens).logits
    torch.testing.assert_close(expected, actual, rtol=0, atol=1e-4)
    description = describe(folder, synthetic_images)
    assert description == [text.strip() for text in description]
    assert not any(token in text for text, token in product(description, captioner.tokenizer.all_special_tokens))


# The one that comes with the package.


def test_captions_generalize_to_held_out_kinds() -> None:
    indices = range(0, len(HELD_OUT_KINDS) * TRAIN_IMAGES_PER_CLASS, 10)
    right = accuracy(WEIGHTS / "captioner", "train", indices)
    assert min(right[name] for name in ("colour", "pattern", "background")) > 0.95, right
    assert min(right[name] for name in ("shape", "place")) > 0.85, right


def test_captions_are_small_and_batch_invariant() -> None:
    folder = WEIGHTS / "captioner"
    assert (folder / "model.safetensors").stat().st_size < 3_500_000
    synthetic_images = torch.stack(
        [torch.from_numpy(image_of("train", i)).permute(2, 0, 1) for i in range(0, 600, 100)]
    )
    together = describe(folder, synthetic_images)
    assert together == [describe(folder, image[None])[0] for image in synthetic_images]
