"""Sentences with room for a soft prompt: how they are read, and those that leave none."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from worlds import encoder_folder

from lgclip.encoder.base import LearningTowers
from lgclip.encoder.open_clip import OpenClip
from lgclip.soft_prompts import TextContext, TextPrompt, VisualTokens, read

NAMES = ("red star", "moon")
CLIPS_OWN = SimpleTokenizer()


@pytest.fixture
def clip(tmp_path: Path) -> LearningTowers:
    return OpenClip(str(encoder_folder(tmp_path / "encoder"))).learning_towers(torch.device("cpu"), "text")


def test_a_sentence_that_is_too_long_is_refused_by_its_class(clip: LearningTowers) -> None:
    long = " ".join(["moon"] * 14)
    assert TextPrompt(clip, TextContext(16), ["moon", long])().shape == (2, 32)  # 1 + 16 + 14 + 1 = 32
    with pytest.raises(
        ValueError, match=r"class 'moon.*': its sentence takes 15 tokens, and beside 16 .* has room for 14; shorten"
    ):
        TextPrompt(clip, TextContext(16), ["red star", long + " moon"])
    with pytest.raises(ValueError, match=r"class 'red star': its sentence takes 2 tokens, .* has room for 0"):
        TextPrompt(clip, TextContext(40), ["red star"])
    with pytest.raises(ValueError, match="a class name at least"):
        TextPrompt(clip, TextContext(4), [])
    with pytest.raises(ValueError, match=r"learner\.words=a photo are 2 tokens; set learner\.tokens=2"):
        TextPrompt(clip, TextContext(4, words="a photo"), NAMES)


@pytest.mark.parametrize(
    ("part", "values", "said"),
    [
        (TextContext, {"tokens": 0}, r"learner\.tokens=0: it must be a whole number, at least 1"),
        (VisualTokens, {"tokens": True}, r"learner\.tokens=True"),
        (TextContext, {"position": "back"}, r"learner\.position=back: choose front, middle, end"),
        (TextContext, {"template": "a photo"}, r"learner\.template=a photo: it needs \{\} once"),
        (TextContext, {"template": "{} {}"}, r"it needs \{\} once"),
    ],
)
def test_a_value_that_cannot_be_is_refused_with_a_way_out(part: Any, values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part(**values)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_what_stands_around_a_sentence_is_told_apart(text: str) -> None:
    head, (content,), tail, word = read(CLIPS_OWN, [text], 77)
    assert (head, content, tail[:2], word) == ([49406], CLIPS_OWN.encode(text), [49407, 0], 320)


class Bare:
    """As SigLIP's: no start, and padding that is the end again."""

    def __init__(self, last: bool = False) -> None:
        self.last = last

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        rows = [[ord(letter) for letter in text] + [1] * (context_length - len(text)) for text in texts]
        return torch.tensor(
            [[*row[:-1], 7 + len(text)] if self.last else row for row, text in zip(rows, texts, strict=True)]
        )


def test_a_tokenizer_without_a_start_is_read_and_one_that_ends_otherwise_is_refused() -> None:
    assert read(Bare(), ["b", "", "!ab"], 4) == ([], [[98], [], [33, 97, 98]], [1] * 8, 97)
    with pytest.raises(ValueError, match=r"reads 'b' in a way that leaves a soft prompt no place"):
        read(Bare(last=True), ["b"], 4)
