"""What finished runs need of a store, and what of it may go."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lgclip.allowed import build
from lgclip.diffuser.base import image_id
from lgclip.diffuser.folder import ImageFolder
from lgclip.identity import SCHEMA, key_of
from lgclip.inspection import caption_names, chunk_names, read_inputs, shard_names
from lgclip.inventory import COMPANIONS, ENTRIES, HOUR, Item, Kind, amount, existing, forget, walk
from lgclip.reopen import beside, reopen
from lgclip.runs import Run, RunError, find_runs
from lgclip.shard_index import list_shards

DAY = 24 * HOUR
"""In nanoseconds: what is younger may be of a run that is at work."""

ELSEWHERE = key_of({"diffuser": {"part": ImageFolder.__name__}, "schema": SCHEMA})
"""Key of images that lie in a folder of the user's own."""


@dataclass
class Used:
    """What some runs need of a store.

    Attributes:
        places: Files of prompts, images and what was learnt, there or not.
        images: Keys of the folders of images.
        drawn: Ids of images, there or not.
        captions: Ids of real images by the key of their captions.
        features: Ids and views by the folders of features.
    """

    places: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    drawn: set[str] = field(default_factory=set)
    captions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    features: defaultdict[str, list[tuple[set[str], set[str]]]] = field(default_factory=lambda: defaultdict(list))

    def needs(self, item: Item) -> bool:
        """Whether an entry is needed. What holds many things is if one of them is; features too if unreadable."""
        match item.kind:
            case Kind.FINDINGS:
                return item.parts[1] in self.images
            case Kind.CAPTIONS:
                wanted_of = self.captions.get(item.parts[1])
                return wanted_of is not None and not wanted_of.isdisjoint(caption_names(item.path))
            case Kind.SHARD:
                return not self.drawn.isdisjoint(shard_names(item.path)) if item.parts[1] in self.images else False
            case Kind.FEATURES:
                wanted = self.features.get("/".join(item.parts[1:3]))
                held = chunk_names(item.path) if wanted else ([], [])
                return held is None or any(
                    not ids.isdisjoint(held[0]) and not views.isdisjoint(held[1]) for ids, views in wanted or ()
                )
            case _:
                return item.place in self.places


def used_by(places: Sequence[Path], root: Path, *, whole: bool = False) -> Used:
    """What the finished runs in or below some folders need of a store.

    Args:
        places: Folders of runs, or of sweeps.
        root: The store's folder; it counts, not the one that the runs' configs name.
        whole: Whether everything must be there.

    Raises:
        ValueError: If a folder holds no finished run, if what a run worked with is not there any more or is
            another than it was, or if something is to be there and is not.
    """
    used = Used()
    for run in find_runs(places):
        _add(used, run, root, whole)
    return used


def _add(used: Used, run: Run, root: Path, whole: bool) -> None:
    config: Any = run.result["config"]
    here = {**config, "paths": {**config["paths"], "store": str(root)}}
    run = replace(run, result={**run.result, "config": here})
    opened = reopen(run)
    missing = 0
    for name, stream in opened.streams.items():
        if stream.store.key != run.result["store"].get(name):
            raise RunError(
                f"{run.folder}: its {name} features lie under {run.result['store'].get(name)}, and its config leads to "
                f"{stream.store.key}: its encoder, diffuser or data set is not what it was; run it again"
            )
    for stream in (*opened.streams.values(), *beside(run, opened)):
        used.features[stream.store.key].append((set(stream.ids), set(stream.views)))
        missing += len(stream.missing()) if whole else 0
    used.images.add(key_of(opened.dataset.source()))  # what is known of test images that cannot be read
    cfg: Any = OmegaConf.create(here)
    if student := run.result.get("student"):
        used.places |= {f"students/{student['key']}/{name}" for name in ("model.safetensors", "student.json")}
    if learner := run.result.get("learner"):
        files = ("text.safetensors", "visual.safetensors", "learner.json")
        used.places |= {f"prompts_learned/{learner['key']}/{name}" for name in files}
    lora = Path(cfg.diffuser.get("lora") or "")
    if lora.parent.name == "adapters":
        used.places |= {f"adapters/{lora.name}/{name}" for name in ("pytorch_lora_weights.safetensors", "lora.json")}
    if opened.captions is not None:
        used.captions[opened.captions.store.key] |= set(opened.captions.images.ids)
        used.images.add(key_of(opened.captions.images.source()))  # what is known of training images that cannot be read
    elif run.result["llm"]:
        writer = build(cfg.llm, _convert_="all")
        keys = [key_of(writer.inputs(subject, cfg.seed)) for subject in opened.dataset.subjects]
        used.places |= {f"prompts/{key}.json" for key in keys}
    if opened.drawing is not None:
        drawing, tries = opened.drawing, cfg.diffuser.get("retries", 0) + 1
        used.images.add(drawing.key)
        for prompt in (*drawing.prompts, *(gone.prompt for gone in drawing.missing)):
            for name in (image_id(drawing.key, prompt, cfg.seed, attempt) for attempt in range(tries)):
                used.drawn.add(name)
                stem = f"images/{drawing.key}/{name[:2]}/{name}"
                used.places |= {f"{stem}.png", f"{stem}.fault.json"}
        gone = [place for place in drawing.paths if isinstance(place, Path) and not place.is_file()]
        missing += len(gone) if whole else 0
    if missing:
        raise RunError(f"{run.folder}: {missing} things that it needs are not in {root}; run it again first")


def with_companions(entries: Iterable[Item], companions: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """What is told of some entries: inputs, ledgers, towers of their folders.

    Args:
        entries: Prompts, images, features.
        companions: Files beside entries.

    Returns:
        Those of `companions` that tell of `entries`, and the others.
    """
    told = set[str]()
    for item in entries:
        told.add(item.place)
        if item.kind == Kind.PROMPTS:
            writer = read_inputs(item.path).get("writer")
            told.add(key_of(writer) if isinstance(writer, dict) else "")
        else:
            told.add("/".join(item.parts[:2]))
            told.add("/".join(item.parts[:3]))
    near: list[Item] = []
    apart: list[Item] = []
    for item in companions:
        of = item.parts[1].partition(".")[0] if item.parts[0] == "prompts" else item.place.rpartition("/")[0]
        if item.kind == Kind.INDEX:
            of = item.place.replace(".safetensors", ".tar")
        (near if of in told else apart).append(item)
    return near, apart


def collect(
    root: Path,
    *,
    keep: Sequence[Path] = (),
    older_than: float | None = None,
    yes: bool = False,
    now: int | None = None,
) -> Iterator[str]:
    """Lists what of a store may go, and takes it away if that is said.

    Always: temporary files older than an hour, features of drawn images that are all gone, and what tells of
    entries that are gone. With `keep` or `older_than` also every entry that no named run needs. But for temporary
    files nothing goes that has changed in the last day.

    Args:
        root: The store's folder.
        keep: Folders of finished runs, or of sweeps, whose entries stay.
        older_than: Days; only what has not changed for longer goes. None for one day.
        yes: Whether to delete. Nothing is written without it.
        now: Time, in nanoseconds since 1970; None for the clock's.

    Yields:
        A line a folder and reason, and the sum.

    Raises:
        ValueError: If there is no store, if a run cannot be read, or if `older_than` is below 0.
    """
    if older_than is not None and not older_than >= 0:
        raise ValueError(f"--older-than {older_than}: it must be at least 0 days")
    used = used_by(keep, existing(root)) if keep else Used()
    why = "needed by no named run" if keep else f"older than {older_than:g} days" if older_than is not None else None
    at = time.time_ns() if now is None else now
    before = at - (DAY if older_than is None else int(older_than * DAY))
    plan = _plan(root, used, why, before, at)
    all_gone: list[Item] = []
    for (folder, reason), items in sorted(plan.items()):
        gone = _delete(items) if yes else items
        all_gone += gone
        yield f"{folder}: {amount(len(gone), sum(item.size for item in gone))}, {reason}"
    if yes:
        forget(root, {item.place for item in all_gone})
        for folder in sorted({item.path.parent for item in all_gone if item.kind == Kind.SHARD}):
            list_shards(folder)
    said = "deleted" if yes else "would go; --yes deletes them" if all_gone else "would go"
    yield f"{root}: {amount(len(all_gone), sum(item.size for item in all_gone))} {said}"


def _plan(root: Path, used: Used, why: str | None, before: int, now: int) -> dict[tuple[str, str], list[Item]]:
    """What goes, by folder and reason."""
    plan: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    kept: list[Item] = []
    companions: list[Item] = []
    for item in walk(root):
        if item.kind == Kind.LEFTOVER:
            # An import works in a folder of its own, for as long as it takes.
            if now - item.came > (DAY if item.place.startswith(".import.") else HOUR):
                plan[_folder(item), "left by an interrupted run"].append(item)
        elif item.kind in COMPANIONS:
            companions.append(item)
        elif item.kind in ENTRIES:
            if why is None or item.changed >= before or used.needs(item):
                kept.append(item)
            else:
                plan[_folder(item), why].append(item)
    drawn = {item.path.stem for item in kept if item.kind == Kind.IMAGE}
    drawn.update(*(shard_names(item.path) for item in kept if item.kind == Kind.SHARD))
    orphans = [item for item in kept if item.changed < before and _is_orphan(item, drawn) and not used.needs(item)]
    for item in orphans:
        plan[_folder(item), "features of images that are gone"].append(item)
    gone = {item.place for item in orphans}
    for item in with_companions((item for item in kept if item.place not in gone), companions)[1]:
        if item.changed < before:
            plan[_folder(item), "nothing is left that it tells of"].append(item)
    return plan


def _folder(item: Item) -> str:
    """The folder of a store that an item counts for."""
    depth = {"captions": 2, "images": 2, "features": 3, "students": 2, "adapters": 2, "prompts_learned": 2}.get(
        item.parts[0], 1
    )
    return "/".join(item.parts[:depth][: len(item.parts) - 1]) or "."


def _is_orphan(item: Item, drawn: set[str]) -> bool:
    """Whether a chunk holds features of drawn images alone, and all of them are gone."""
    if item.kind != Kind.FEATURES:
        return False
    source = read_inputs(item.path.parent / "inputs.json").get("source")
    if not isinstance(source, dict) or source.get("source") != "synthetic" or source.get("images") == ELSEWHERE:
        return False
    names = chunk_names(item.path)
    return names is not None and drawn.isdisjoint(names[0])


def _delete(items: Sequence[Item]) -> list[Item]:
    """Deletes files that are still what they were; folders stay, since a run may be about to write there."""
    gone = []
    for item in items:
        try:
            if item.path.lstat().st_mtime_ns == item.changed:
                item.path.unlink()
                gone.append(item)
        except FileNotFoundError:
            continue
    return gone
