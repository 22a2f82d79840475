"""What the values of a recipe may be, and one error that names the value which is not."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args


@dataclass(frozen=True)
class Limits:
    """Limits of some fields of a recipe, besides their types.

    Attributes:
        group: Where the fields are in a config.
        words: Fields that are one of a few words.
        numbers: Fields that are numbers: what they must fulfil, in code and in words.
    """

    group: str
    words: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[Callable[[float], bool], str]]

    def check(self, recipe: Any) -> None:
        """Compares a recipe's fields with them.

        Args:
            recipe: A dataclass with these fields.

        Raises:
            ValueError: If one does not fit.
        """
        kinds = {field.name: field.type for field in fields(recipe)}
        for name, (holds, said) in self.numbers.items():
            kind, value = get_args(kinds[name]) or (kinds[name],), getattr(recipe, name)
            if not (type(None) in kind if value is None else _is_number(value, kind) and holds(value)):
                whole = "" if float in kind else "a whole number, "
                raise ValueError(f"{self.group}.{name}={value}: it must be {whole}{said}")
        for name, words in self.words.items():
            if (value := getattr(recipe, name)) not in words:
                raise ValueError(f"{self.group}.{name}={value}: choose {', '.join(words)}")


def _is_number(value: object, kind: tuple[Any, ...]) -> bool:
    """Whether a value is a finite number, and a whole one where no other will do; True and False are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (float in kind or isinstance(value, int)) and math.isfinite(value)
