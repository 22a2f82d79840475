"""Joins the features of two encoders from those that each has stored alone, so that nothing is encoded twice."""

import json
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lgclip.encoder.base import Encoder
from lgclip.encoder.paired import join_features, join_text_features
from lgclip.runtime.regular_files import read_text
from lgclip.store.atomic import write_json
from lgclip.store.cost_log import Line, append, lines_of, rate
from lgclip.store.features import FeatureStore


def feature_store(root: Path, encoder: Encoder, source: Mapping[str, object], *, is_text: bool = False) -> FeatureStore:
    """Returns the store of the features of one source by one encoder, or by two.

    Args:
        root: The store's folder.
        encoder: The encoder.
        source: Inputs that identify the encoded items.
        is_text: Whether the items are sentences.
    """
    parts = [FeatureStore(root, part.inputs(), source) for part in encoder.parts().values()]
    if not parts:
        return FeatureStore(root, encoder.inputs(), source)
    first, second = parts
    store = PairedTextFeatureStore if is_text else PairedFeatureStore
    return store(root, encoder.inputs(), source, first, second)


class PairedFeatureStore(FeatureStore):
    """Stores the features of two encoders; those that both have stored alone are there without being computed.

    A pair has a folder of its own. What is joined from the folders of its encoders is written to it by `complete`, so
    that a run needs nothing else of the store.

    Args:
        root: The store's folder.
        encoder: Inputs that identify the pair.
        source: Inputs that identify the encoded items.
        first: Store of the first encoder for the same source.
        second: Store of the second one.
    """

    def __init__(
        self,
        root: Path,
        encoder: Mapping[str, object],
        source: Mapping[str, object],
        first: FeatureStore,
        second: FeatureStore,
    ) -> None:
        super().__init__(root, encoder, source)
        self.first = first
        self.second = second

    def missing(self, ids: Sequence[str], views: Sequence[str]) -> list[int]:
        absent = super().missing(ids, views)
        if not absent:
            return absent
        lacking = self._lacking([ids[place] for place in absent], views)
        return [absent[index] for index in sorted(lacking)]

    def take(self, ids: Sequence[str], views: Sequence[str]) -> Float[Tensor, "n s d"]:
        places: list[int] = self._absent(self._find(ids, views)).tolist()
        if places:
            # Another process may have written them.
            self.refresh()
            places = self._absent(self._find(ids, views)).tolist()
        if not places:
            return super().take(ids, views)
        joined = self._join([ids[place] for place in places], views)
        features = torch.empty(len(ids), len(views), joined.shape[-1])
        features[places] = joined
        others = sorted(set(range(len(ids))) - set(places))
        if others:
            features[others] = super().take([ids[place] for place in others], views)
        return features

    def complete(self, ids: Sequence[str], views: Sequence[str], batch_size: int) -> int:
        """Writes the features that both encoders have stored, and returns the number of items.

        Args:
            ids: Ids of the items.
            views: Names of their views.
            batch_size: Number of items whose features are written as one file.
        """
        names = list(dict.fromkeys(ids[place] for place in super().missing(ids, views)))
        lacking = self._lacking(names, views)
        joinable = [name for index, name in enumerate(names) if index not in lacking]
        if not joinable:
            return 0
        self._complete_towers()
        discarded = dict(zip(joinable, self._images_discarded(joinable, views), strict=True))
        for is_discarded, group in groupby(joinable, discarded.__getitem__):
            members = list(group)
            for start in range(0, len(members), batch_size):
                batch = members[start : start + batch_size]
                self.add(batch, views, self._join(batch, views), images_discarded=is_discarded)
        self._add_cost(len(joinable) * len(views))
        return len(joinable)

    def _sources(self) -> list[FeatureStore]:
        """Returns the stores whose features are joined."""
        return [self.first, self.second]

    def _lacking(self, ids: Sequence[str], views: Sequence[str]) -> set[int]:
        """Returns the positions of items that cannot be joined."""
        lacking: set[int] = set()
        for store in self._sources():
            lacking.update(store.missing(ids, views))
        return lacking

    def _join(self, ids: Sequence[str], views: Sequence[str]) -> Float[Tensor, "n s d"]:
        return join_features(self.first.take(ids, views), self.second.take(ids, views))

    def _images_discarded(self, ids: Sequence[str], views: Sequence[str]) -> list[bool]:
        kinds = [store.images_discarded(ids, views) for store in self._sources()]
        return [any(flags) for flags in zip(*kinds, strict=True)]

    def _complete_towers(self) -> None:
        """Writes the cost of a pass as the sum of both encoders', unless it was measured."""
        measured = [_read(store.towers) for store in (self.first, self.second)]
        if self.towers.exists() or not all(measured):
            return
        first, second = measured
        image = {name: first["image"][name] + second["image"][name] for name in ("parameters", "flops", "seconds")}
        image["device"] = ", ".join(dict.fromkeys([first["image"]["device"], second["image"]["device"]]))
        self.towers.parent.mkdir(parents=True, exist_ok=True)
        width = first["width"] + second["width"]
        write_json(self.towers, {"width": width, "text": first["text"], "image": image})

    def _add_cost(self, count: int) -> None:
        """Adds the encoders' cost of these features to the log; nothing where it is unknown."""
        seconds = 0.0
        lines: list[Line] = []
        for store in self._sources():
            of_store = lines_of(store.cost_log)
            seconds_per_item = rate(of_store)
            if seconds_per_item is None:
                return
            seconds += count * seconds_per_item
            lines += of_store
        devices = ", ".join(dict.fromkeys(line.device for line in lines))
        append(
            self.cost_log, Line(count, lines[-1].unit, round(seconds, 6), devices, max(line.devices for line in lines))
        )


class PairedTextFeatureStore(PairedFeatureStore):
    """Stores the features of sentences of two encoders: those of the first, and zeros."""

    def _sources(self) -> list[FeatureStore]:
        return [self.first]

    def _lacking(self, ids: Sequence[str], views: Sequence[str]) -> set[int]:
        if self.second.measured_width() is None:
            return set(range(len(ids)))
        return super()._lacking(ids, views)

    def _join(self, ids: Sequence[str], views: Sequence[str]) -> Float[Tensor, "n s d"]:
        width = self.second.measured_width()
        assert width is not None
        return join_text_features(self.first.take(ids, views), width)


def _read(path: Path) -> dict[str, Any]:
    """Returns the measured cost of an encoder; empty if it was not measured, or the file is damaged."""
    try:
        towers = json.loads(read_text(path))
        image = towers["image"]
        costs = {"width": towers["width"] + 0, "text": towers["text"], "image": image}
        is_complete = all(image[name] + 0 >= 0 for name in ("parameters", "flops", "seconds"))
        return costs if is_complete and isinstance(image["device"], str) else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}
