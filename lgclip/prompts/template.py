"""Generates prompts from fixed sentences, without a language model."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import torch

from lgclip.prompts.base import GeneratedPrompts, PromptGenerator, PromptWriter, Task
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.types import TargetClass


def sentences(templates: Sequence[str], target_class: TargetClass, count: int) -> list[str]:
    """Returns `count` sentences; if there are fewer templates, they repeat in turn.

    Args:
        templates: Sentences; `{}` is the class name, `[, {context}]` is optional.
        target_class: The class.
        count: Number of sentences.
    """
    texts = [fill(template.replace("{}", "{name}"), target_class) for template in templates]
    return [texts[i % len(texts)] for i in range(count)]


@dataclass(frozen=True)
class Templates(PromptGenerator):
    """Fills the class name into fixed sentences; if more prompts are needed, they repeat in turn.

    Args:
        templates: Sentences; `{}` or `{name}` is the class name. `[, {context}]` is the type of the class if the
            data set provides it, and is dropped otherwise.
        file: Text file with one sentence per line, used instead of `templates`; empty lines are skipped.

    Raises:
        ValueError: If there is no sentence, one without the class name, or the file cannot be read.
    """

    key_name: ClassVar[str] = "Templates"
    prompts_from: ClassVar[str] = "class_names"

    templates: Sequence[str] = ("a photo of a {}.",)
    # The sentences are in the key, not the file that they come from.
    file: str | None = field(default=None, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        origin = "llm.templates"
        if self.file is not None:
            origin = f"llm.file={self.file}"
            object.__setattr__(self, "templates", _read(Path(self.file).expanduser()))
        if not self.templates:
            raise ValueError(f"{origin}: it has no sentence; give at least one with {{}} for the class name")
        for template in self.templates:
            if "{}" not in template and "{name}" not in template:
                raise ValueError(f"{origin}: {template!r} has no {{}} for the class name")

    @property
    def items_per_call(self) -> int:
        return 1024  # nothing to wait for

    def load(self, device: torch.device) -> PromptWriter:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts]]:
            for place, task in enumerate(tasks):
                yield place, GeneratedPrompts(sentences(self.templates, task.target_class, task.requested))

        return write


def _read(path: Path) -> tuple[str, ...]:
    """Returns the sentences of a text file."""
    try:
        lines = read_text(path, encoding="utf-8-sig").splitlines()
    except FileNotFoundError as error:
        raise ValueError(f"llm.file={path}: no such file; it needs one sentence per line") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"llm.file={path}: it is not text in UTF-8 ({error})") from error
    return tuple(line.strip() for line in lines if line.strip())


_GAP = re.compile(r"\{(name|count|context|have|caption)\}")


_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


def _optional(brackets: re.Match[str], *, keep: bool) -> str:
    """Returns text in brackets without them, or nothing, if it is about the context; other brackets stay."""
    if "{context}" not in brackets[1]:
        return brackets[0]
    if keep:
        return brackets[1]
    return ""


def fill(text: str, target_class: TargetClass, count: int = 0, have: str = "", caption: str | None = None) -> str:
    """Fills `{name}`, `{count}`, `{context}` and `{have}` into `text` in one pass; `{caption}` if there is one.

    Text in square brackets around `{context}` is dropped if it is empty: `a {name}[, {context}]` is
    `a robin, a type of bird` or `a robin`. Placeholders inside a name stay unchanged.
    """
    context = target_class.context.strip()
    text = _BRACKETS.sub(lambda brackets: _optional(brackets, keep=bool(context)), text)
    if not context:
        text = re.sub(r" ?\{context\}", "", text)
    filled = {"name": target_class.name, "count": str(count), "context": context, "have": have}
    if caption is not None:
        filled["caption"] = caption
    # Not `str.format`, which stops at every other brace, and not one replacement after the other, which would fill
    # in gaps that stand in a class name or a caption.
    return _GAP.sub(lambda gap: filled.get(gap.group(1), gap.group()), text)
