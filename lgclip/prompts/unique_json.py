"""Reads JSON whose objects must not name anything twice."""

import json
import unicodedata
from collections.abc import Iterable
from typing import Any


class RepeatedNameError(ValueError):
    """Reports a name that occurs more than once.

    Args:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is there twice")
        self.name = name


def parse_unique(text: str) -> Any:
    """Parses JSON; `json` itself would silently take the last of several equal keys.

    Raises:
        RepeatedNameError: If an object has a key twice.
        json.JSONDecodeError: If it is not JSON.
    """
    return json.loads(text, object_pairs_hook=_unique_object)


def check_unique(names: Iterable[str]) -> None:
    """Checks that no two names look the same: different spaces or Unicode compositions do not make another name.

    Raises:
        RepeatedNameError: If a name occurs twice.
    """
    seen: set[str] = set()
    for name in names:
        plain = " ".join(unicodedata.normalize("NFC", name).split())
        if plain in seen:
            raise RepeatedNameError(name)
        seen.add(plain)


def _unique_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    check_unique(key for key, _ in pairs)
    return dict(pairs)
