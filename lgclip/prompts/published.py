"""Prompts that are there already: published ones, or another run's."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lgclip.batch import Subject
from lgclip.identity import NOT_AN_INPUT
from lgclip.prompts.base import Pen, PromptError, PromptWriter, Task, Written
from lgclip.prompts.verdicts import sameness

_SHOWN = 20
_NUMBERED = re.compile(r"(\d+)(?:[-_. ]+(.+))?")


class Found(NamedTuple):
    """What a file or folder holds.

    Attributes:
        prompts: By class name, or by class index.
        by_index: Whether the keys are indices.
        labels: Names that stand beside indices.
    """

    prompts: dict[str, list[str]]
    by_index: bool
    labels: dict[str, str]


@dataclass(frozen=True)
class PromptFile(PromptWriter):
    """Prompts from a file or a folder, by class name or by class index.

    Read are:

    - a JSON object of name to prompts, as LGCLIP's release and CuPL publish them;
    - a JSON object of index to prompts, or a JSON list of lists in the order of the classes: the way to
      tell apart classes of the same name;
    - `images.jsonl` of generate.py;
    - a folder of text files, one prompt a line: `NAME.txt`, `INDEX.txt`, or `INDEX-NAME.txt`.

    An index counts from 0. A name is looked for as it is, then by its letters and digits alone, whatever the
    case. What the files hold is in the key, where they lie is not.

    Args:
        path: The file or folder.
    """

    path: str = field(metadata=NOT_AN_INPUT)
    content: str = field(init=False)
    found: Found = field(init=False, repr=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        found = _read(Path(self.path).expanduser())
        if not found.prompts:
            raise ValueError(f"llm.path={self.path}: it holds no prompts")
        text = json.dumps(found, ensure_ascii=False, sort_keys=True)
        object.__setattr__(self, "found", found)
        object.__setattr__(self, "content", f"sha256:{hashlib.sha256(text.encode()).hexdigest()[:32]}")

    @property
    def at_once(self) -> int:
        return 1024  # nothing to wait for

    def check(self, subjects: Sequence[Subject], count: int) -> None:
        found = _match(self.found, subjects)
        wrong = [
            f"{subject.class_index} ({subject.name!r}): {entry if isinstance(entry, str) else f'{len(entry)} prompts'}"
            for subject, entry in zip(subjects, found, strict=True)
            if isinstance(entry, str) or len(entry) < count
        ]
        if wrong:
            more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
            raise PromptError(
                f"llm.path={self.path}: {len(wrong)} of {len(subjects)} classes have no {count} prompts there: "
                f"{'; '.join(wrong[:_SHOWN])}{more}. Classes are found by name or by index, see docs/llms.md"
            )

    def load(self, device: torch.device) -> Pen:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Written | PromptError]]:
            found = _match(self.found, [task.subject for task in tasks])
            for place, (task, entry) in enumerate(zip(tasks, found, strict=True)):
                if isinstance(entry, str) or len(entry) < task.wanted:
                    said = entry if isinstance(entry, str) else f"{len(entry)} prompts of {task.wanted}"
                    yield place, PromptError(f"class {task.subject.class_index} ({task.subject.name!r}): {said}")
                else:
                    yield place, Written(entry)

        return write


def _match(found: Found, subjects: Sequence[Subject]) -> list[list[str] | str]:
    """The prompts of each class, or why it has none."""
    return [_of_index(found, subject) for subject in subjects] if found.by_index else _by_name(found.prompts, subjects)


def _of_index(found: Found, subject: Subject) -> list[str] | str:
    index, name = str(subject.class_index), sameness(subject.name)
    if name.isdecimal() and name != index and name in found.prompts:
        return "an index or a name? Give a list of lists, in the order of the classes"
    if index in found.labels and not name.startswith(sameness(found.labels[index])):
        return f"the file of index {index} is of {found.labels[index]!r}; indices count from 0"
    return found.prompts.get(index, "not there")


def _by_name(prompts: Mapping[str, list[str]], subjects: Sequence[Subject]) -> list[list[str] | str]:
    alike: dict[str, list[str]] = {}
    for name in prompts:
        alike.setdefault(sameness(name), []).append(name)
    names = [[s.name] if s.name in prompts else alike.get(sameness(s.name), []) for s in subjects]
    taken = Counter(name for options in names if len(options) == 1 for name in options)

    def of(options: Sequence[str]) -> list[str] | str:
        if not options:
            return "not there"
        if len(options) > 1:
            return f"any of {', '.join(map(repr, options))}"
        if taken[options[0]] > 1:
            return "other classes have this name too: give a list of lists, in the order of the classes"
        return prompts[options[0]]

    return [of(options) for options in names]


def _read(path: Path) -> Found:
    """Prompts by name or by index.

    Raises:
        ValueError: If there is no such file, or it is of none of the formats.
    """
    if path.is_dir():
        return _folder(path)
    if not path.is_file():
        raise ValueError(f"llm.path={path}: no such file or folder")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix == ".jsonl":
            content: Any = _by_class([json.loads(line) for line in text.splitlines() if line.strip()])
        else:
            content = json.loads(text)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"llm.path={path}: it is no JSON ({error})") from None
    except (KeyError, TypeError):
        raise ValueError(f"llm.path={path}: its lines are not those of generate.py's images.jsonl") from None
    if isinstance(content, list):
        content = {str(index): prompts for index, prompts in enumerate(content)}
    if not isinstance(content, dict):
        raise ValueError(f"llm.path={path}: it is neither an object of class to prompts nor a list of lists of prompts")
    prompts = {key: _prompts(path, key, value) for key, value in content.items()}
    numbers = {str(int(key)): key for key in prompts if key.isdecimal()}
    if len(numbers) < len(prompts):
        return Found(prompts, by_index=False, labels={})
    return Found({number: prompts[key] for number, key in numbers.items()}, by_index=True, labels={})


def _prompts(path: Path, key: str, value: Any) -> list[str]:
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise ValueError(f"llm.path={path}: {key!r} holds no list of texts")
    return [line for text in value if (line := " ".join(text.split()))]


def _by_class(lines: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """What images.jsonl was drawn from; a prompt that was drawn several times is one."""
    entries: dict[str, list[str]] = {}
    for line in lines:
        texts = entries.setdefault(str(line["class"]), [])
        if line["prompt"] not in texts:
            texts.append(line["prompt"])
    return entries


def _folder(path: Path) -> Found:
    files = sorted(path.glob("*.txt"))
    if not files:
        raise ValueError(f"llm.path={path}: a folder of NAME.txt or INDEX.txt, one prompt a line, has no such file")
    prompts = {}
    for file in files:
        try:
            prompts[file.stem] = _prompts(path, file.name, file.read_text(encoding="utf-8-sig").splitlines())
        except UnicodeDecodeError:
            raise ValueError(f"llm.path={file}: it is not in UTF-8") from None
    parts = {stem: match for stem in prompts if (match := _NUMBERED.fullmatch(stem))}
    if len(parts) < len(prompts):
        return Found(prompts, by_index=False, labels={})
    by_index: dict[str, list[str]] = {}
    for stem, match in parts.items():
        index = str(int(match.group(1)))
        if index in by_index:
            raise ValueError(f"llm.path={path}: two files are of class {index}, one of them {stem}.txt")
        by_index[index] = prompts[stem]
    labels = {str(int(match.group(1))): match.group(2) for match in parts.values() if match.group(2)}
    return Found(by_index, by_index=True, labels=labels)
