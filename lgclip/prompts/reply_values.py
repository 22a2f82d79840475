"""Finds the prompts in JSON values of any structure."""

import json
import re
from collections.abc import Callable
from typing import Any

from lgclip.prompts.loose_json import Pairs, find_values

_MAX_DEPTH = 64
_MAX_EMBEDDED = 3
"""Maximum number of JSON texts inside each other, as in the arguments of a function call."""

_LISTS = ("prompts", "descriptions", "captions", "sentences")
_SINGULAR = ("prompt", "description", "caption", "sentence")
_TEXTS = ("text", "texts", "content", "value", "output", "response", "answer", "answers", "result", "results", "reply")
_NO_TEXTS = (
    "message", "detail", "code", "status", "type", "object", "id", "model", "role", "name", "title", "class", "label",
    "category", "note", "notes", "warning", "explanation", "usage", "created", "count", "index", "number", "format",
    "language", "instruction", "instructions", "request", "query", "question", "user", "system", "input", "tags",
    "keywords", "style", "source", "url", "summary", "comment",
)  # fmt: skip
"""Keys of strings that are no prompts; a list or an object under them is searched."""
_HIDDEN = ("reason", "think", "thought", "analysis", "negative", "scratch", "refusal", "error")
"""Beginnings of keys whose values are never prompts, whatever their type."""
_OTHER_ROLES = ("user", "system", "tool", "developer")
_DIGITS = re.compile(r"[\d\s_.#-]+")


class NoPromptsError(ValueError):
    """Reports a JSON reply without anything that could be a prompt; the message is the error text in the reply."""


def prompts_of(value: Any, split: Callable[[str], list[str]]) -> list[str]:
    """Returns the texts of a JSON value that can be prompts, by the names of its keys and by its structure.

    Args:
        value: A value of `find_values`.
        split: Returns the lines of a text that holds a list.

    Raises:
        NoPromptsError: If its structure is not one that holds prompts.
    """
    search = _Search(split)
    texts = search.texts_of(value, 0, 0)
    if texts:
        return texts
    if search.error is not None:
        raise NoPromptsError(search.error)
    # A list that may hold prompts and is empty is no prompt, but also no other format.
    if isinstance(value, Pairs) and not any(_rank(key) == 0 for key, _ in value):
        raise NoPromptsError(json.dumps(_plain(value), ensure_ascii=False)[:80])
    return []


def is_sentence_like(text: str) -> bool:
    """Checks whether a string can be a sentence rather than a name or a keyword; scripts may have no spaces."""
    return len(text.split()) >= 3 or (len(text) >= 4 and not text.isascii())


class _Search:
    """Searches a value for prompts, and remembers the first error text in it."""

    def __init__(self, split: Callable[[str], list[str]]) -> None:
        self.error: str | None = None
        self._split = split

    def texts_of(self, value: Any, depth: int, embedded: int) -> list[str]:
        if depth > _MAX_DEPTH:
            return []
        if isinstance(value, Pairs):
            return self._of_object(value, depth, embedded, is_item=False)
        if isinstance(value, list):
            return self._of_list(value, depth, embedded)
        if isinstance(value, str):
            return self._of_string(value, depth, embedded)
        return []

    def _of_string(self, text: str, depth: int, embedded: int) -> list[str]:
        stripped = text.strip()
        # An inner JSON text, as the arguments of a function call are. It has to begin there: brackets inside a
        # sentence are text.
        if stripped[:1] in ("{", "[") and embedded < _MAX_EMBEDDED:
            values = find_values(stripped).values
            if values:
                return [prompt for value in values for prompt in self.texts_of(value, depth + 1, embedded + 1)]
        return self._split(text)

    def _of_list(self, items: list[Any], depth: int, embedded: int) -> list[str]:
        texts: list[str] = []
        has_strings = any(isinstance(item, str) for item in items)
        for item in items:
            if isinstance(item, str):
                # Each string is one prompt, even with line breaks; a list in a single string has been seen too.
                if item.strip()[:1] in ("{", "[") or len(items) == 1:
                    texts += self._of_string(item, depth, embedded)
                else:
                    texts.append(item)
                continue
            if isinstance(item, Pairs):
                inside = self._of_object(item, depth + 1, embedded, is_item=True)
            else:
                inside = self.texts_of(item, depth + 1, embedded)
            # Next to prompts, a shorter list is something else, such as keywords.
            if has_strings:
                inside = [text for text in inside if is_sentence_like(text)]
            texts += inside
        return texts

    def _of_object(self, pairs: Pairs, depth: int, embedded: int, *, is_item: bool) -> list[str]:
        if any(key.lower() == "role" and value in _OTHER_ROLES for key, value in pairs):
            return []
        for key, value in pairs:
            name = key.lower()
            if value and name in ("error", "errors") and self.error is None:
                self.error = f"error: {_plain(value)}"
            elif value and name == "refusal" and self.error is None:
                self.error = str(_plain(value))
        # An error next to a list of prompts is a warning; without one it is the answer.
        ranks = {rank for key, _ in pairs if (rank := _rank(key)) is not None}
        if self.error is not None and 0 not in ranks:
            return []
        for rank in sorted(ranks):
            texts = self._of_rank(pairs, rank, depth, embedded, is_item=is_item)
            if texts:
                return texts
        return []

    def _of_rank(self, pairs: Pairs, rank: int, depth: int, embedded: int, *, is_item: bool) -> list[str]:
        members = [(key, value) for key, value in pairs if _rank(key) == rank]
        if rank in (1, 2):
            # "prompt1" and "prompt2" belong together; of "prompt" and "caption" the first is enough.
            stem = _preferred_stem(members)
            members = [(key, value) for key, value in members if _stem(key) == stem]
        texts: list[str] = []
        strings: list[str] = []
        for key, value in members:
            if rank == 3 and isinstance(value, str):
                # Any JSON inside is searched, but a text only if its key does not say what else it is.
                if value.strip()[:1] in ("{", "["):
                    texts += self._of_string(value, depth, embedded)
                elif key.lower() not in _NO_TEXTS and is_sentence_like(value):
                    strings.append(value)
            elif rank == 2 and isinstance(value, str) and not is_sentence_like(value):
                continue
            else:
                texts += self.texts_of(value, depth + 1, embedded)
        if texts or not strings:
            return texts
        if is_item:
            # One item of a list is one prompt, next to shorter remarks such as its point of view.
            return [max(strings, key=len)]
        return [text for string in strings for text in self._split(string)]


def _rank(key: str) -> int | None:
    """Returns the rank of a key by its likelihood to hold prompts, from 0, or None if it never does."""
    name = key.lower()
    if name.startswith(_HIDDEN) or "negative" in name:
        return None
    if name.endswith(_LISTS) and not name.startswith(("num", "count", "n_", "total")):
        return 0
    if any(word in name for word in _SINGULAR) and not name.endswith(("count", "id", "type", "number", "tokens")):
        return 1
    if name in _TEXTS or (name and _DIGITS.sub("", name) == "") or name.startswith("text"):
        return 2
    return 3


def _stem(key: str) -> str:
    return _DIGITS.sub("", key.lower())


def _preferred_stem(members: list[tuple[str, Any]]) -> str:
    stems = [_stem(key) for key, _ in members]
    for name in (*_SINGULAR, "text"):
        if name in stems:
            return name
    return stems[0]


def _plain(value: Any, depth: int = 0) -> Any:
    """Returns a value with dictionaries in place of `Pairs`, for a message."""
    if depth > 4:
        return "..."
    if isinstance(value, Pairs):
        return {key: _plain(inside, depth + 1) for key, inside in value}
    if isinstance(value, list):
        return [_plain(inside, depth + 1) for inside in value[:10]]
    return value
