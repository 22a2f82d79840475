"""Validates the values of a recipe, with an error that names the invalid one."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, get_args


@dataclass(frozen=True)
class Validation:
    """Stores constraints on some fields of a recipe, besides their types.

    Attributes:
        group: Config group of the fields.
        words: Fields with a fixed set of allowed words.
        numbers: Numeric fields: their constraint, in code and in words.
    """

    group: str
    words: Mapping[str, tuple[str, ...]]
    numbers: Mapping[str, tuple[Callable[[float], bool], str]]

    def check(self, recipe: Any) -> None:
        """Checks a recipe's fields against the constraints.

        Args:
            recipe: A dataclass with these fields.

        Raises:
            ValueError: If a value is invalid.
        """
        kinds = {field.name: field.type for field in fields(recipe)}
        for name, (is_allowed, requirement) in self.numbers.items():
            # Of `int | None` both members, of a plain `int` itself.
            kind = get_args(kinds[name]) or (kinds[name],)
            value = getattr(recipe, name)
            if not _is_valid(value, kind, is_allowed):
                noun = "" if float in kind else "an integer, "
                raise ValueError(f"{self.group}.{name}={value}: it must be {noun}{requirement}")
        for name, words in self.words.items():
            if (value := getattr(recipe, name)) not in words:
                raise ValueError(f"{self.group}.{name}={value}: choose {', '.join(words)}")


def _is_valid(value: Any, kind: tuple[Any, ...], is_allowed: Callable[[float], bool]) -> bool:
    if value is None:
        return type(None) in kind
    # The limit is checked last: NaN is neither below nor above anything, and would pass many a limit.
    return _is_number(value, kind) and is_allowed(value)


def _is_number(value: object, kind: tuple[Any, ...]) -> bool:
    """Checks whether a value is a finite number, and an integer where one is required; booleans do not count."""
    # YAML reads `yes` and `on` as true, which Python would count as 1.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return (float in kind or isinstance(value, int)) and math.isfinite(value)
