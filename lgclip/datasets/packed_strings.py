"""Stores many short texts, or keys, in little memory."""

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class _Packed(Sequence[str]):
    """Implements a sequence of strings that are created on access."""

    @abstractmethod
    def _text(self, place: int) -> str:
        """Returns the string at a nonnegative index."""

    def _texts(self, places: range) -> list[str]:
        """Returns the strings at some nonnegative indices."""
        return [self._text(place) for place in places]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> "list[str]": ...
    def __getitem__(self, index: int | slice) -> "str | list[str]":
        if isinstance(index, slice):
            return self._texts(range(*index.indices(len(self))))
        return self._text(range(len(self))[index])  # from the end, and an IndexError, as in a list

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class PackedStrings(_Packed):
    """Stores immutable texts: one string object each would take four times the memory.

    A million file names of 30 letters take 34 MB.

    Args:
        texts: The texts, iterated once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        joined = bytearray()
        ends = array("Q", [0])
        for text in texts:
            joined += text.encode("utf-8", "surrogateescape")  # a file's name need not be valid UTF-8
            ends.append(len(joined))
        self._joined = bytes(joined)
        # Half the room wherever it is enough: up to 4 GiB of text.
        offsets = np.uint32 if len(joined) < 2**32 else np.uint64
        self._ends = np.array(ends, dtype=offsets)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _text(self, place: int) -> str:
        start, end = self._ends[place : place + 2].tolist()
        return self._joined[start:end].decode("utf-8", "surrogateescape")


class PackedHashes(_Packed):
    """Stores keys of 32 hexadecimal digits, as `keys.key_of` computes them, in 16 bytes each.

    Args:
        keys: The keys, iterated once.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        packed = bytearray()  # a join would first list them all
        for key in keys:
            packed += bytes.fromhex(key)
        self._bytes = bytes(packed)

    @classmethod
    def from_bytes(cls, keys: bytes) -> "PackedHashes":
        """Returns keys that are bytes already, 16 of each."""
        packed = cls(())
        packed._bytes = keys
        return packed

    def __len__(self) -> int:
        return len(self._bytes) // 16

    def _text(self, place: int) -> str:
        return self._bytes[16 * place : 16 * (place + 1)].hex()

    def _texts(self, places: range) -> list[str]:
        if places.step != 1:
            return super()._texts(places)
        # Converted at once: a run looks up the keys of all images in blocks.
        digits = self._bytes[16 * places.start : 16 * places.stop].hex()
        return [digits[start : start + 32] for start in range(0, len(digits), 32)]
