"""Unit features, a safetensors file (a chunk) a batch; every one is whole or absent."""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from lgclip.identity import SCHEMA, key_of
from lgclip.ledger import LEDGER
from lgclip.store import StoreError
from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)

NAME = np.dtype("S16")
"""What stands for an id in memory: a million images take 24 MB, as strings they would take 200."""


BLOCK = 16384
"""Things that are looked for at once: what that takes goes again."""


class BadFeatureError(StoreError):
    """Features that cannot be used.

    Args:
        things: Ids of what they are of.
    """

    def __init__(self, things: Sequence[str]) -> None:
        super().__init__(f"the encoder gave features that are not of unit length for {list(things[:5])}")
        self.things = list(things)


class FeatureStore:
    """Unit features of one source (a data set, a diffuser or sentences) by one encoder.

    Args:
        root: The store's folder.
        encoder: What the encoder is made of.
        source: What the encoded things are.
    """

    def __init__(self, root: Path, encoder: Mapping[str, object], source: Mapping[str, object]) -> None:
        self._inputs = {"encoder": dict(encoder), "source": dict(source)}
        self.key = f"{key_of(encoder)}/{key_of(source)}"
        self._folder = root / "features" / self.key
        self.ledger, self.towers = self._folder / LEDGER, self._folder.parent / "towers.json"
        self._chunks: list[Path] = []
        self._seen: set[Path] = set()
        self._indices: dict[tuple[str, ...], _Index] = {}

    def refresh(self) -> None:
        """Reads what other processes have added."""
        fresh: dict[tuple[str, ...], list[tuple[int, np.ndarray]]] = {}
        width = _width_in(self.towers)
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in self._seen:
                continue
            chunk = _chunk_header(path, path.stat().st_mtime_ns)
            if chunk is None:
                continue
            if width is not None and chunk.width != width:
                log.warning("%s holds features of width %d, not %d; they are encoded again", path, chunk.width, width)
                continue
            fresh.setdefault(chunk.views, []).append((len(self._chunks), chunk.names))
            self._chunks.append(path)
            self._seen.add(path)
        for views, added in fresh.items():
            self._indices[views] = _Index.of(added, self._indices.get(views))

    def missing(self, ids: Sequence[str], views: Sequence[str]) -> list[int]:
        """Places in `ids` of the things that lack at least one of the views."""
        self.refresh()
        absent: list[int] = []
        for start in range(0, len(ids), BLOCK):
            absent += (start + self._absent(self._find(ids[start : start + BLOCK], views))).tolist()
        return absent

    def _absent(self, places: Int[np.ndarray, "n s 3"]) -> Int[np.ndarray, " m"]:
        return np.flatnonzero((places[..., 0] < 0).any(axis=1))

    def _find(self, ids: Sequence[str], views: Sequence[str]) -> Int[np.ndarray, "n s 3"]:
        """Chunk, row and column of each thing's views; -1 where there is none."""
        places = np.full((len(ids), len(views), 3), -1, dtype=np.int32)
        names = _names(ids)
        for held, index in self._indices.items():
            columns = [held.index(view) if view in held else -1 for view in views]
            if max(columns, default=-1) < 0:
                continue
            at = index.find(names)
            for s, column in enumerate(columns):
                if column >= 0:
                    new = (at >= 0) & (places[:, s, 0] < 0)
                    places[new, s] = np.column_stack([index.chunks[at[new]], index.rows[at[new]], at[new] * 0 + column])
        return places

    def add(self, ids: Sequence[str], views: Sequence[str], features: Float[torch.Tensor, "n s d"]) -> None:
        """Stores one batch.

        Raises:
            BadFeatureError: If a feature is not finite or not of unit length: a NaN prototype would
                silently win every comparison.
        """
        good = _unit(features).all(dim=1)
        if not good.all():
            raise BadFeatureError([thing for thing, fine in zip(ids, good.tolist(), strict=True) if not fine])
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)
        header = {"schema": SCHEMA, "ids": list(ids), "views": list(views)}
        with write_whole(self._folder / f"{key_of(header)}.safetensors") as temporary:
            tensor = features.detach().to("cpu", torch.float32).contiguous()
            save_file({"features": tensor}, temporary, metadata={"lgclip": json.dumps(header)})

    def take(self, ids: Sequence[str], views: Sequence[str]) -> Float[torch.Tensor, "n s d"]:
        """Features of things that are all there.

        Raises:
            StoreError: If one is not, or is damaged.
        """
        if not ids or not views:
            raise StoreError("no features were asked for")
        places = self._find(ids, views)
        if (places < 0).any():
            self.refresh()
            places = self._find(ids, views)
            gone = self._absent(places)
            if gone.size:
                raise StoreError(
                    f"{gone.size} of {len(ids)} features are not in the store, first {ids[int(gone[0])]!r}"
                )
        found = torch.from_numpy(places)
        out: torch.Tensor | None = None
        for chunk in np.unique(places[..., 0]).tolist():
            path = self._chunks[chunk]
            features = _chunk_features(path, path.stat().st_mtime_ns)
            if out is None:
                out = torch.empty(len(ids), len(views), features.shape[-1])
            here = found[..., 0] == chunk
            out[here] = features[found[..., 1][here], found[..., 2][here]]
        assert out is not None
        return out

    def width(self, thing: str, view: str) -> int:
        """Width of the features, as one of them has it."""
        return self.take([thing], [view]).shape[-1]


class _Index(NamedTuple):
    """Where the things lie that were stored with the same views, sorted by name; the last of equals counts."""

    names: np.ndarray
    chunks: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, added: Sequence[tuple[int, np.ndarray]], before: "_Index | None") -> "_Index":
        """An index of some chunks' names, and of what was there before."""
        names = np.concatenate([*([before.names] if before else []), *(own for _, own in added)])
        chunks = [*([before.chunks] if before else []), *(np.full(len(own), at, np.int32) for at, own in added)]
        rows = [*([before.rows] if before else []), *(np.arange(len(own), dtype=np.int32) for _, own in added)]
        order = names.argsort(kind="stable")
        return cls(names[order], np.concatenate(chunks)[order], np.concatenate(rows)[order])

    def find(self, names: np.ndarray) -> Int[np.ndarray, " m"]:
        """The place of each name; -1 where it is not there."""
        at = self.names.searchsorted(names, side="right") - 1
        return np.where(self.names[at] == names, at, -1)


def _names(ids: Iterable[str]) -> np.ndarray:
    return np.fromiter((hashlib.blake2b(name.encode(), digest_size=NAME.itemsize).digest() for name in ids), NAME)


def _unit(features: Float[torch.Tensor, "n s d"]) -> torch.Tensor:
    """Whether each feature is of unit length: False for NaN too."""
    return (features.norm(dim=-1) - 1).abs() < 1e-3


def _width_in(path: Path) -> int | None:
    """The width of an encoder's features, where it was measured."""
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("width")
    except (OSError, ValueError, AttributeError):  # it is a measurement, and made again
        return None


class _Chunk(NamedTuple):
    """What a chunk's header says."""

    names: np.ndarray
    views: tuple[str, ...]
    width: int


@lru_cache(maxsize=256)  # a sweep's jobs read the same; of a large set their own index is enough
def _chunk_header(path: Path, changed: int) -> _Chunk | None:
    """What a chunk holds; None, with a warning, for a damaged or older one, which is then made again."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["lgclip"])
            shape = file.get_slice("features").get_shape()
        chunk = _Chunk(_names(header["ids"]), tuple(header["views"]), shape[2])
        if header["schema"] != SCHEMA:
            log.warning("%s is of schema %s, not %d; what it held is encoded again", path, header["schema"], SCHEMA)
            return None
        if shape[:2] != [len(chunk.names), len(chunk.views)] or not chunk.names.size:
            raise ValueError(f"{shape} features for {len(chunk.names)} things")
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, IndexError, ValueError):
        log.warning("%s is damaged; what it held is encoded again", path)
        return None
    return chunk


@lru_cache(maxsize=16)
def _chunk_features(path: Path, changed: int) -> Float[torch.Tensor, "n s d"]:
    # Read, not mapped: a mapped file that is cut short kills the process.
    features = load(path.read_bytes())["features"]
    if not _unit(features).all():
        raise StoreError(
            f"{path} is damaged: it holds features that are not of unit length; `lgclip store verify --repair` moves "
            "it away, and the same command encodes again what it held"
        )
    return features
