import re
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.tiny.captions import caption_of, digit_caption_of
from lgclip.tiny.language import invented_name
from lgclip.tiny.world import BACKGROUNDS, COLOURS, HELD_OUT_KINDS, PATTERNS, SCANNED_DIGITS, SHAPES, scene_of

WORDS = {
    "striped": r"striped|stripes",
    "dotted": r"dotted|dots",
    "plain": r"plain|in one colour|without a pattern",
}


def captions(index: int, n: int = 40, **how: float) -> list[str]:
    scene, _ = scene_of("pretrain", index)
    return [caption_of(scene, np.random.default_rng(seed), **how) for seed in range(n)]


def says(caption: str, words: str) -> bool:
    return re.search(rf"\b(?:{words})\b", caption) is not None


@given(st.integers(0, 10_000), st.integers(0, 100))
def test_everything_that_a_caption_says_is_true(index: int, seed: int) -> None:
    scene, _ = scene_of("pretrain", index)
    caption = caption_of(scene, np.random.default_rng(seed))
    without_ground = re.sub(r" (on|against|in front of) an? (\w+) background", "", caption)
    assert [c for c in COLOURS if says(without_ground, c)] == [scene.kind.colour]
    assert [s for s in SHAPES if says(caption, s)] == [scene.kind.shape]
    assert [p for p in PATTERNS if says(caption, WORDS[p])] in ([scene.kind.pattern], [])
    assert all(scene.background == b for b in BACKGROUNDS if says(caption, f"{b} background"))
    x, y = scene.centre[0] - 0.5, scene.centre[1] - 0.5
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
        assert true or not says(caption, words), (caption, scene)


def test_the_pattern_is_left_unsaid_only_where_the_object_is_plain() -> None:
    for index in range(210):
        scene, _ = scene_of("pretrain", index)
        for caption in captions(index, 10, paraphrase=1.0):
            assert says(caption, WORDS[scene.kind.pattern]) or scene.kind.pattern == "plain"


def test_the_grammar_varies() -> None:
    assert len(set(captions(0, 100))) > 50


@pytest.mark.parametrize(("paraphrase", "low", "high"), [(0.0, 1.0, 1.0), (0.2, 0.65, 0.95), (1.0, 0.0, 0.0)])
def test_paraphrase_is_how_often_the_name_does_not_stand_as_it_is(paraphrase: float, low: float, high: float) -> None:
    scene, _ = scene_of("pretrain", 3)
    share = np.mean([scene.kind.name in caption for caption in captions(3, 100, paraphrase=paraphrase)])
    assert low <= share <= high


def test_no_caption_of_the_corpus_holds_a_held_out_kind() -> None:
    held_out = {kind.name for kind in HELD_OUT_KINDS}
    for index in range(0, 4200, 3):
        assert not any(name in caption for caption in captions(index, 2) for name in held_out)


def test_articles_are_right() -> None:
    scene, _ = scene_of("pretrain", 0)
    orange = replace(scene, kind=replace(scene.kind, colour="orange", pattern="striped"), background="olive")
    told = [caption_of(orange, np.random.default_rng(s), paraphrase=1.0) for s in range(60)]
    told += [digit_caption_of(8, 0.3, np.random.default_rng(s)) for s in range(20)]
    assert any(says(caption, "an orange") for caption in told)
    assert any(says(caption, "an olive") for caption in told)
    assert not [caption for caption in told if re.search(r"\ba [aeiou]|\ban [^aeiou]", caption)]


@given(st.integers(0, 9), st.floats(0, 1), st.integers(0, 99))
def test_a_digit_s_caption_names_it_and_its_stroke(label: int, ink: float, seed: int) -> None:
    caption = digit_caption_of(label, ink, np.random.default_rng(seed))
    assert [name for name in SCANNED_DIGITS if name in caption] == [SCANNED_DIGITS[label]]
    assert ink <= 0.28 or "thin" not in caption
    assert ink >= 0.33 or "bold" not in caption


def test_invented_names_are_one_to_three_words_and_vary() -> None:
    rng = np.random.default_rng(0)
    names = [invented_name(rng) for _ in range(300)]
    assert {len(name.split()) for name in names} == {1, 2, 3}
    assert all(name == " ".join(name.split()) for name in names)
    assert len(set(names)) > 250
