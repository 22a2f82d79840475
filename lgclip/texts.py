"""Many short texts, or keys, in little memory."""

from abc import abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class _Packed(Sequence[str]):
    """A list of strings that are made when they are asked for."""

    @abstractmethod
    def _text(self, place: int) -> str:
        """The string at a place, which is not negative."""

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> "list[str]": ...
    def __getitem__(self, at: int | slice) -> "str | list[str]":
        if isinstance(at, slice):
            return [self._text(place) for place in range(*at.indices(len(self)))]
        return self._text(range(len(self))[at])  # from the end, and an IndexError, as of a list

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Texts(_Packed):
    """Texts that stay as they are: a string object each would take four times their room.

    A million file names of 30 letters take 34 MB.

    Args:
        texts: The texts, gone through once.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        joined, ends = bytearray(), array("Q", [0])
        for text in texts:
            joined += text.encode("utf-8", "surrogateescape")  # a file's name need not be valid UTF-8
            ends.append(len(joined))
        self._joined = bytes(joined)
        self._ends = np.array(ends, dtype=np.uint32 if len(joined) < 2**32 else np.uint64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _text(self, place: int) -> str:
        start, end = self._ends[place : place + 2].tolist()
        return self._joined[start:end].decode("utf-8", "surrogateescape")


class Keys(_Packed):
    """Keys of 32 hexadecimal digits, as `identity.key_of` makes them, 16 bytes each.

    Args:
        keys: The keys, gone through once.
    """

    def __init__(self, keys: Iterable[str]) -> None:
        held = bytearray()  # a join would first list them all
        for key in keys:
            held += bytes.fromhex(key)
        self._bytes = bytes(held)

    def __len__(self) -> int:
        return len(self._bytes) // 16

    def _text(self, place: int) -> str:
        return self._bytes[16 * place : 16 * (place + 1)].hex()
