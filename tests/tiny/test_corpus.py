from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lgclip.tiny.corpus import DIGIT_REPEATS, NUM_KINDS, Corpus
from lgclip.tiny.encoder import augment
from lgclip.tiny.recipe import distinct_kinds
from lgclip.tiny.vocabulary import CONTEXT_LENGTH, clip_tokenizer, language_tokenizer
from lgclip.tiny.world import HELD_OUT_KINDS, SCANNED_DIGITS, SEEN_KINDS, image_of, scanned_digits, scene_of

SHAPES = 420


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def corpus(cache: Path) -> Corpus:
    return Corpus(SHAPES, 0, cache)


def test_corpus_has_seen_kinds_only(corpus: Corpus) -> None:
    digits, labels = scanned_digits(pretrain=True)
    assert len(corpus) == SHAPES + DIGIT_REPEATS * len(digits) == len(corpus.kinds)
    synthetic_images = corpus.images.permute(0, 2, 3, 1).numpy()
    np.testing.assert_array_equal(synthetic_images[7], image_of("pretrain", 7))
    for repeat in range(DIGIT_REPEATS):
        start = SHAPES + repeat * len(digits)
        np.testing.assert_array_equal(synthetic_images[start : start + len(digits)], digits)
        np.testing.assert_array_equal(corpus.kinds[start : start + len(digits)], len(SEEN_KINDS) + labels.astype(int))
    assert [SEEN_KINDS[k] for k in corpus.kinds[:SHAPES]] == [scene_of("pretrain", i)[0].kind for i in range(SHAPES)]
    predictions = {image.tobytes() for image in scanned_digits(pretrain=False)[0]}
    assert not predictions & {photo.tobytes() for photo in synthetic_images[SHAPES:]}


def test_second_corpus_reuses_rendered_images(corpus: Corpus, cache: Path) -> None:
    path = cache / f"shapes-{SHAPES}.npy"
    before = path.stat().st_mtime_ns
    assert torch.equal(Corpus(SHAPES, 1, cache).images, corpus.images)
    assert path.stat().st_mtime_ns == before


def test_captions_vary_without_held_out_kinds(corpus: Corpus, cache: Path) -> None:
    captions = corpus.captions(2)
    assert captions == corpus.captions(2)
    assert [variants[:1] for variants in captions] == corpus.captions(1)
    reseeded = Corpus(SHAPES, 1, cache).captions(1)
    assert sum(a[0] != a[1] for a in captions) > len(corpus) / 2
    assert sum(a[0] != b[0] for a, b in zip(captions, reseeded, strict=True)) > len(corpus) / 2
    text = "\n".join(c for c in chain.from_iterable(captions))
    assert not [kind.name for kind in HELD_OUT_KINDS if kind.name in text]
    assert all(SCANNED_DIGITS[int(corpus.kinds[i]) - len(SEEN_KINDS)] in captions[i][0] for i in range(SHAPES, 999))


@pytest.mark.parametrize("batch_size", [1, 64, NUM_KINDS - 30])
def test_batch_has_distinct_kinds(batch_size: int, corpus: Corpus) -> None:
    chosen = [distinct_kinds(corpus, batch_size, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(chosen[0], chosen[1])
    assert not torch.equal(chosen[0], chosen[2])
    assert len(corpus.kinds[chosen[0]].unique()) == len(chosen[0]) == batch_size


def test_batch_larger_than_kinds_is_rejected(corpus: Corpus) -> None:
    with pytest.raises(ValueError, match="batch_size=221: at most 220"):
        distinct_kinds(corpus, NUM_KINDS + 1, torch.Generator())


def test_augmented_images_stay_in_range(corpus: Corpus) -> None:
    copies = corpus.images[:1].expand(16, -1, -1, -1)
    changed = augment(copies)
    assert changed.shape == copies.shape
    assert changed.min() >= -1
    assert changed.max() <= 1
    assert len({image.numpy().tobytes() for image in changed}) == 16
    center = changed[:, :, 24:40, 24:40].mean()
    assert abs(center - (copies[:, :, 24:40, 24:40].float() / 127.5 - 1).mean()) < 0.35  # still the same picture


TEXT = ["a photo of a striped red star", "an arrow in the middle", "a dotted blue ring on the left"]


@pytest.mark.parametrize("build", [clip_tokenizer, language_tokenizer])
@pytest.mark.parametrize("text", [*TEXT, "Größe 🦙", "ぬいぐるみ", "a\tb  c", "<|endoftext|>", ""])
def test_tokenizer_encodes_any_text(build: Callable[..., Any], text: str) -> None:
    tokenizer = build(TEXT)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert all(0 <= i < len(tokenizer) for i in ids)
    words = tokenizer.decode(ids).split()
    assert words == text.lower().split() or (build is language_tokenizer and words == text.split())


def test_clip_tokenizer_is_read_by_open_clip(tmp_path: Path) -> None:
    from open_clip.tokenizer import HFTokenizer

    tokenizer = clip_tokenizer(TEXT)
    tokenizer.save_pretrained(tmp_path)
    ids = tokenizer(TEXT[0])["input_ids"]
    assert ids[0] == len(tokenizer) - 2
    assert ids[-1] == len(tokenizer) - 1 == tokenizer.eos_token_id
    assert len(ids) == 2 + len(TEXT[0].split())  # a word of the captions is one token
    expected = HFTokenizer(str(tmp_path), context_length=CONTEXT_LENGTH)(TEXT)
    actual = tokenizer(TEXT, padding="max_length", truncation=True, return_tensors="pt")["input_ids"]
    assert torch.equal(expected, actual)  # pyright: ignore
