"""Stores unit features, one safetensors file (a chunk) per batch, each written atomically."""

import hashlib
import itertools
import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from lgclip.runtime.regular_files import read_bytes, read_text
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store import remote
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.checksums import CHECKSUM, checksum_of
from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import FileStamp, content_key, file_stamp
from lgclip.store.root import StoreError

log = logging.getLogger(__name__)

NAME = np.dtype("S16")
"""Type of an id in memory: a million images take 24 MB, as strings they would take 200."""

IMAGES_DISCARDED = "images_discarded"
"""Entry of a chunk's metadata: its images were never stored."""

BLOCK = 16384
"""Items that are looked up at once, which bounds the temporary memory."""


class BadFeatureError(StoreError):
    """Reports features that cannot be used.

    Args:
        ids: Ids of the items they belong to.
    """

    def __init__(self, ids: Sequence[str]) -> None:
        super().__init__(f"the encoder gave features that are not of unit length for {list(ids[:5])}")
        self.ids = list(ids)


class FeatureStore:
    """Stores unit features of one source (a data set, a diffuser or sentences) by one encoder.

    Args:
        root: The store's folder.
        encoder: Inputs that identify the encoder.
        source: Inputs that identify the encoded items.
    """

    def __init__(self, root: Path, encoder: Mapping[str, object], source: Mapping[str, object]) -> None:
        self._inputs = {"encoder": dict(encoder), "source": dict(source)}
        self.key = f"{content_key(encoder)}/{content_key(source)}"
        self._folder = root / "features" / self.key
        self.cost_log = self._folder / COST_LOG
        # The width is measured once an encoder, so its file lies one folder above those of the sources.
        self.towers = self._folder.parent / "towers.json"
        self._chunks: list[Path] = []
        self._are_discarded: list[bool] = []
        self._seen: set[Path] = set()
        # One index for each set of views: chunks of a data set that gained views later hold only the new ones.
        self._indices: dict[tuple[str, ...], _Index] = {}

    def __getstate__(self) -> dict[str, object]:
        # Another process reads the folder itself, if it has to: the index of a million items takes 24 MB.
        return {**vars(self), "_chunks": [], "_are_discarded": [], "_seen": set(), "_indices": {}}

    def refresh(self) -> None:
        """Reads what other processes have added."""
        remote.fetch(self._folder)
        remote.fetch_file(self.towers)
        fresh: dict[tuple[str, ...], list[tuple[int, np.ndarray]]] = {}
        width = _width_in(self.towers)
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in self._seen:
                continue
            chunk = _chunk_header(path, file_stamp(path))
            # Damaged chunks are not marked as seen: the same batch, encoded again, gets the same name.
            if chunk is None:
                continue
            # The header passes every other check when a file was copied from another encoder's folder.
            if width is not None and chunk.width != width:
                log.warning("%s holds features of width %d, not %d; they are computed again", path, chunk.width, width)
                continue
            fresh.setdefault(chunk.views, []).append((len(self._chunks), chunk.names))
            self._chunks.append(path)
            self._are_discarded.append(chunk.images_discarded)
            self._seen.add(path)
        for views, added in fresh.items():
            self._indices[views] = _Index.of(added, self._indices.get(views))

    def missing(self, ids: Sequence[str], views: Sequence[str]) -> list[int]:
        """Returns the positions in `ids` of items that lack at least one of the views."""
        self.refresh()
        absent: list[int] = []
        for start in range(0, len(ids), BLOCK):
            absent += (start + self._absent(self._find(ids[start : start + BLOCK], views))).tolist()
        return absent

    def _absent(self, places: Int[np.ndarray, "n s 3"]) -> Int[np.ndarray, " m"]:
        return np.flatnonzero((places[..., 0] < 0).any(axis=1))

    def _find(self, ids: Sequence[str], views: Sequence[str]) -> Int[np.ndarray, "n s 3"]:
        """Returns chunk, row and column of each item's views; -1 where there is none."""
        places = np.full((len(ids), len(views), 3), -1, dtype=np.int32)
        names = _names(ids)
        for stored_views, index in self._indices.items():
            columns = [stored_views.index(view) if view in stored_views else -1 for view in views]
            if max(columns, default=-1) < 0:
                continue
            entries = index.find(names)
            for s, column in enumerate(columns):
                if column < 0:
                    continue
                # A view may lie in several chunks; the first index that has it counts, so that a later one with
                # other views of the same items never replaces it.
                new = (entries >= 0) & (places[:, s, 0] < 0)
                entry = entries[new]
                places[new, s] = np.column_stack([index.chunks[entry], index.rows[entry], entry * 0 + column])
        return places

    def add(
        self,
        ids: Sequence[str],
        views: Sequence[str],
        features: Float[torch.Tensor, "n s d"],
        *,
        images_discarded: bool = False,
    ) -> None:
        """Stores one batch.

        Args:
            ids: Ids of the items.
            views: Names of their views.
            features: Their features.
            images_discarded: Whether the images were never stored. The chunk says so: otherwise features without
                images are those of deleted ones, which `lgclip store gc` deletes.

        Raises:
            BadFeatureError: If a feature is not finite or not of unit length: a NaN prototype would
                silently win every comparison.
        """
        good = _unit(features).all(dim=1)
        if not good.all():
            raise BadFeatureError([item for item, is_good in zip(ids, good.tolist(), strict=True) if not is_good])
        self._folder.mkdir(parents=True, exist_ok=True)
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)
        header = {"schema": STORE_SCHEMA, "ids": list(ids), "views": list(views)}
        # Named by what it holds and not by a counter: devices and processes need no lock to find a free name.
        with atomic_write(self._folder / f"{content_key(header)}.safetensors") as temporary:
            tensor = features.detach().to("cpu", torch.float32).contiguous()
            # The checksum is no part of the name: features that are computed again replace a damaged file.
            about = {**header, CHECKSUM: checksum_of({"features": tensor})}
            if images_discarded:
                about[IMAGES_DISCARDED] = True
            # One text, since safetensors writes several in any order, and equal features are to be equal files.
            save_file({"features": tensor}, temporary, metadata={"lgclip": json.dumps(about)})

    def take(self, ids: Sequence[str], views: Sequence[str]) -> Float[torch.Tensor, "n s d"]:
        """Returns the features of items, all of which must be stored.

        Raises:
            StoreError: If one is missing or damaged.
        """
        if not ids or not views:
            raise StoreError("no features were asked for")
        places = self._find(ids, views)
        # Listing the folder is slow on a network disk, so it is done only when something is missing.
        if (places < 0).any():
            self.refresh()
            places = self._find(ids, views)
            missing = self._absent(places)
            if missing.size:
                raise StoreError(
                    f"{missing.size} of {len(ids)} features are not in the store, first {ids[int(missing[0])]!r}"
                )
        # Sorted by chunk, so that each file is read once however its items are ordered in `ids`. NumPy copies rows ten
        # times as fast as torch.
        chunks, rows, columns = places.reshape(-1, 3).T
        order = chunks.argsort(kind="stable")
        starts = np.flatnonzero(np.diff(chunks[order], prepend=-1))
        out: np.ndarray | None = None
        for start, end in itertools.pairwise([*starts.tolist(), len(order)]):
            selected = order[start:end]
            path = self._chunks[int(chunks[selected[0]])]
            features = _chunk_features(path, file_stamp(path)).numpy()
            if out is None:
                # The store does not know the width before the first chunk is read.
                out = np.empty((len(order), features.shape[-1]), np.float32)
            out[selected] = features[rows[selected], columns[selected]]
        assert out is not None
        return torch.from_numpy(out).view(len(ids), len(views), -1)

    def images_discarded(self, ids: Sequence[str], views: Sequence[str]) -> list[bool]:
        """Returns of each stored item whether its image was never stored; `missing` must have been asked before."""
        chunks: list[list[int]] = self._find(ids, views)[..., 0].tolist()
        return [any(self._are_discarded[chunk] for chunk in of_item) for of_item in chunks]

    def measured_width(self) -> int | None:
        """Returns the feature dimension of the encoder as it was measured; None if it was not."""
        return _width_in(self.towers)

    def width(self, item: str, view: str) -> int:
        """Returns the feature dimension, read from a stored feature."""
        return self.take([item], [view]).shape[-1]


class _Index(NamedTuple):
    """Indexes items that were stored with the same views, sorted by name; the last of equal names counts."""

    names: np.ndarray
    chunks: Int[np.ndarray, " n"]
    rows: Int[np.ndarray, " n"]

    @classmethod
    def of(cls, added: Sequence[tuple[int, np.ndarray]], before: "_Index | None") -> "_Index":
        """Builds an index from the names of some chunks and an existing index."""
        names: list[np.ndarray] = []
        chunks: list[np.ndarray] = []
        rows: list[np.ndarray] = []
        if before is not None:
            names.append(before.names)
            chunks.append(before.chunks)
            rows.append(before.rows)
        for chunk, chunk_names in added:
            names.append(chunk_names)
            chunks.append(np.full(len(chunk_names), chunk, np.int32))
            rows.append(np.arange(len(chunk_names), dtype=np.int32))
        all_names = np.concatenate(names)
        # Stable, because equal names must stay in the order of their chunks: `find` takes the last of them.
        order = all_names.argsort(kind="stable")
        return cls(all_names[order], np.concatenate(chunks)[order], np.concatenate(rows)[order])

    def find(self, names: np.ndarray) -> Int[np.ndarray, " m"]:
        """Returns the position of each name; -1 where it is missing."""
        # "right" is after the last equal name. A name before all others gives -1, which wraps round to the
        # last entry, and the comparison then rejects it.
        positions = self.names.searchsorted(names, side="right") - 1
        return np.where(self.names[positions] == names, positions, -1)


def _names(ids: Sequence[str]) -> np.ndarray:
    """Returns ids as they are compared: content keys as their 16 bytes, others as a hash of that size."""
    # Nearly always all are content keys, which are converted at once: a loop would take most of a run's start.
    if set(map(len, ids)) == {2 * NAME.itemsize}:
        content = _content_of("".join(ids))
        if content is not None:
            return np.frombuffer(content, NAME)
    return np.fromiter(map(_name, ids), NAME)


def _name(item: str) -> bytes:
    content = _content_of(item)
    if content is not None and len(content) == NAME.itemsize:
        return content
    return hashlib.blake2b(item.encode(), digest_size=NAME.itemsize).digest()


def _content_of(digits: str) -> bytes | None:
    """Returns the bytes of lower-case hexadecimal digits; None for any other text."""
    try:
        content = bytes.fromhex(digits)
    except ValueError:
        return None
    # `fromhex` also takes capitals and spaces, and so would mix up ids that differ.
    return content if content.hex() == digits else None


def _unit(features: Float[torch.Tensor, "n s d"]) -> torch.Tensor:
    """Checks whether each feature is of unit length: False for NaN too."""
    return (features.norm(dim=-1) - 1).abs() < 1e-3


def _width_in(path: Path) -> int | None:
    """Reads the measured dimension of an encoder's features from a file; None if there is none."""
    try:
        return json.loads(read_text(path)).get("width")
    except (OSError, ValueError, AttributeError):  # it is a measurement, and made again
        return None


class _Chunk(NamedTuple):
    """Holds the header of a chunk."""

    names: np.ndarray
    views: tuple[str, ...]
    width: int
    images_discarded: bool


@lru_cache(maxsize=256)  # a sweep's jobs read the same; of a large set their own index is enough
def _chunk_header(path: Path, stamp: FileStamp) -> _Chunk | None:
    """Returns the header of a chunk; None, with a warning, for a damaged or outdated one, which is then recomputed."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["lgclip"])
            shape = file.get_slice("features").get_shape()
            # Once per process and file: a flipped bit of a feature would change a prediction without any other sign.
            is_intact = checksum_of({"features": file.get_tensor("features")}) == header.pop(CHECKSUM)
        images_discarded = bool(header.pop(IMAGES_DISCARDED, False))
        chunk = _Chunk(_names(header["ids"]), tuple(header["views"]), shape[2], images_discarded)
        if header["schema"] != STORE_SCHEMA:
            log.warning(
                "%s is of schema %s, not %d; its features are computed again", path, header["schema"], STORE_SCHEMA
            )
            return None
        if shape[:2] != [len(chunk.names), len(chunk.views)] or not chunk.names.size:
            raise ValueError(f"{shape} features for {len(chunk.names)} items")
        if not is_intact or content_key(header) != path.stem:
            raise ValueError("it is not what was written")
    except (SafetensorError, OSError, KeyError, TypeError, AttributeError, IndexError, ValueError):
        log.warning("%s is damaged; its features are computed again", path)
        return None
    return chunk


@lru_cache(maxsize=16)
def _chunk_features(path: Path, stamp: FileStamp) -> Float[torch.Tensor, "n s d"]:
    # Read, not mapped: a mapped file that is cut short kills the process.
    content = read_bytes(path)
    features = load(content)["features"]
    if checksum_of({"features": features}) != _checksum_in(content) or not _unit(features).all():
        raise StoreError(
            f"{path} was damaged while the run used it; the same command computes its features again, and `lgclip "
            "store verify` lists every damaged file"
        )
    return features


def _checksum_in(content: bytes) -> str | None:
    """Returns the stored checksum of a chunk, from the JSON header at its start."""
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    return json.loads(metadata["lgclip"]).get(CHECKSUM)
