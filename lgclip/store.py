"""Content-addressed stores of prompts, images and features; every entry is whole or absent. Here: prompts.

    STORE/prompts/KEY.json             the prompts of one class
    STORE/captions/KEY/....json        captions of real images by one captioner, a file a batch
    STORE/images/KEY/ab/abcd....png    images by one diffuser, what each was made from inside it
    STORE/features/KEY/SOURCE/....safetensors   unit features by one encoder, a file a batch

A key stands for every input (see `identity`). `inputs.json` beside the entries spells it out, and
`costs.jsonl` what they cost when they were made (see `ledger`): figures, which no key depends on.
"""

import json
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from lgclip.identity import key_of
from lgclip.ledger import LEDGER
from lgclip.whole import write_json

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


def _is_whole(entry: PromptEntry) -> bool:
    """Whether everything in an entry is of its kind, and its texts can be written."""
    texts = [*entry.prompts, *entry.fallback, entry.failure] if _is_lists(entry.prompts, entry.fallback) else [None]
    if not all(isinstance(text, str) for text in texts):
        return False
    "".join(map(str, texts)).encode()  # half of a pair of surrogates is no text: UnicodeEncodeError, a ValueError
    return type(entry.turn) is int and entry.turn >= 0


def _is_lists(*values: object) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


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
            found = PromptEntry(**{name: entry[name] for name in ("prompts", *(_OPTIONAL & entry.keys()))})
            if _is_whole(found) and key_of(entry["inputs"]) == path.stem:
                return found
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            pass
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
