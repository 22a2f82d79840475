"""Reads existing prompts: published ones, or another run's."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptGenerator, PromptWriter, Task
from lgclip.prompts.filtering import normal_form
from lgclip.prompts.unique_json import RepeatedNameError, check_unique, parse_unique
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.types import TargetClass

_MAX_LISTED = 20
_NUMBERED = re.compile(r"(\d+)(?:[-_. ]++(.+))?")


class ParsedFile(NamedTuple):
    """Holds the content of a file or folder.

    Attributes:
        prompts: Prompts by class name, or by class index.
        by_index: Whether the keys are indices.
        labels: Class names given next to indices.
    """

    prompts: dict[str, list[str]]
    by_index: bool
    labels: dict[str, str]


@dataclass(frozen=True)
class PromptFile(PromptGenerator):
    """Reads prompts from a file or a folder, by class name or by class index.

    Supported formats:

    - a JSON object of name to prompts, as LGCLIP's release and CuPL publish them;
    - a JSON object of index to prompts, or a JSON list of lists in the order of the classes, which
      distinguishes classes of the same name;
    - `images.jsonl` of generate.py, by name, or by index if two of its classes have the same name;
    - a folder of text files, one prompt per line: `NAME.txt`, `INDEX.txt`, or `INDEX-NAME.txt`.

    Indices count from 0. A name is matched exactly first, then by its letters and digits, ignoring
    case. The content of the files is in the key, their location is not.

    Args:
        path: The file or folder.
    """

    key_name: ClassVar[str] = "PromptFile"
    prompts_from: ClassVar[str] = "file"

    path: str = field(metadata=NOT_AN_INPUT)
    content: str = field(init=False)
    parsed: ParsedFile = field(init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        parsed = _read(Path(self.path).expanduser())
        if not parsed.prompts:
            raise ValueError(f"llm.path={self.path}: it holds no prompts")
        text = json.dumps(parsed, ensure_ascii=False, sort_keys=True)
        # The only way to set fields of a frozen dataclass that are computed from another one.
        object.__setattr__(self, "parsed", parsed)
        object.__setattr__(self, "content", f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]}")

    @property
    def items_per_call(self) -> int:
        return 1024  # nothing to wait for

    def check(self, target_classes: Sequence[TargetClass], count: int) -> None:
        # All classes are checked, so that one message lists every class that has to be added to the file.
        problems: list[str] = []
        for target_class, entry in zip(target_classes, _match(self.parsed, target_classes), strict=True):
            label = f"{target_class.class_index} ({target_class.name!r})"
            if isinstance(entry, str):
                problems.append(f"{label}: {entry}")
            elif len(entry) < count:
                problems.append(f"{label}: {len(entry)} prompts")
        if problems:
            examples = "; ".join(problems[:_MAX_LISTED])
            if len(problems) > _MAX_LISTED:
                examples += f", and {len(problems) - _MAX_LISTED} more"
            raise PromptError(
                f"llm.path={self.path}: {len(problems)} of {len(target_classes)} classes have no {count} prompts "
                f"there: "
                f"{examples}. Classes are found by name or by index, see docs/guides/prompts.md"
            )

    def inputs(self, target_class: TargetClass, seed: int) -> dict[str, object]:
        inputs = super().inputs(target_class, seed)
        # Where the file goes by index, the prompts of a class do depend on its index.
        if self.parsed.by_index:
            inputs["class_index"] = target_class.class_index
        return inputs

    def load(self, device: torch.device) -> PromptWriter:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
            entries = _match(self.parsed, [task.target_class for task in tasks])
            for place, (task, entry) in enumerate(zip(tasks, entries, strict=True)):
                label = f"class {task.target_class.class_index} ({task.target_class.name!r})"
                if isinstance(entry, str):
                    yield place, PromptError(f"{label}: {entry}")
                elif len(entry) < task.requested:
                    yield place, PromptError(f"{label}: {len(entry)} prompts of {task.requested}")
                else:
                    yield place, GeneratedPrompts(entry)

        return write


def _match(parsed: ParsedFile, target_classes: Sequence[TargetClass]) -> list[list[str] | str]:
    """Returns the prompts of each class, or why it has none."""
    if parsed.by_index:
        return [_of_index(parsed, target_class) for target_class in target_classes]
    return _by_name(parsed.prompts, target_classes)


def _of_index(parsed: ParsedFile, target_class: TargetClass) -> list[str] | str:
    index = str(target_class.class_index)
    name = normal_form(target_class.name)
    # A class named "7" that is not class 7, as digits are in another order than 0 to 9: the intended one is ambiguous.
    if name.isdecimal() and name != index and name in parsed.prompts:
        return "an index or a name? Give a list of lists, in the order of the classes"
    # Most often the files count from 1. `startswith`, because a file name may hold only the first word.
    if index in parsed.labels and not name.startswith(normal_form(parsed.labels[index])):
        return f"the file of index {index} is of {parsed.labels[index]!r}; indices count from 0"
    return parsed.prompts.get(index, "not there")


def _by_name(prompts: Mapping[str, list[str]], target_classes: Sequence[TargetClass]) -> list[list[str] | str]:
    similar: dict[str, list[str]] = {}
    for name in prompts:
        similar.setdefault(normal_form(name), []).append(name)
    candidates: list[list[str]] = []
    for target_class in target_classes:
        # The exact name first: "Crane" and "crane" may both be there, for two classes.
        if target_class.name in prompts:
            candidates.append([target_class.name])
        else:
            candidates.append(similar.get(normal_form(target_class.name), []))
    uses = Counter(options[0] for options in candidates if len(options) == 1)

    def choose(options: Sequence[str]) -> list[str] | str:
        if not options:
            return "not there"
        if len(options) > 1:
            return f"any of {', '.join(map(repr, options))}"
        if uses[options[0]] > 1:
            return "other classes have this name too: give a list of lists, in the order of the classes"
        return prompts[options[0]]

    return [choose(options) for options in candidates]


def _read(path: Path) -> ParsedFile:
    """Reads prompts by name or by index.

    Raises:
        ValueError: If the file does not exist, or has none of the formats.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"llm.path={path}: no such file or folder")
    try:
        text = read_text(path, encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            return _by_class(path, [parse_unique(line) for line in text.splitlines() if line.strip()])
        content: Any = parse_unique(text)
    except RepeatedNameError as error:
        raise _repeated(path, error) from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"llm.path={path}: it is not JSON ({error})") from None
    except (KeyError, TypeError):
        raise ValueError(f"llm.path={path}: its lines are not those of generate.py's images.jsonl") from None
    if isinstance(content, list):
        content = {str(index): prompts for index, prompts in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(f"llm.path={path}: it is neither an object of class to prompts nor a list of lists of prompts")
    prompts = {key: _prompts(path, key, value) for key, value in content.items()}
    # "007" is class 7. Names that are numbers by chance, next to others, are names: only if all are numbers, and
    # no two the same, are they indices.
    numbers = {str(int(key)): key for key in prompts if key.isdecimal()}
    if len(numbers) < len(prompts):
        return ParsedFile(prompts, by_index=False, labels={})
    return ParsedFile({number: prompts[key] for number, key in numbers.items()}, by_index=True, labels={})


def _repeated(path: Path, error: RepeatedNameError) -> ValueError:
    return ValueError(
        f"llm.path={path}: {error.name!r} is there twice, and which of its prompts are meant is not known; keep one of "
        "them, or give a list of lists, in the order of the classes"
    )


def _prompts(path: Path, key: str, value: Any) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"llm.path={path}: {key!r} holds no list of texts")
    return [line for text in value if (line := " ".join(text.split()))]


def _by_class(path: Path, lines: Sequence[Mapping[str, Any]]) -> ParsedFile:
    """Returns the distinct prompts of images.jsonl; a prompt with several images counts once.

    By name, so that they fit a list with more classes or in another order. Only an index distinguishes classes of one
    name; their names are then compared with those of the list.
    """
    entries: dict[str, list[str]] = {}
    names: dict[str, str] = {}
    for line in lines:
        index = str(line["class"])
        names[index] = str(line["name"])
        texts = entries.setdefault(index, [])
        if line["prompt"] not in texts:
            texts.append(line["prompt"])
    prompts = {index: _prompts(path, index, texts) for index, texts in entries.items()}
    if len(set(names.values())) < len(names):
        return ParsedFile(prompts, by_index=True, labels=names)
    return ParsedFile({names[index]: texts for index, texts in prompts.items()}, by_index=False, labels={})


def _folder(path: Path) -> ParsedFile:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ValueError(f"llm.path={path}: a folder of NAME.txt or INDEX.txt, one prompt per line, has no such file")
    prompts = {}
    for file in files:
        try:
            prompts[file.stem] = _prompts(path, file.name, read_text(file, encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError:
            raise ValueError(f"llm.path={file}: it is not in UTF-8") from None
    try:
        check_unique(prompts)
    except RepeatedNameError as error:
        raise _repeated(path, error) from None
    parts = {stem: match for stem in prompts if (match := _NUMBERED.fullmatch(stem))}
    if len(parts) < len(prompts):
        return ParsedFile(prompts, by_index=False, labels={})
    by_index: dict[str, list[str]] = {}
    for stem, match in parts.items():
        index = str(int(match.group(1)))
        if index in by_index:
            raise ValueError(f"llm.path={path}: two files are of class {index}, one of them {stem}.txt")
        by_index[index] = prompts[stem]
    labels = {str(int(match.group(1))): match.group(2) for match in parts.values() if match.group(2)}
    return ParsedFile(by_index, by_index=True, labels=labels)
