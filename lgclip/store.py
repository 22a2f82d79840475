"""Content-addressed stores of prompts, images and features; every entry is whole or absent.

    STORE/prompts/KEY.json             the prompts of one class
    STORE/images/KEY/ab/abcd....png    images by one diffuser, what each was made from inside it
    STORE/features/KEY/SOURCE/....safetensors   unit features by one encoder, a file a batch

A key stands for every input (see `identity`). `inputs.json` beside the entries spells it out, and
`costs.jsonl` what they cost when they were made (see `ledger`): figures, which no key depends on.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file

from lgclip.identity import SCHEMA, key_of
from lgclip.ledger import LEDGER
from lgclip.whole import write_json, write_whole

log = logging.getLogger(__name__)


class StoreError(ValueError):
    """The store cannot be used as it is; the message says what to do."""


def root_of(root: str | os.PathLike[str] | None) -> Path:
    """The store's folder, whether or not it is there.

    Args:
        root: The folder; None stands for `$LGCLIP_HOME`, or else the user's cache folder.
    """
    if root is None:
        cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        root = os.environ.get("LGCLIP_HOME") or Path(cache) / "lgclip"
    return Path(root).expanduser().absolute()


def open_root(root: str | os.PathLike[str] | None) -> Path:
    """The store's folder, made if it is not there.

    Args:
        root: As of `root_of`.

    Raises:
        StoreError: If nothing can be written there.
    """
    folder = root_of(root)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"store {folder}: {error.strerror}; name a folder that can be written, paths.store=DIR or LGCLIP_HOME=DIR"
        ) from error
    return folder


class PromptEntry(NamedTuple):
    """What is stored of one class.

    Attributes:
        prompts: In the order in which they were written.
        turn: Rounds that a language model was asked in.
        fallback: Template sentences that stand in for prompts that it did not give.
        failure: Why there are too few prompts, empty if there are enough.
    """

    prompts: list[str]
    turn: int = 0
    fallback: Sequence[str] = ()
    failure: str = ""


_OPTIONAL = {"turn", "fallback", "failure"}


class PromptStore:
    """The prompts of a class, in the order in which they were written."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "prompts"

    def read(self, inputs: Mapping[str, object]) -> PromptEntry:
        """What was made from `inputs`; a damaged entry is as good as none."""
        path = self._folder / f"{key_of(inputs)}.json"
        if not path.exists():
            return PromptEntry([])
        try:
            entry = json.loads(path.read_text(encoding="utf-8"))
            return PromptEntry(**{name: entry[name] for name in ("prompts", *(_OPTIONAL & entry.keys()))})
        except (json.JSONDecodeError, UnicodeDecodeError, AttributeError, KeyError, TypeError):
            log.warning("%s is damaged and is written again", path)
            return PromptEntry([])

    def ledger(self, writer: Mapping[str, object]) -> Path:
        """What the prompts of one writer cost: the entries lie in one folder, whoever wrote them."""
        return self._folder / f"{key_of(writer)}.{LEDGER}"

    def get(self, inputs: Mapping[str, object]) -> list[str]:
        """The prompts that were made from `inputs`, none if there are none yet."""
        return self.read(inputs).prompts

    def put(
        self,
        inputs: Mapping[str, object],
        prompts: Sequence[str],
        *,
        turn: int = 0,
        fallback: Sequence[str] = (),
        failure: str = "",
    ) -> None:
        """Replaces what was made from `inputs`; the rest is as in `PromptEntry`."""
        more = {"turn": turn, "fallback": list(fallback), "failure": failure}
        entry = {"inputs": inputs, "prompts": list(prompts), **{name: value for name, value in more.items() if value}}
        write_json(self._folder / f"{key_of(inputs)}.json", entry)


class ImageStore:
    """The images of one diffuser; `ab/abcd....fault.json` stands in place of one that could not be used.

    Args:
        root: The store's folder.
        inputs: What the diffuser is made of.
    """

    def __init__(self, root: Path, inputs: Mapping[str, object]) -> None:
        self._inputs = dict(inputs)
        self.key = key_of(inputs)
        self._folder = root / "images" / self.key
        self.ledger = self._folder / LEDGER

    def path(self, image_id: str) -> Path:
        """Where an image lies, or will lie."""
        return self._folder / image_id[:2] / f"{image_id}.png"

    def fault(self, image_id: str) -> str | None:
        """What was wrong with an image that could not be used; None if nothing is known of it."""
        try:
            return str(json.loads(self._marker(image_id).read_text(encoding="utf-8"))["fault"])
        except FileNotFoundError:
            return None
        except (json.JSONDecodeError, KeyError, TypeError):
            log.warning("%s is damaged; the image is drawn again", self._marker(image_id))
            return None

    def put_fault(self, image_id: str, fault: str, made_from: Mapping[str, object]) -> None:
        """Writes a marker in place of an image that could not be used; remove it to have it drawn again."""
        self._spell_out()
        write_json(self._marker(image_id), {"fault": fault, **made_from})

    def _marker(self, image_id: str) -> Path:
        return self.path(image_id).with_suffix(".fault.json")

    def _spell_out(self) -> None:
        if not (self._folder / "inputs.json").exists():
            write_json(self._folder / "inputs.json", self._inputs)

    def put(self, image_id: str, pixels: UInt8[np.ndarray, "h w 3"], made_from: Mapping[str, object]) -> None:
        """Writes one image as PNG, with what it was made from in its text."""
        self._spell_out()
        about = PngInfo()
        about.add_itxt("lgclip", json.dumps(made_from, ensure_ascii=False))
        path = self.path(image_id)
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path) as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG", pnginfo=about)


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
