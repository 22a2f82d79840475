"""Stores the prompts of a class, in the order of generation."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from lgclip.runtime.regular_files import read_text
from lgclip.store import remote
from lgclip.store.atomic import write_json
from lgclip.store.checksums import is_intact, with_checksum
from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import content_key
from lgclip.store.places import OTHER

log = logging.getLogger(__name__)


class PromptEntry(NamedTuple):
    """Holds the stored state of one class.

    Attributes:
        prompts: Prompts in the order of generation.
        turn: Number of rounds in which the language model was queried.
        fallback: Template sentences that replace prompts that it did not provide.
        failure: Reason why there are too few prompts; empty if there are enough.
    """

    prompts: list[str]
    turn: int = 0
    fallback: Sequence[str] = ()
    failure: str = ""


_OPTIONAL = {"turn", "fallback", "failure"}


def _is_valid(entry: PromptEntry) -> bool:
    """Checks whether all fields of an entry have the right types, and its texts can be encoded."""
    if not _is_lists(entry.prompts, entry.fallback):
        return False
    texts = [*entry.prompts, *entry.fallback, entry.failure]
    if not all(isinstance(text, str) for text in texts):
        return False
    # JSON may hold half of a surrogate pair, which no text encoder and no file accepts. Encoding raises
    # UnicodeEncodeError, a ValueError, which the reader takes for damage like any other.
    "".join(map(str, texts)).encode()
    # `isinstance` would accept true and false, which are integers in Python.
    return type(entry.turn) is int and entry.turn >= 0


def _is_lists(*values: object) -> bool:
    return all(isinstance(value, list | tuple) for value in values)


class PromptStore:
    """Stores the prompts of a class, in the order of generation."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "prompts"

    def read(self, inputs: Mapping[str, object]) -> PromptEntry:
        """Returns the entry for `inputs`; a damaged entry counts as missing."""
        generator = inputs.get("prompt_generator")
        # The objects of a store with a URL hold the prompts of many classes of one generator.
        if remote.is_remote(self._folder):
            remote.fetch(self._folder / (content_key(generator) if isinstance(generator, Mapping) else OTHER))
        path = self._folder / f"{content_key(inputs)}.json"
        if not path.exists():
            return PromptEntry([])
        try:
            entry = json.loads(read_text(path))
            stored = PromptEntry(**{name: entry[name] for name in ("prompts", *(_OPTIONAL & entry.keys()))})
            # The name of the file is the key of its inputs: one that was renamed or edited belongs to no class.
            if is_intact(entry) and _is_valid(stored) and content_key(entry["inputs"]) == path.stem:
                return stored
        except (ValueError, RecursionError, AttributeError, KeyError, TypeError):
            pass  # RecursionError: deeply nested JSON, as random bytes may be
        log.warning("%s is damaged and is written again", path)
        return PromptEntry([])

    def cost_log(self, prompt_generator: Mapping[str, object]) -> Path:
        """Returns the cost log of one prompt generator: the entries of all generators share one folder."""
        return self._folder / f"{content_key(prompt_generator)}.{COST_LOG}"

    def get(self, inputs: Mapping[str, object]) -> list[str]:
        """Returns the prompts for `inputs`, empty if there are none yet."""
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
        """Replaces the entry for `inputs`; the other arguments are the fields of `PromptEntry`."""
        entry: dict[str, object] = {"inputs": inputs, "prompts": list(prompts)}
        optional = {"turn": turn, "fallback": list(fallback), "failure": failure}
        # Empty ones are left out, so that the file of a template prompt holds nothing about language models.
        entry |= {name: value for name, value in optional.items() if value}
        write_json(self._folder / f"{content_key(inputs)}.json", with_checksum(entry))
