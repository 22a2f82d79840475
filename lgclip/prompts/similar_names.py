"""Names objects that look similar to the classes and belong to none: negatives for a rejection threshold."""

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain, zip_longest

from lgclip.prompts.base import PromptGenerator
from lgclip.prompts.chat import ChatPromptGenerator, reads_requests
from lgclip.prompts.filtering import names, normal_form

INSTRUCTION = """\
Name {count} things that look similar to "{name}"[ ({context})] in a photograph and are easily mistaken for it, but are
something else. None of them is another word for it, a part of it, a kind of it, or something that it is a kind of.
Write each as a class label: a name of one to four words in English, without an explanation.
Answer with one JSON object and nothing else: {"prompts": ["...", "..."]}"""

AGAIN = """\
These are named already; do not repeat them, name others:
{have}"""

_MAX_WORDS = 6
_EDGES = re.compile(r"^[\s\d.)\-*•\"'“”]+|[\s.,;:\"'“”]+$")


def names_generator(prompt_generator: PromptGenerator) -> ChatPromptGenerator | None:
    """Returns a generator of similar names that uses the same chat model; None if there is none that reads a request.

    Args:
        prompt_generator: Generator of the prompts.
    """
    if not isinstance(prompt_generator, ChatPromptGenerator) or not reads_requests(prompt_generator):
        return None
    return replace(
        prompt_generator,
        instruction=INSTRUCTION,
        again=AGAIN,
        must_name=False,
        exact_name=False,
        min_words=1,
        allow_fallback=False,
    )


def usable_names(answers: Sequence[Iterable[str]], classes: Sequence[str], count: int) -> list[str]:
    """Returns distinct names that are no class, at most `count` for each class, in turn.

    A name that contains the name of a class is left out: it may be a kind of it, as "police car" is a car.

    Args:
        answers: Names for each class, as a model wrote them.
        classes: The class names.
        count: Number of names per class.
    """
    known = {normal_form(name) for name in classes}
    rows: list[list[str]] = []
    for answer in answers:
        row: list[str] = []
        for text in answer:
            name = _EDGES.sub("", text)
            if not name or len(name.split()) > _MAX_WORDS or normal_form(name) in known:
                continue
            if any(names(name, class_name) for class_name in classes):
                continue
            known.add(normal_form(name))
            row.append(name)
            if len(row) == count:
                break
        rows.append(row)
    # In turn, so that each class has some where the total is limited.
    return [name for name in chain.from_iterable(zip_longest(*rows)) if name is not None]


def recombined_names(classes: Sequence[str], count: int) -> list[str]:
    """Returns names that differ from a class in one word, which is a word of another class at the same place.

    A stand-in where no language model can be asked: of "red circle" and "blue star" it makes "red star" and "blue
    circle". Names of different lengths, or of a single word, cannot be recombined.

    Args:
        classes: The class names.
        count: Number of names per class.
    """
    words = [name.split() for name in classes]
    if len({len(parts) for parts in words}) != 1 or len(words[0]) < 2:
        return []
    columns = [list(dict.fromkeys(column)) for column in zip(*words, strict=True)]
    rows: list[list[str]] = []
    for parts in words:
        row = [
            " ".join([*parts[:place], word, *parts[place + 1 :]])
            for place, column in enumerate(columns)
            for word in column
        ]
        # By a hash, so that the choice depends on the names alone and changes different words of different classes.
        rows.append(sorted(row, key=lambda name: hashlib.sha256(name.encode()).digest()))
    known = {normal_form(name) for name in classes}
    picked: list[list[str]] = []
    for row in rows:
        new = [name for name in dict.fromkeys(row) if normal_form(name) not in known][:count]
        known.update(map(normal_form, new))
        picked.append(new)
    return [name for name in chain.from_iterable(zip_longest(*picked)) if name is not None]
