"""The small captioner: what it learns to say, how it is saved, and how often it is right."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer

from lgclip.stages import quiet
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


def fit(made: TinyCaptioner) -> None:
    quiet()
    Trainer(
        accelerator="cpu", max_steps=made.steps, max_epochs=-1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(made)  # fmt: skip


# What is said.


@given(st.integers(0, 10_000))
def test_a_description_says_all_that_a_caption_may_and_nothing_else(index: int) -> None:
    scene, _ = scene_of("pretrain", index)
    told = facts(description_of(scene))
    assert all(len(words) == 1 for name, words in told.items() if name not in ("size", "grain"))
    assert (told["colour"], told["shape"], told["pattern"]) == (
        (scene.kind.colour,), (scene.kind.shape,), (scene.kind.pattern,)
    )  # fmt: skip
    assert told["background"] == (f"{scene.background} background",)
    for seed in range(20):  # a caption of the grammar says less, and the same where it says something
        some = facts(caption_of(scene, np.random.default_rng(seed), paraphrase=0.0))
        assert all(words in ((), told[name]) for name, words in some.items())


def test_facts_of_another_caption_differ_where_it_is_wrong() -> None:
    right = facts("a small striped red star on the left upright on a grey background")
    wrong = facts("a small striped blue star on the left tilted to the left on a grey background")
    assert {name for name in right if right[name] != wrong[name]} == {"colour", "tilt"}
    assert not any(facts("nothing of the kind").values())


@pytest.mark.parametrize(("ink", "stroke"), [(0.2, "a thin "), (0.3, "a "), (0.4, "a bold ")])
def test_a_digit_is_described_by_its_stroke(ink: float, stroke: str) -> None:
    assert digit_description_of(3, ink) == f"{stroke}{SCANNED_DIGITS[3]} on a black background"


def test_the_longest_description_has_room(corpus: Corpus) -> None:
    made = recipe(corpus)
    lengths = (made.tokens != IGNORED).sum(dim=1)
    assert lengths.max() <= MOST_TOKENS
    for index in (0, 77, len(corpus) - 1):
        ids = made.tokens[index][: lengths[index]]
        assert ids[-1] == made.tokenizer.eos_token_id
        assert made.tokenizer.decode(ids[:-1]) == corpus.description(index)


# How it is trained.


def test_the_tower_gives_places_that_know_where_they_are() -> None:
    """It has no position embedding: on a picture of one colour, what differs comes from the borders."""
    torch.manual_seed(0)
    eye = tower(32, 128, 3).eval()
    with torch.inference_mode():
        (places,) = eye(torch.full((1, 3, 64, 64), 0.5)).last_hidden_state
    assert places.shape == (64, 128)
    assert len({tuple(place.tolist()) for place in places}) == 64


def test_what_is_saved_says_what_was_trained(corpus: Corpus, tmp_path: Path) -> None:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText

    made, folder = recipe(corpus), tmp_path
    fit(made)
    made.save(folder)
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {".safetensors", ".json"}
    model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    processor: Any = AutoImageProcessor.from_pretrained(folder)
    pictures = corpus.images[:4]
    pixels = processor([x.permute(1, 2, 0).numpy() for x in pictures], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, pictures.float() / 127.5 - 1, rtol=0, atol=1e-6)
    tokens = made.tokens[:4].clamp(min=0)
    with torch.inference_mode():
        ours = made.model.eval()(pixel_values=pixels, decoder_input_ids=tokens).logits
        theirs = model(pixel_values=pixels, decoder_input_ids=tokens).logits
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-4)
    said = describe(folder, pictures)
    assert said == [text.strip() for text in said]
    assert not any(token in text for text in said for token in made.tokenizer.all_special_tokens)


# The one that comes with the package.


def test_what_it_says_of_kinds_it_has_never_seen_is_mostly_true() -> None:
    indices = range(0, len(HELD_OUT_KINDS) * TRAIN_IMAGES_PER_CLASS, 10)
    right = accuracy(WEIGHTS / "captioner", "train", indices)
    assert min(right[name] for name in ("colour", "pattern", "background")) > 0.95, right
    assert min(right[name] for name in ("shape", "place")) > 0.85, right


def test_it_is_small_and_says_the_same_in_any_batch() -> None:
    folder = WEIGHTS / "captioner"
    assert (folder / "model.safetensors").stat().st_size < 3_500_000
    pictures = torch.stack([torch.from_numpy(image_of("train", i)).permute(2, 0, 1) for i in range(0, 600, 100)])
    together = describe(folder, pictures)
    assert together == [describe(folder, picture[None])[0] for picture in pictures]
