"""Who does what: things dealt out to the devices of a run."""

from typing import Protocol


class Rank(Protocol):
    """Which device this is, and of how many, as Lightning's trainer says it."""

    @property
    def global_rank(self) -> int: ...
    @property
    def world_size(self) -> int: ...


def own_share(trainer: Rank, n: int, size: int) -> list[int]:
    """The places of `n` things that this device has: groups of `size` neighbours, dealt out in turn.

    A group is what one pass takes, or some passes. So a pass has the same rows in the same places on any number of
    devices, and what comes out is the same to the last bit: a product of another height, or a row at another height
    of it, may round otherwise. It costs no time where a pass is filled up anyway.

    Args:
        trainer: Of this device.
        n: How many there are.
        size: Of a group.
    """
    every = range(0, n, size)[trainer.global_rank :: trainer.world_size]
    return [place for start in every for place in range(start, min(start + size, n))]
