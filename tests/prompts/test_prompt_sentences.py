"""Tests the parsing of sentences with a place for a tuned prompt."""

from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_encoder
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from lgclip.encoder.base import LearningTowers
from lgclip.encoder.open_clip import OpenClip
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt, VisualTokens, read

NAMES = ("red star", "moon")
CLIPS_OWN = SimpleTokenizer()


@pytest.fixture
def clip(tmp_path: Path) -> LearningTowers:
    return OpenClip(str(make_encoder(tmp_path / "encoder"))).learning_towers(torch.device("cpu"), "text")


def test_long_sentence_is_rejected(clip: LearningTowers) -> None:
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
    with pytest.raises(ValueError, match=r"prompt_tuning\.words=a photo are 2 tokens; set prompt_tuning\.tokens=2"):
        TextPrompt(clip, TextContext(4, words="a photo"), NAMES)


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        (TextContext, {"tokens": 0}, r"prompt_tuning\.tokens=0: it must be an integer, at least 1"),
        (VisualTokens, {"tokens": True}, r"prompt_tuning\.tokens=True"),
        (TextContext, {"position": "back"}, r"prompt_tuning\.position=back: choose front, middle, end"),
        (TextContext, {"template": "a photo"}, r"prompt_tuning\.template=a photo: it needs \{\} once"),
        (TextContext, {"template": "{} {}"}, r"it needs \{\} once"),
    ],
)
def test_invalid_values_are_rejected(part: Any, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        part(**values)


@settings(max_examples=150)
@given(st.text(max_size=40))
def test_prefix_and_suffix_are_separated(text: str) -> None:
    head, (content,), tail, word = read(CLIPS_OWN, [text], 77)
    assert (head, content, tail[:2], word) == ([49406], CLIPS_OWN.encode(text), [49407, 0], 320)


class Bare:
    """Tokenizes as SigLIP does: no start token, and padding that is the end token."""

    def __init__(self, last: bool = False) -> None:
        self.last = last

    def __call__(self, texts: list[str], context_length: int) -> Tensor:
        rows = []
        for text in texts:
            rows.append([ord(letter) for letter in text] + [1] * (context_length - len(text)))
        return torch.tensor(
            [[*row[:-1], 7 + len(text)] if self.last else row for row, text in zip(rows, texts, strict=True)]
        )


def test_tokenizers_without_start_or_end_are_handled() -> None:
    assert read(Bare(), ["b", "", "!ab"], 4) == ([], [[98], [], [33, 97, 98]], [1] * 8, 97)
    with pytest.raises(ValueError, match=r"reads 'b' in a way that leaves a tuned prompt no place"):
        read(Bare(last=True), ["b"], 4)
