"""Unit features, a safetensors file a batch; every one is whole or absent."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from lgclip.identity import SCHEMA, key_of
from lgclip.ledger import LEDGER
from lgclip.store import StoreError
from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)


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
        self._place: dict[tuple[str, str], tuple[int, int, int]] = {}

    def refresh(self) -> None:
        """Reads what other processes have added."""
        known = set(self._chunks)
        for path in sorted(self._folder.glob("*.safetensors")):
            if path in known:
                continue
            header = _chunk_header(path, path.stat().st_mtime_ns)
            if header is None:
                continue
            self._chunks.append(path)
            for row, thing in enumerate(header["ids"]):
                for column, view in enumerate(header["views"]):
                    self._place[thing, view] = (len(self._chunks) - 1, row, column)

    def missing(self, ids: Sequence[str], views: Sequence[str]) -> list[int]:
        """Places in `ids` of the things that lack at least one of the views."""
        self.refresh()
        return [at for at, thing in enumerate(ids) if any((thing, view) not in self._place for view in views)]

    def add(self, ids: Sequence[str], views: Sequence[str], features: Float[torch.Tensor, "n s d"]) -> None:
        """Stores one batch.

        Raises:
            StoreError: If a feature is not finite or not of unit length: a NaN prototype would
                silently win every comparison.
        """
        norms = features.norm(dim=-1)
        good = ((norms - 1).abs() < 1e-3).all(dim=1)  # False for NaN too
        if not good.all():
            bad = [thing for thing, fine in zip(ids, good.tolist(), strict=True) if not fine]
            raise StoreError(f"the encoder gave features that are not of unit length for {bad[:5]}")
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
            StoreError: If one is not.
        """
        if not ids or not views:
            raise StoreError("no features were asked for")
        gone = self.missing(ids, views)
        if gone:
            raise StoreError(f"{len(gone)} of {len(ids)} features are not in the store, first {ids[gone[0]]!r}")
        places = torch.tensor([[self._place[thing, view] for view in views] for thing in ids])
        out: torch.Tensor | None = None
        for chunk in places[..., 0].unique().tolist():
            path = self._chunks[chunk]
            features = _chunk_features(path, path.stat().st_mtime_ns)
            if out is None:
                out = torch.empty(len(ids), len(views), features.shape[-1])
            here = places[..., 0] == chunk
            out[here] = features[places[..., 1][here], places[..., 2][here]]
        assert out is not None
        return out


@lru_cache(maxsize=4096)
def _chunk_header(path: Path, changed: int) -> dict[str, Any] | None:
    """Ids and views of a chunk; None, with a warning, for a damaged one, which is then made again."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["lgclip"])
            shape = file.get_slice("features").get_shape()
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError):
        log.warning("%s is damaged; what it held is encoded again", path)
        return None
    whole = header.get("schema") == SCHEMA and shape[:2] == [len(header["ids"]), len(header["views"])]
    return header if whole else None


@lru_cache(maxsize=256)
def _chunk_features(path: Path, changed: int) -> Float[torch.Tensor, "n s d"]:
    # Read, not mapped: a mapped file that is cut short kills the process.
    return load(path.read_bytes())["features"]
