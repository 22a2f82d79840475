"""Keeps the weights of an encoder in memory from one call to the next."""

from threading import Lock
from typing import NamedTuple

import torch

from lgclip.encoder.base import Encoder, Towers


class LoadedTowers(NamedTuple):
    """Holds an encoder that is in memory.

    Attributes:
        encoder: The encoder, with the precision of its device.
        towers: Its models.
        device: Where they compute.
    """

    encoder: Encoder
    towers: Towers
    device: torch.device


class LoadedEncoder:
    """Loads an encoder when it is first used, and keeps it as long as the same encoder is asked for.

    Copies of a classifier share it, so that ten sessions hold one model. Threads may call it at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._encoder: Encoder | None = None
        self._device: torch.device | None = None
        self._towers: Towers | None = None

    def __reduce__(self) -> tuple[type["LoadedEncoder"], tuple[()]]:
        # A pickled or deeply copied classifier loads the weights again: they may be on a device that is not there.
        return LoadedEncoder, ()

    def towers(self, encoder: Encoder, device: torch.device) -> Towers:
        """Returns the towers of an encoder on a device.

        Args:
            encoder: The encoder, as `Encoder.on` gives it for the device.
            device: Where it computes.

        Raises:
            ValueError: If its weights cannot be had.
        """
        with self._lock:
            if self._towers is None or self._encoder != encoder or self._device != device:
                # Before the next model is loaded: the two are never in memory together.
                self._towers = None
                self._towers = encoder.load(device)
                self._encoder, self._device = encoder, device
            return self._towers
