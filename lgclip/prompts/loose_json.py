"""Reads JSON values out of a text: strictly where it is JSON, else as tolerantly as truncated or invalid JSON needs."""

import json
import re
from typing import Any, NamedTuple

MAX_DEPTH = 64
"""Maximum nesting of a value that is not strict JSON."""

_START = re.compile(r"\{\s*[\"'“{}]|\[\s*[\"'“{\[\]]")
_AFTER_STRING = re.compile(r"\s*(.?)", re.DOTALL)
_STOPS = {'"': re.compile(r'[\\"]'), "'": re.compile(r"[\\']"), "“": re.compile(r"[\\”]")}
_SPECIAL = re.compile(r"[\s,:\[\]{}\"'“]")
_NAMED = re.compile(r"\\(u[0-9a-fA-F]{4}|.)", re.DOTALL)


class Pairs(list[tuple[str, Any]]):
    """Holds the members of an object in order, so that a key that occurs twice loses no value."""


class Values(NamedTuple):
    """Holds the values in a text.

    Attributes:
        values: The values: `Pairs`, lists, texts, numbers, None.
        is_strict: Whether all of them are JSON.
        is_truncated: Whether the text ends inside the last one.
    """

    values: list[Any]
    is_strict: bool
    is_truncated: bool


def find_values(text: str) -> Values:
    """Returns the objects and lists in a text, whatever stands around them."""
    decoder = json.JSONDecoder(strict=False, object_pairs_hook=Pairs)
    values: list[Any] = []
    is_strict = True
    is_truncated = False
    position = 0
    while start := _START.search(text, position):
        if is_strict:
            try:
                # `strict=False` allows line breaks inside strings, which models write unescaped.
                value, position = decoder.raw_decode(text, start.start())
                values.append(value)
                continue
            except (ValueError, RecursionError):  # a number of thousands of digits is no JSON either
                # All that follows is read tolerantly: the text of each error would search the text from its beginning.
                is_strict = False
        loose = _LooseReader(text, start.start())
        values.append(loose.read())
        position = loose.position
        is_truncated = not loose.is_closed
    return Values(values, is_strict, is_truncated)


class _Container(NamedTuple):
    is_object: bool
    items: list[Any]
    pairs: Pairs


class _LooseReader:
    """Reads one value with quotes of any kind, unescaped quotes, missing or surplus commas, or no end.

    `json` reads nothing of such a value and `ast.literal_eval` only a complete Python one; `json5` and `demjson3` also
    reject a value without its end, which is the usual fault of a reply.

    Args:
        text: The text.
        position: Where the value starts; then where it ends.
    """

    def __init__(self, text: str, position: int) -> None:
        self.position = position
        self.is_closed = False
        self._text = text
        self._stack: list[_Container] = []
        # A key that waits for its value, and a string that may turn out to be a key.
        self._key: str | None = None
        self._string: str | None = None

    def read(self) -> Any:
        """Returns the value; strings without their end are left out."""
        length = len(self._text)
        while self.position < length:
            letter = self._text[self.position]
            if letter in "{[":
                if len(self._stack) == MAX_DEPTH:
                    self.position = length
                    break
                self._open(letter)
            elif letter in "}]":
                value = self._close()
                if not self._stack:
                    self.is_closed = True
                    return value
            elif letter in _STOPS:
                self._take_string(letter)
            else:
                self._take_other(letter)
        value = None
        while self._stack:
            value = self._close()
        self.position = length
        return value

    def _open(self, letter: str) -> None:
        self._add_string()
        self._stack.append(_Container(letter == "{", [], Pairs()))
        # The key of an object inside waits in its place until the object is complete.
        if len(self._stack) > 1:
            self._stack[-2].items.append(self._key)
        self._key = None
        self.position += 1

    def _close(self) -> Any:
        """Ends the innermost container and adds it to the one around it."""
        self._add_string()
        self._key = None
        container = self._stack.pop()
        value: Any = container.items
        # An object of texts without keys is a Python set, or a list in the wrong brackets.
        if container.is_object and (container.pairs or not container.items):
            value = container.pairs
        if self._stack:
            self._key = self._stack[-1].items.pop()
            self._add(value)
        self.position += 1
        return value

    def _add(self, value: Any) -> None:
        container = self._stack[-1]
        if self._key is not None and container.is_object:
            container.pairs.append((self._key, value))
        else:
            container.items.append(value)
        self._key = None

    def _add_string(self) -> None:
        """Adds the last string to its container, once it is clear that it is not a key."""
        if self._string is not None and self._stack:
            self._add(self._string)
        self._string = None

    def _take_string(self, quote: str) -> None:
        self._add_string()
        string, self.position = _scan_string(self._text, self.position)
        # The end of the text inside a string: half of a sentence.
        if string is not None:
            self._string = string

    def _take_other(self, letter: str) -> None:
        if letter == ":":
            if self._string is not None and self._stack[-1].is_object:
                self._key = self._string
            self._string = None
            self.position += 1
        elif letter == "," or letter.isspace():
            if letter == ",":
                self._add_string()
                self._key = None
            self.position += 1
        else:
            # A number, true, None, or a key without quotes.
            match = _SPECIAL.search(self._text, self.position + 1)
            end = len(self._text)
            if match is not None:
                end = match.start()
            word = self._text[self.position : end]
            self._add_string()
            if self._stack[-1].is_object and self._text[end : end + 1] == ":":
                self._string = word
            self.position = end


def _scan_string(text: str, start: int) -> tuple[str | None, int]:
    """Returns the string that starts at a quotation mark, None without its end, and where it ends."""
    stops = _STOPS[text[start]]
    position = start + 1
    while stop := stops.search(text, position):
        if stop[0] == "\\":
            position = stop.end() + 1
        elif _ends_string(text, stop.end()):
            return _unescaped(text[start + 1 : stop.start()]), stop.end()
        else:
            position = stop.end()
    return None, len(text)


def _ends_string(text: str, position: int) -> bool:
    """Checks whether a quotation mark before `position` is the end of a string, and not a part of its text."""
    after = _AFTER_STRING.match(text, position)
    if after is None:
        return True
    letter = after[1]
    if letter in ",]}:#/":
        return True
    # A missing comma, as in `"a" "b"`; but `"a "b" c"` has a quoted word inside, and `"the "b""` ends with one.
    if letter not in _STOPS:
        return False
    if after.end() - 1 == position:
        return text[position + 1 : position + 2] not in ("", ",", "]", "}")
    return text[after.end() : after.end() + 1].isalnum()


def _unescaped(string: str) -> str:
    if "\\" not in string:
        return string
    try:
        return json.loads(f'"{string}"', strict=False)
    except json.JSONDecodeError:
        return _NAMED.sub(_letter, string)


def _letter(escape: re.Match[str]) -> str:
    """Returns the letter of an escape sequence, also of one that JSON does not have."""
    code = escape[1]
    if len(code) == 5:
        return chr(int(code[1:], 16))
    return {"n": "\n", "t": " ", "r": "\n", "u": ""}.get(code, code)
