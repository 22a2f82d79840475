"""Provides classes that are known by name alone: a data set without images."""

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path

from PIL import Image

from lgclip.datasets.base import Dataset, Training, checked_names
from lgclip.datasets.image_files import sentences
from lgclip.runtime.regular_files import read_text
from lgclip.types import TargetClass

ClassNameSource = str | Path | Sequence[str] | Mapping[str, str]
"""A file of names, names, or names with a description of each."""

TEXT_SUFFIXES = (".txt", ".tsv", "")


class ClassNames(Dataset):
    """Provides class names without images, to generate images of them or to build a classifier.

    Args:
        names: A file, the names, or a mapping from names to descriptions. A text file holds one name per line, or
            `NAME<TAB>DESCRIPTION`; a JSON file a list of names, or an object from names to descriptions.
        context: Type of the classes, such as "a type of bird", where a class has no description of its own.
        templates: Templates for the text prototypes; None builds one from the context.

    Raises:
        ValueError: If the file is missing or of another kind, a name is empty or occurs twice, or there are fewer than
            two names.
    """

    name = "names"
    split = "none"
    has_images = False
    labels = ()
    training = Training(lacking=", it consists of class names alone")

    def __init__(
        self, names: ClassNameSource, context: str = "", templates: Sequence[str] | None = None, *, least: int = 2
    ) -> None:
        descriptions = read_class_names(names)
        self.class_names = checked_names(list(descriptions))
        self.descriptions = tuple(" ".join(text.split()) for text in descriptions.values())
        self.context = context
        self.templates = sentences(context, templates)
        self._has_templates = templates is not None
        if len(self.class_names) < least:
            raise ValueError(f"dataset.names: {len(self.class_names)} class names; a classifier needs at least {least}")

    @property
    def target_classes(self) -> tuple[TargetClass, ...]:
        classes = super().target_classes
        pairs = zip(classes, self.descriptions, strict=True)
        return tuple(target._replace(context=description or target.context) for target, description in pairs)

    def text_sentences(self, label: int) -> list[str]:
        description = self.descriptions[label]
        name = self.class_names[label]
        # Templates of the user's own are complete; the default one says what is known of the class.
        templates = self.templates if self._has_templates or not description else sentences(description, None)
        return [template.replace("{}", name) for template in templates]

    @cached_property
    def ids(self) -> Sequence[str]:
        return ()

    def image(self, index: int) -> Image.Image:
        raise IndexError(f"image {index}: {self.name} has no images")

    def source(self) -> dict[str, object]:
        return {"dataset": self.name}


def read_class_names(names: ClassNameSource, option: str = "dataset.names") -> dict[str, str]:
    """Returns the description of each class name; empty where there is none.

    Args:
        names: A file, the names, or a mapping from names to descriptions.
        option: What the user gave a file by, for errors.

    Raises:
        ValueError: If a file is missing or of another kind, a name occurs twice or is no text.
    """
    if isinstance(names, str | Path):
        return _read_file(Path(names).expanduser(), f"{option}={names}")
    if isinstance(names, Mapping):
        return _checked_pairs([(name, names[name]) for name in names], "names")
    return _checked_pairs([(name, "") for name in names], "names")


def _read_file(path: Path, where: str) -> dict[str, str]:
    if not path.is_file():
        raise ValueError(f"{where}: no such file; it should hold one class name per line")
    if path.suffix.lower() not in (*TEXT_SUFFIXES, ".json"):
        raise ValueError(
            f"{where}: files of names are .txt (one name per line, or NAME<TAB>DESCRIPTION) or .json (a list, or an "
            f"object from names to descriptions), not {path.suffix}"
        )
    try:
        text = read_text(path, encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{where} is not text in UTF-8 ({error})") from error
    if path.suffix.lower() == ".json":
        return _read_json(text, where)
    return parse_class_names(text, where)


def parse_class_names(text: str, where: str) -> dict[str, str]:
    """Returns the description of each class name in a text with one name, or `NAME<TAB>DESCRIPTION`, per line.

    Args:
        text: The lines.
        where: What they are, for error messages.

    Raises:
        ValueError: If a name occurs twice, or there is none.
    """
    pairs = []
    for line in text.splitlines():
        name, _, description = line.partition("\t")
        # Blank lines separate; a line with a description alone lacks its name.
        if line.strip():
            pairs.append((name.strip(), description.strip()))
    return _checked_pairs(pairs, where)


def _read_json(text: str, where: str) -> dict[str, str]:
    try:
        # As pairs: a name that occurs twice would otherwise replace the first silently.
        content = json.loads(text, object_pairs_hook=list)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    if not isinstance(content, list):
        raise ValueError(f"{where}: it holds {type(content).__name__}, not a list or an object of names")
    pairs = [item if isinstance(item, tuple) else (item, "") for item in content]
    return _checked_pairs(pairs, where)


def _checked_pairs(pairs: Sequence[tuple[object, object]], where: str) -> dict[str, str]:
    descriptions: dict[str, str] = {}
    for name, description in pairs:
        if not isinstance(name, str) or not isinstance(description, str):
            raise ValueError(f"{where}: {name!r} with {description!r}: names and descriptions are text")
        if name in descriptions:
            raise ValueError(f"{where}: {name!r} occurs twice; give each class a name of its own")
        descriptions[name] = description
    if not descriptions:
        raise ValueError(f"{where}: it holds no class name")
    return descriptions
