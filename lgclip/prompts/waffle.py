"""Provides random words and characters in place of descriptors: the control of descriptors, WaffleCLIP."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from lgclip.datasets.base import Dataset
from lgclip.prompts.text_side import TextSide

_WORDS = Path(__file__).parent / "waffle_words.txt"
"""Everyday nouns, one per line."""
_CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!#$%&*+=?@^~"


@dataclass(frozen=True)
class Waffle(TextSide):
    """Provides sentences with random descriptors, the same for every class: WaffleCLIP (arXiv:2306.07282, sec. 3.2).

    A pair is one sentence with random words and one with random characters; the score of a class is the mean over its
    sentences. What is left of the gain of descriptors against this control is due to what they say. The paper takes
    number and length of the words from the class names; here they are fixed, so that classes which are added later get
    the same descriptors.

    Args:
        pairs: Number of pairs.
        seed: Seed of the words and characters.
        words: Number of words, or groups of characters, of a descriptor.
        length: Number of characters of a group.

    Raises:
        ValueError: If a number is out of range.
    """

    key_name: ClassVar[str] = "waffle"
    averages_scores: ClassVar[bool] = True

    pairs: int = 15
    seed: int = 0
    words: int = 2
    length: int = 5

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("pairs", "words", "length"):
            if getattr(self, name) < 1:
                raise ValueError(f"text.{name}={getattr(self, name)}: it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"text.seed={self.seed}: it must be at least 0")

    def descriptors(self) -> list[str]:
        """Returns the random descriptors: words and characters in turn."""
        nouns = _WORDS.read_text(encoding="utf-8").split()
        descriptors: list[str] = []
        for pair in range(self.pairs):
            words = [self._pick(nouns, "word", pair, place) for place in range(self.words)]
            descriptors.append(" ".join(words))
            groups: list[str] = []
            for group in range(self.words):
                letters = [self._pick(_CHARACTERS, "character", pair, group, place) for place in range(self.length)]
                groups.append("".join(letters))
            descriptors.append(", ".join(groups))
        return descriptors

    def _pick(self, choices: Sequence[str], *place: object) -> str:
        """Returns a choice by a hash of its place alone."""
        text = "/".join(map(str, (self.seed, *place)))
        digest = hashlib.sha256(text.encode()).digest()
        return choices[int.from_bytes(digest[:6]) % len(choices)]

    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        descriptors = self.descriptors()
        sentences: list[list[str]] = []
        for name in dataset.class_names:
            sentences.append([f"a photo of a {name}, which has {descriptor}." for descriptor in descriptors])
        return sentences
