"""Who does what: things dealt out to the devices of a run."""

from lightning import Trainer


def own_share(trainer: Trainer, n: int, size: int) -> list[int]:
    """The places of `n` things that this device has: groups of `size` neighbours, dealt out in turn.

    A group is what one pass takes. So a pass has the same rows in the same places on any number of devices, and what
    comes out is the same to the last bit: a product of another height, or a row at another height of it, may round
    otherwise. It costs no time, since a pass takes as long when it is filled up.

    Args:
        trainer: Of this device.
        n: How many there are.
        size: Of a group.
    """
    every = range(0, n, size)[trainer.global_rank :: trainer.world_size]
    return [place for start in every for place in range(start, min(start + size, n))]
