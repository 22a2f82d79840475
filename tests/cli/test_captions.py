import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.tiny.captions import caption_of, digit_caption_of
from lgclip.tiny.language import invented_name
from lgclip.tiny.world import BACKGROUNDS, COLORS, HELD_OUT_KINDS, PATTERNS, SCANNED_DIGITS, SHAPES, scene_of

WORDS = {
    "striped": r"striped|stripes",
    "dotted": r"dotted|dots",
    "plain": r"plain|in one colour|without a pattern",
}


def captions(index: int, n: int = 40, **settings: float) -> list[str]:
    scene, _ = scene_of("pretrain", index)
    return [caption_of(scene, np.random.default_rng(seed), **settings) for seed in range(n)]


def mentions(caption: str, words: str) -> bool:
    return re.search(rf"\b(?:{words})\b", caption) is not None


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_captions_are_true(index: int, seed: int) -> None:
    scene, _ = scene_of("pretrain", index)
    caption = caption_of(scene, np.random.default_rng(seed))
    without_ground = re.sub(r" (on|against|in front of) an? (\w+) background", "", caption)
    assert [c for c in COLORS if mentions(without_ground, c)] == [scene.kind.color]
    assert [s for s in SHAPES if mentions(caption, s)] == [scene.kind.shape]
    assert [p for p in PATTERNS if mentions(caption, WORDS[p])] in ([scene.kind.pattern], [])
    assert all(scene.background == b for b in BACKGROUNDS if mentions(caption, f"{b} background"))
    x = scene.center[0] - 0.5
    y = scene.center[1] - 0.5
    for words, true in (
        ("small", scene.size <= 0.27),
        ("large", scene.size >= 0.33),
        ("on the left", x < 0 and abs(x) > abs(y)),
        ("on the right", x > 0 and abs(x) > abs(y)),
        ("at the top", y < 0 and abs(y) >= abs(x)),
        ("at the bottom", y > 0 and abs(y) >= abs(x)),
        ("in the middle", max(abs(x), abs(y)) < 0.07),
        ("upright", abs(scene.angle) < 10),
        ("tilted to the right", scene.angle >= 10),
        ("tilted to the left", scene.angle <= -10),
        ("with some grain", scene.noise > 0.025),
    ):
        assert true or not mentions(caption, words), (caption, scene)


def test_pattern_is_omitted_only_for_plain_objects() -> None:
    for index in range(210):
        scene, _ = scene_of("pretrain", index)
        for caption in captions(index, 10, paraphrase=1.0):
            assert mentions(caption, WORDS[scene.kind.pattern]) or scene.kind.pattern == "plain"


def test_caption_grammar_varies() -> None:
    assert len(set(captions(0, 100))) > 50


@pytest.mark.parametrize(("paraphrase", "low", "high"), [(0.0, 1.0, 1.0), (0.2, 0.65, 0.95), (1.0, 0.0, 0.0)])
def test_paraphrase_is_the_rate_of_changed_names(paraphrase: float, low: float, high: float) -> None:
    scene, _ = scene_of("pretrain", 3)
    share = np.mean([scene.kind.name in caption for caption in captions(3, 100, paraphrase=paraphrase)])
    assert low <= share <= high


def test_captions_contain_no_held_out_kind() -> None:
    held_out = {kind.name for kind in HELD_OUT_KINDS}
    for index in range(0, 4200, 3):
        assert not any(name in caption for caption, name in product(captions(index, 2), held_out))


def test_captions_use_correct_articles() -> None:
    scene, _ = scene_of("pretrain", 0)
    orange = replace(scene, kind=replace(scene.kind, color="orange", pattern="striped"), background="olive")
    captions = [caption_of(orange, np.random.default_rng(s), paraphrase=1.0) for s in range(60)]
    captions += [digit_caption_of(8, 0.3, np.random.default_rng(s)) for s in range(20)]
    assert any(mentions(caption, "an orange") for caption in captions)
    assert any(mentions(caption, "an olive") for caption in captions)
    assert not [caption for caption in captions if re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)]


@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 99))
def test_digit_captions_name_digit_and_stroke(label: int, ink: float, seed: int) -> None:
    caption = digit_caption_of(label, ink, np.random.default_rng(seed))
    assert [name for name in SCANNED_DIGITS if name in caption] == [SCANNED_DIGITS[label]]
    assert ink <= 0.28 or "thin" not in caption
    assert ink >= 0.33 or "bold" not in caption


def test_invented_names_vary_in_length() -> None:
    rng = np.random.default_rng(0)
    names = [invented_name(rng) for _ in range(300)]
    assert {len(name.split()) for name in names} == {1, 2, 3}
    assert all(name == " ".join(name.split()) for name in names)
    assert len(set(names)) > 250
