"""Provides descriptors of the classes, written by a chat model or read from a file: DCLIP (arXiv:2210.07183)."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar

from lgclip.datasets.base import Dataset
from lgclip.prompts.base import PromptGenerator
from lgclip.prompts.chat import ChatPromptGenerator, reads_requests
from lgclip.prompts.filtering import sameness
from lgclip.prompts.text_side import TextSide
from lgclip.prompts.unique_json import RepeatedNameError, parse_unique
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import NOT_AN_INPUT, content_key

INSTRUCTION = """\
List {count} visual features in which a {name}[ ({context})] differs from similar things in a photograph: shape, colors,
texture, parts, surroundings.
Write each as a short phrase of one to eight words in lower case, without the name and without an explanation, such as
"four legs", "a long tail" or "often near water".
Answer with one JSON object and nothing else: {"prompts": ["...", "..."]}"""

AGAIN = """\
These are listed already; do not repeat them, list others:
{have}"""

_EDGES = re.compile(r"^[\s\-*•\"'“”]+|[\s.,;:\"'“”]+$")
_IS = ("a", "an", "used")
_VERBS = ("has", "often", "typically", "may", "can")
_MAX_LISTED = 10


@dataclass(frozen=True)
class Descriptors(TextSide):
    """Provides a sentence per descriptor of a class; the score of the class is the mean over them (eq. 1).

    Args:
        file: JSON file of class name to descriptors, as DCLIP's release publishes them; None asks the chat model of
            `llm`.
        count: Number of descriptors that the chat model is asked for, per class.

    Raises:
        ValueError: If the number is below 1, or the file cannot be read.
    """

    key_name: ClassVar[str] = "descriptors"
    averages_scores: ClassVar[bool] = True

    # The descriptors are the input, not the file that they come from.
    file: str | None = field(default=None, metadata=NOT_AN_INPUT)
    count: int = 6
    content: str | None = field(default=None, init=False)
    parsed: Mapping[str, Sequence[str]] = field(default_factory=dict, init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"text.count={self.count}: it must be at least 1")
        if self.file is not None:
            # The only way to set fields of a frozen dataclass that are computed from another one.
            object.__setattr__(self, "parsed", _read(Path(self.file).expanduser()))
            object.__setattr__(self, "content", content_key(self.parsed))

    @property
    def texts_per_class(self) -> int:
        return self.count

    def generator(self, llm: PromptGenerator) -> ChatPromptGenerator | None:
        if self.content is not None:
            return None
        if not isinstance(llm, ChatPromptGenerator) or not reads_requests(llm):
            raise ValueError(
                "text=descriptors asks a chat model, and llm names none that reads a request; choose one, such as "
                "llm=qwen3_4b, or give a file: text.file=FILE"
            )
        return replace(
            llm,
            instruction=INSTRUCTION,
            again=AGAIN,
            must_name=False,
            exact_name=False,
            min_words=1,
            allow_fallback=False,
        )

    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        if self.content is not None:
            texts = self._of_file(dataset.class_names)
        assert texts is not None
        sentences: list[list[str]] = []
        for name, descriptors in zip(dataset.class_names, texts, strict=True):
            sentences.append([descriptor_sentence(name, descriptor) for descriptor in descriptors])
        return sentences

    def _of_file(self, class_names: Sequence[str]) -> list[Sequence[str]]:
        """Returns the descriptors of each class, by its exact name, else by its letters and digits."""
        similar = {sameness(name): descriptors for name, descriptors in self.parsed.items()}
        matched = [self.parsed.get(name) or similar.get(sameness(name), ()) for name in class_names]
        missing = [name for name, descriptors in zip(class_names, matched, strict=True) if not descriptors]
        if missing:
            listed = ", ".join(map(repr, missing[:_MAX_LISTED]))
            more = f", and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
            raise ValueError(
                f"text.file={self.file}: {len(missing)} of {len(class_names)} classes have no descriptors there: "
                f"{listed}{more}; add them"
            )
        return matched


def descriptor_sentence(name: str, descriptor: str) -> str:
    """Returns the sentence of a class and a descriptor, with the verb that fits the descriptor's first word.

    Args:
        name: The class name.
        descriptor: A phrase, such as "four legs".
    """
    phrase = _EDGES.sub("", descriptor)
    first = phrase.split(" ", 1)[0].casefold()
    if first in _IS:
        return f"{name}, which is {phrase}"
    if first in _VERBS:
        return f"{name}, which {phrase}"
    return f"{name}, which has {phrase}"


def _read(path: Path) -> dict[str, list[str]]:
    """Returns the descriptors of a file by class name."""
    where = f"text.file={path}"
    if not path.is_file():
        raise ValueError(f"{where}: no such file; it should hold a JSON object of class name to descriptors")
    try:
        content = parse_unique(read_text(path, encoding="utf-8-sig"))
    except RepeatedNameError as error:
        raise ValueError(f"{where}: {error.name!r} is there twice; keep one of them") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: it is not JSON ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{where}: it holds {type(content).__name__}, not an object of class name to descriptors")
    return {name: _checked(where, name, descriptors) for name, descriptors in content.items()}


def _checked(where: str, name: str, descriptors: object) -> list[str]:
    if not isinstance(descriptors, list) or not all(isinstance(text, str) for text in descriptors):
        raise ValueError(f"{where}: {name!r} holds no list of texts")
    cleaned = [" ".join(text.split()) for text in descriptors]
    cleaned = [text for text in cleaned if _EDGES.sub("", text)]
    if not cleaned:
        raise ValueError(f"{where}: {name!r} has no descriptor; give at least one, or leave the class out")
    return cleaned
