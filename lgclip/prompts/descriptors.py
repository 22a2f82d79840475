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
from lgclip.prompts.filtering import normal_form
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
        stored: Text of such a file, which a classifier keeps for classes that are added later; where `file` is set
            too, the file comes first.

    Raises:
        ValueError: If the number is below 1, or the file or the text cannot be read.
    """

    key_name: ClassVar[str] = "descriptors"
    averages_scores: ClassVar[bool] = True

    # The descriptors are the input, not the file that they come from.
    file: str | None = field(default=None, metadata=NOT_AN_INPUT)
    count: int = 6
    # A text, and not a mapping: OmegaConf would resolve `${...}` in descriptors, and is slow on thousands of nodes.
    stored: str | None = field(default=None, metadata=NOT_AN_INPUT, repr=False)
    content: str | None = field(default=None, init=False)
    parsed: Mapping[str, Sequence[str]] = field(default_factory=dict, init=False, repr=False, metadata=NOT_AN_INPUT)
    remaining: Mapping[str, Sequence[str]] = field(default_factory=dict, init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.count < 1:
            raise ValueError(f"text.count={self.count}: it must be at least 1")
        # The only way to set fields of a frozen dataclass that are computed from another one.
        if self.file is not None:
            object.__setattr__(self, "parsed", _read(Path(self.file).expanduser()))
        if self.stored is not None:
            object.__setattr__(self, "remaining", _parsed("text.stored", self.stored))
        if self.file is not None or self.stored is not None:
            object.__setattr__(self, "content", content_key({**self.remaining, **self.parsed}))

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
        matched = _matched(self.parsed, class_names)
        for place, descriptors in enumerate(_matched(self.remaining, class_names)):
            matched[place] = matched[place] or descriptors
        missing = [name for name, descriptors in zip(class_names, matched, strict=True) if not descriptors]
        if missing:
            listed = ", ".join(map(repr, missing[:_MAX_LISTED]))
            more = f", and {len(missing) - _MAX_LISTED} more" if len(missing) > _MAX_LISTED else ""
            lacking = f"{len(missing)} of {len(class_names)} classes have no descriptors"
            if self.stored is not None:
                where = "the classifier" if self.file is None else f"text.file={self.file} or the classifier"
                raise ValueError(
                    f"{lacking} in {where}: {listed}{more}; give theirs in a JSON file of class name to descriptors: "
                    "lgclip add ... --override text.file=FILE"
                )
            raise ValueError(f"text.file={self.file}: {lacking} there: {listed}{more}; add them")
        return matched

    def for_added_classes(self, dataset: Dataset) -> dict[str, object]:
        if self.content is None:
            return {}
        # The file counts for these classes; for all others what was stored before.
        descriptors = {**self.parsed, **self.remaining}
        names = dataset.class_names
        for name, used, stored in zip(names, _matched(self.parsed, names), _matched(descriptors, names), strict=True):
            if used and used != stored:
                descriptors[name] = used
        return {"file": None, "stored": _as_text(descriptors)}


def _matched(descriptors: Mapping[str, Sequence[str]], class_names: Sequence[str]) -> list[Sequence[str]]:
    """Returns the descriptors of each class, by its exact name, else by its letters and digits; empty without any."""
    similar = {normal_form(name): of_class for name, of_class in descriptors.items()}
    return [descriptors.get(name) or similar.get(normal_form(name), ()) for name in class_names]


def _as_text(descriptors: Mapping[str, Sequence[str]]) -> str:
    """Returns descriptors as JSON, without the dollar sign, with which OmegaConf begins an interpolation."""
    return json.dumps(descriptors, ensure_ascii=False).replace("$", "\\u0024")


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
        text = read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where}: it is not JSON ({error})") from None
    return _parsed(where, text)


def _parsed(where: str, text: str) -> dict[str, list[str]]:
    """Returns the descriptors of a JSON text by class name."""
    try:
        content = parse_unique(text)
    except RepeatedNameError as error:
        raise ValueError(f"{where}: {error.name!r} is there twice; keep one of them") from None
    except (json.JSONDecodeError, RecursionError) as error:
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
