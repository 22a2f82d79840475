"""Stores files that several machines add to, as objects of lines: cost logs, and the prompts of a generator.

A line is put once, in an object that is called by the hash of its content, and no object is ever changed. So writers
need not know of each other: what an entry holds is the union of all lines.

    prompts/GENERATOR/DIGEST.jsonl     a line is one version of one class's file of prompts
    ENTRY/costs/DIGEST.jsonl           lines of the entry's cost log
"""

import json
import logging
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import content_key
from lgclip.store.object_store import digest_of_bytes
from lgclip.store.places import OTHER, cost_log_of, entry_of, is_immutable

log = logging.getLogger(__name__)


class Segments:
    """Reads and makes the objects of lines of a store.

    Args:
        root: The store's folder.
        folder: Folder with a copy of every such object that is in the object store.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self._root = root
        self.folder = folder

    def cost_lines(self, entry: str) -> dict[bytes, None]:
        """Returns the lines of an entry's cost log that are in the object store, in the order of their objects."""
        lines: dict[bytes, None] = {}
        for path in sorted((self.folder / entry / "costs").glob("*.jsonl")):
            lines |= dict.fromkeys(_lines(path))
        return lines

    def prompt_records(self, entry: str) -> dict[str, list[str]]:
        """Returns the texts of each class of a prompt generator, by the name of its file."""
        records: defaultdict[str, list[str]] = defaultdict(list)
        for path in sorted((self.folder / entry).glob("*.jsonl")):
            for line in _lines(path):
                try:
                    record = json.loads(line)
                    name, text = str(record["name"]), str(record["text"])
                except (ValueError, KeyError, TypeError, RecursionError):
                    log.warning("%s: a damaged line is left out; its prompts are written again", path)
                    continue
                if re.fullmatch(r"[0-9a-f]{32}\.json", name):
                    records[name].append(text)
        return records

    def has(self, place: str, path: Path) -> bool:
        """Checks whether all lines of a file are in the object store.

        Args:
            place: Place of a cost log, or of the prompts of a class.
            path: The file.
        """
        entry = entry_of(generator_place(place, path))
        if place.endswith(COST_LOG):
            return self.cost_lines(entry).keys() >= set(_lines(path))
        return _text(path) in self.prompt_records(entry).get(path.name, ())

    def merge_costs(self, entry: str) -> None:
        """Adds the lines of other machines to an entry's cost log."""
        lines = self.cost_lines(entry)
        if lines:
            add_lines(self._root / cost_log_of(entry), lines)

    def further_prompts(self, entry: str) -> Iterator[tuple[Path, str]]:
        """Yields the file and the text of each class of which the object store has more prompts than this machine."""
        for name, texts in self.prompt_records(entry).items():
            path = self._root / "prompts" / name
            # The most prompts count: entries grow. Of equal ones those that are here stay, since this machine may
            # have images of them; elsewhere the order of the texts decides, so that every machine takes the same.
            best = max(texts, key=lambda text: (_progress_of(text), text))
            present = _text(path)
            if present is None or _progress_of(present) < _progress_of(best):
                yield path, best

    def unsent(self, entry: str) -> Iterator[str]:
        """Yields the places of cost logs and prompts with lines that are not in the object store."""
        if entry.startswith("prompts/"):
            records = self.prompt_records(entry)
            for path in (self._root / "prompts").glob("*.json"):
                text = _text(path)
                is_sent = text is None or text in records.get(path.name, ())
                if not is_sent and f"prompts/{_generator_of(text)}" == entry:
                    yield f"prompts/{path.name}"
        place = cost_log_of(entry)
        if not self.has(place, self._root / place):
            yield place

    def new_objects(self, entries: Iterable[str], places: Sequence[str]) -> dict[str, bytes]:
        """Returns the objects with the lines that the object store lacks, by their place.

        Args:
            entries: Entries whose cost logs are looked at.
            places: Places of files, of which those with prompts are looked at.
        """
        objects: dict[str, bytes] = {}
        for entry in entries:
            if is_immutable(entry):
                continue  # a file by itself, which has no cost log
            stored = self.cost_lines(entry)
            new = [line for line in _lines(self._root / cost_log_of(entry)) if line not in stored]
            if new:
                data = b"".join(line + b"\n" for line in new)
                objects[f"{entry}/costs/{digest_of_bytes(data)}.jsonl"] = data
        by_entry: defaultdict[str, list[str]] = defaultdict(list)
        for place in places:
            generator = generator_place(place, self._root / place)
            if generator != place:
                by_entry[generator].append(place)
        for entry, files in by_entry.items():
            data = "".join(f"{record}\n" for record in self._new_records(entry, files)).encode()
            if data:
                objects[f"{entry}/{digest_of_bytes(data)}.jsonl"] = data
        return objects

    def _new_records(self, entry: str, places: Sequence[str]) -> Iterator[str]:
        stored = self.prompt_records(entry)
        for place in sorted(places):
            text = _text(self._root / place)
            name = place.rpartition("/")[2]
            if text is not None and text not in stored.get(name, ()):
                yield json.dumps({"name": name, "text": text}, ensure_ascii=False)


def add_lines(path: Path, lines: Iterable[bytes]) -> int:
    """Appends the lines that a cost log lacks, and returns their number."""
    present = set(_lines(path))
    lacking = [line for line in lines if line not in present]
    if lacking:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One call on a file opened with O_APPEND, as `cost_log.append`: a stage may write to it as well.
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(handle, b"".join(line + b"\n" for line in lacking))
        finally:
            os.close(handle)
    return len(lacking)


def is_further(path: Path, other: Path) -> bool:
    """Checks whether the prompts of a class in one file are more than those in another."""
    return _progress_of(_text(path) or "") > _progress_of(_text(other) or "")


def generator_place(place: str, path: Path) -> str:
    """Returns the folder of a prompt generator's objects for one of its files; any other place as it is."""
    parts = place.split("/")
    if parts[0] != "prompts" or len(parts) != 2 or place.endswith(COST_LOG):
        return place
    return f"prompts/{_generator_of(_text(path))}"


class _Progress(NamedTuple):
    """Orders the states of a class's prompts: more prompts, then more rounds, are later."""

    prompts: int
    turn: int


def _progress_of(text: str) -> _Progress:
    """Returns the progress of a class's prompts; that of a damaged file is below all others."""
    try:
        entry = json.loads(text)
        return _Progress(len(entry["prompts"]), int(entry.get("turn", 0)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return _Progress(-1, -1)


def _generator_of(text: str | None) -> str:
    """Returns the key of the prompt generator of a class's prompts, as its cost log has it."""
    try:
        generator = json.loads(text or "")["inputs"]["prompt_generator"]
        return content_key(generator) if isinstance(generator, dict) else OTHER
    except (ValueError, KeyError, TypeError, RecursionError):
        return OTHER


def _lines(path: Path) -> list[bytes]:
    """Returns the complete lines of a file; none if there is no such file."""
    try:
        return [line.rstrip(b"\n") for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    except FileNotFoundError:
        return []


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
