"""Caches the weights of an encoder in memory between calls."""

from collections.abc import Mapping
from threading import Lock
from typing import NamedTuple

import torch

from lgclip.encoder.base import Encoder, Towers, Transform
from lgclip.encoder.scales import Scales
from lgclip.encoder.views import SharedViews, transforms_of


class LoadedTowers(NamedTuple):
    """Holds an encoder that is in memory.

    Attributes:
        encoder: The encoder, with the precision of its device.
        towers: Its models.
        device: Where they compute.
        transforms: Its preprocessing, see `transforms_of`.
    """

    encoder: Encoder
    towers: Towers
    device: torch.device
    transforms: Mapping[bool, Transform]

    def views(self, scales: Scales) -> SharedViews:
        """Returns the function that computes the views of an image."""
        return SharedViews(self.encoder, scales, self.transforms)


class LoadedEncoder:
    """Loads an encoder at its first use, and keeps it in memory until another encoder is requested.

    From then on none of its files is read, so that they may go. Copies of a classifier share it: ten sessions hold one
    model. Threads may call it at once.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._encoder: Encoder | None = None
        self._loaded: LoadedTowers | None = None

    def __reduce__(self) -> tuple[type["LoadedEncoder"], tuple[()]]:
        # A pickled or deeply copied classifier loads the weights again: they may be on a device that is not there.
        return LoadedEncoder, ()

    def load(self, encoder: Encoder, device: torch.device) -> LoadedTowers:
        """Returns an encoder in memory.

        Args:
            encoder: The encoder.
            device: Where it computes.

        Raises:
            ValueError: If its weights cannot be had.
        """
        with self._lock:
            if self._loaded is None or self._encoder != encoder or self._loaded.device != device:
                # Before the next model is loaded: the two are never in memory together.
                self._loaded = None
                used = encoder.on(device)
                self._loaded = LoadedTowers(used, used.load(device), device, transforms_of(used))
                self._encoder = encoder
            return self._loaded
