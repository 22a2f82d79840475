"""Collects garbage: determines what finished runs need of a store, and deletes the rest."""

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lgclip.classifier.places import RECORD
from lgclip.cli.store.entry_checks import caption_names, chunk_names, has_discarded_images, read_inputs, shard_names
from lgclip.cli.store.inventory import COMPANIONS, ENTRIES, HOUR, Item, Kind, amount, existing, forget, walk
from lgclip.diffuser.base import SyntheticImages, image_id
from lgclip.diffuser.image_folder import ImageFolder
from lgclip.reporting.finished_runs import lapsed_records
from lgclip.reporting.restore import additional_streams, restore_run
from lgclip.reporting.run_folder import Run, RunError, find_runs
from lgclip.runtime.instantiate import build
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.image_codec import FORMATS
from lgclip.store.keys import content_key
from lgclip.store.root import StoreError
from lgclip.store.shard_index import list_shards

DAY = 24 * HOUR
"""In nanoseconds: anything younger may belong to an active run."""

# The images there are not the store's, so that none of them is found in it does not make their features orphans.
ELSEWHERE = content_key({"diffuser": {"part": ImageFolder.key_name}, "schema": STORE_SCHEMA})
"""Key of images in a user's own folder."""


@dataclass
class Used:
    """Holds the entries of a store that some runs need.

    Attributes:
        places: Files of prompts, images and trained artifacts, whether or not they exist.
        images: Keys of the folders of images.
        generated: Ids of images, whether or not they exist.
        captions: Ids of real images by the key of their captions.
        features: Ids and views by the folders of features.
    """

    places: set[str] = field(default_factory=set)
    images: set[str] = field(default_factory=set)
    generated: set[str] = field(default_factory=set)
    captions: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    features: defaultdict[str, list[tuple[set[str], set[str]]]] = field(default_factory=lambda: defaultdict(list))

    def joined(self, other: "Used") -> "Used":
        """Returns the union of both."""
        captions = defaultdict(set, {key: set(ids) for key, ids in self.captions.items()})
        for key, ids in other.captions.items():
            captions[key] |= ids
        features = defaultdict(list, {key: list(pairs) for key, pairs in self.features.items()})
        for key, pairs in other.features.items():
            features[key] += pairs
        places = self.places | other.places
        return Used(places, self.images | other.images, self.generated | other.generated, captions, features)

    def needs(self, item: Item) -> bool:
        """Checks whether an entry is needed: whether one of its items is. Unreadable features count as needed."""
        match item.kind:
            case Kind.UNREADABLE:
                return item.parts[1] in self.images
            case Kind.CAPTIONS:
                captioned = self.captions.get(item.parts[1])
                return captioned is not None and not captioned.isdisjoint(caption_names(item.path))
            case Kind.SHARD:
                # The key first: it saves reading the index of a shard that belongs to no named run.
                return item.parts[1] in self.images and not self.generated.isdisjoint(shard_names(item.path))
            case Kind.FEATURES:
                return self._needs_features(item)
            case _:
                return item.place in self.places

    def _needs_features(self, item: Item) -> bool:
        needed = self.features.get("/".join(item.parts[1:3]))
        if not needed:
            return False
        names = chunk_names(item.path)
        # What cannot be read may be needed. To report damage and move it away is for `verify`.
        if names is None:
            return True
        ids_of_chunk, views_of_chunk = names
        # Of one run both: ids of one run and views of another are no reason to keep a chunk.
        return any(not ids.isdisjoint(ids_of_chunk) and not views.isdisjoint(views_of_chunk) for ids, views in needed)


def used_by(places: Sequence[Path], root: Path, *, full: bool = False) -> Used:
    """Returns the entries of a store that the finished runs in or below some folders need.

    Args:
        places: Folders of runs, or of sweeps.
        root: The store's folder; overrides the one in the runs' configs.
        full: Whether everything must exist.

    Raises:
        ValueError: If a folder holds no finished run, if a run's inputs do not exist any more or have
            changed, or if a required entry is missing.
    """
    used = Used()
    for run in find_runs(places):
        _add(used, run, root, full)
    return used


def needed_by(places: Sequence[Path], root: Path, *, full: bool = True) -> Used:
    """Returns the entries of a store that finished runs and saved classifiers need.

    Args:
        places: Folders of runs or of sweeps, and folders or `.zip` files of classifiers.
        root: The store's folder.
        full: Whether everything must exist.

    Raises:
        ValueError: If one is neither, or a required entry is missing.
    """
    classifiers = [place for place in places if place.suffix == ".zip" or (place / RECORD).is_file()]
    used = used_by_classifiers(classifiers, root, full=full)
    runs = [place for place in places if place not in classifiers]
    if not runs:
        return used
    of_runs = used_by(runs, root, full=full)
    return used.joined(of_runs)


def used_by_classifiers(places: Sequence[Path], root: Path, *, full: bool = True) -> Used:
    """Returns the entries that saved classifiers were built from: prompts, synthetic images and features.

    Args:
        places: Folders or `.zip` files of classifiers.
        root: The store's folder.
        full: Whether everything must exist.

    Raises:
        ValueError: If one is no classifier, the images of a class are missing, or an entry is that must exist.
    """
    from lgclip.api import experiments_of, load

    used = Used()
    for place in places:
        missing = 0
        # Quoted, since a path may hold what Hydra takes for syntax.
        for experiment in experiments_of(load(place), [f"paths.store='{root}'"]):
            references = experiment.references()
            for stream in references.streams:
                used.features[stream.store.key].append((set(stream.ids), set(stream.views)))
                missing += len(stream.missing())
            used.places |= {f"prompts/{key}.json" for key in references.prompt_keys}
            if references.synthetic_images is not None:
                _add_images(used, references.synthetic_images, references.seed, references.attempts)
        if full and missing:
            raise StoreError(f"{place}: {missing} entries that it was built from are not in {root}")
    return used


def _add(used: Used, run: Run, root: Path, full: bool) -> None:
    # The store may have been moved or copied since the run, so its config's path is replaced.
    config = run.result.config
    config = {**config, "paths": {**config["paths"], "store": str(root)}}
    run = replace(run, result=replace(run.result, config=config))
    restored = restore_run(run)
    missing = 0
    # If the keys differ, all that follows would be of another run, and its own entries would be deleted.
    for name, stream in restored.streams.items():
        if stream.store.key != run.result.store.get(name):
            raise RunError(
                f"{run.folder}: its {name} features lie under {run.result.store.get(name)}, and its config leads to "
                f"{stream.store.key}: its encoder, diffuser or data set is not what it was; run it again"
            )
    for stream in (*restored.streams.values(), *additional_streams(run, restored)):
        used.features[stream.store.key].append((set(stream.ids), set(stream.views)))
        if full:
            missing += len(stream.missing())
    used.images.add(content_key(restored.dataset.source()))  # what is known of test images that cannot be read
    cfg: Any = OmegaConf.create(config)
    if student := run.result.student:
        used.places |= {f"students/{student.key}/{name}" for name in ("model.safetensors", "student.json")}
    if prompt_tuning := run.result.prompt_tuning:
        files = ("text.safetensors", "visual.safetensors", "prompt_tuning.json")
        used.places |= {f"prompts_learned/{prompt_tuning.key}/{name}" for name in files}
    # Weights that were trained here lie in the store; others are a file of the user's own or a model of the hub.
    lora = Path(cfg.diffuser.get("lora") or "")
    if lora.parent.name == "adapters":
        used.places |= {f"adapters/{lora.name}/{name}" for name in ("pytorch_lora_weights.safetensors", "lora.json")}
    if restored.captions is not None:
        used.captions[restored.captions.store.key] |= set(restored.captions.images.ids)
        used.images.add(
            content_key(restored.captions.images.source())
        )  # what is known of training images that cannot be read
    elif run.result.llm:
        prompt_generator = build(cfg.llm, _convert_="all")
        keys = [
            content_key(prompt_generator.inputs(target_class, cfg.seed))
            for target_class in restored.dataset.target_classes
        ]
        used.places |= {f"prompts/{key}.json" for key in keys}
    used.places |= {f"prompts/{key}.json" for key in restored.text_keys}
    if restored.synthetic_images is not None:
        _add_images(used, restored.synthetic_images, cfg.seed, cfg.diffuser.get("retries", 0) + 1)
        if full:
            missing += _missing_images(restored.synthetic_images)
    if missing:
        raise RunError(f"{run.folder}: {missing} entries that it needs are not in {root}; run it again first")


def _missing_images(images: SyntheticImages) -> int:
    """Returns the number of images that are not there, though they were stored."""
    if not images.are_stored:
        return 0
    return sum(isinstance(place, Path) and not place.is_file() for place in images.paths)


def _add_images(used: Used, images: SyntheticImages, seed: int, tries: int) -> None:
    """Adds all attempts at some images, and their thumbnails."""
    for key in (images.key, images.thumbnail_key):
        if key:
            _add_attempts(used, key, images, seed, tries)


def _add_attempts(used: Used, key: str, synthetic_images: SyntheticImages, seed: int, tries: int) -> None:
    """Adds all attempts at some images under a key: that of the images, or of their thumbnails."""
    used.images.add(key)
    # Failed attempts are kept too: their markers spare the next run from generating the same faulty images again.
    for prompt in (*synthetic_images.prompts, *(absent.prompt for absent in synthetic_images.missing)):
        for attempt in range(tries):
            name = image_id(key, prompt, seed, attempt)
            used.generated.add(name)
            stem = f"images/{key}/{name[:2]}/{name}"
            used.places |= {stem + file_format.suffix for file_format in FORMATS}
            used.places.add(f"{stem}.fault.json")


def with_companions(entries: Iterable[Item], companions: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Splits companion files (inputs, cost logs, towers) by whether they belong to some entries.

    Args:
        entries: Prompts, images, features.
        companions: Files next to entries.

    Returns:
        Those of `companions` that belong to `entries`, and the others.
    """
    target_classes = set[str]()  # what a companion may belong to: a file, a folder, or a prompt generator
    sources = set[Path]()  # folders of features whose images are known
    for item in entries:
        target_classes.add(item.place)
        if item.kind == Kind.PROMPTS:
            # Prompts of all generators share one folder; the log's name is the key, which only they contain.
            prompt_generator = read_inputs(item.path).get("prompt_generator")
            target_classes.add(content_key(prompt_generator) if isinstance(prompt_generator, dict) else "")
        else:
            target_classes.add("/".join(item.parts[:2]))
            target_classes.add("/".join(item.parts[:3]))
        # Images that were encoded and not stored have a cost log of their own: it belongs to their features.
        if item.kind == Kind.FEATURES and item.path.parent not in sources:
            sources.add(item.path.parent)
            source = read_inputs(item.path.parent / "inputs.json").get("source")
            if isinstance(source, dict) and source.get("source") == "synthetic":
                target_classes.add(f"images/{source.get('images')}")
    near: list[Item] = []
    apart: list[Item] = []
    for item in companions:
        if item.kind == Kind.INDEX:
            target_class = item.place.replace(".safetensors", ".tar")
        elif item.parts[0] == "prompts":
            target_class = item.parts[1].partition(".")[0]
        else:
            target_class = item.place.rpartition("/")[0]
        (near if target_class in target_classes else apart).append(item)
    return near, apart


def collect(
    root: Path,
    *,
    keep: Sequence[Path] = (),
    older_than: float | None = None,
    yes: bool = False,
    now: int | None = None,
) -> Iterator[str]:
    """Lists what can be deleted of a store, and deletes it on request.

    Always: temporary files older than an hour, features of synthetic images that are all deleted, and companion files
    of deleted entries. With `keep` or `older_than` also every entry that nothing named needs. Except for temporary
    files, nothing is deleted that has changed in the last day. Records of finished runs whose folder is gone, which
    are no part of the store, go too.

    Args:
        root: The store's folder.
        keep: Folders of finished runs or of sweeps, and saved classifiers, whose entries are kept.
        older_than: Days; only what has not changed for longer is deleted. None for one day.
        yes: Whether to delete. Nothing is written without it.
        now: Time, in nanoseconds since 1970; None for the current time.

    Yields:
        A line per folder and reason, and the sum.

    Raises:
        ValueError: If there is no store, if a run cannot be read, or if `older_than` is below 0.
    """
    # `not >=` in place of `<`, which is false for NaN.
    if older_than is not None and not older_than >= 0:
        raise ValueError(f"--older-than {older_than}: it must be at least 0 days")
    used = needed_by(keep, existing(root), full=False) if keep else Used()
    # Without a reason that the user gave, no entry goes: a store of which nothing was named is not a useless one.
    reason = None
    if keep:
        reason = "needed by nothing that was named"
    elif older_than is not None:
        reason = f"older than {older_than:g} days"
    clock = time.time_ns() if now is None else now
    before = clock - (DAY if older_than is None else int(older_than * DAY))
    plan = _plan(root, used, reason, before, clock)
    records = lapsed_records()
    if records:
        size = amount(len(records), sum(records.values()))
        outcome = "deleted" if yes else "--yes deletes them"
        yield f"{next(iter(records)).parent}: {size}, records of runs that are gone; {outcome}"
    for path in records if yes else ():
        path.unlink(missing_ok=True)
    affected_items: list[Item] = []
    for (folder, reason), items in sorted(plan.items()):
        affected = _delete(items) if yes else items
        affected_items += affected
        yield f"{folder}: {amount(len(affected), sum(item.size for item in affected))}, {reason}"
    if yes:
        # A manifest that lists what is gone would make the next `verify` report each of these files.
        forget(root, {item.place for item in affected_items})
        for folder in sorted({item.path.parent for item in affected_items if item.kind == Kind.SHARD}):
            list_shards(folder)
    outcome = "would go"
    if yes:
        outcome = "deleted"
    elif affected_items:
        outcome = "would go; --yes deletes them"
    yield f"{root}: {amount(len(affected_items), sum(item.size for item in affected_items))} {outcome}"


def _plan(root: Path, used: Used, reason: str | None, before: int, now: int) -> dict[tuple[str, str], list[Item]]:
    """Returns the files to delete, by folder and reason."""
    plan: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    remaining: list[Item] = []
    companions: list[Item] = []
    for item in walk(root):
        if item.kind == Kind.LEFTOVER:
            # An import works in its own folder, for as long as it takes.
            limit = DAY if item.place.startswith(".import.") else HOUR
            # By `appeared`: a file that was copied with its times would look old at once.
            if now - item.appeared > limit:
                plan[_folder(item), "left by an interrupted run"].append(item)
        elif item.kind in COMPANIONS:
            companions.append(item)
        elif item.kind in ENTRIES:
            if reason is None or item.changed >= before or used.needs(item):
                remaining.append(item)
            else:
                plan[_folder(item), reason].append(item)
    # Three steps, each of what the one before leaves: entries, features of images that went, companions of both.
    generated = {item.path.stem for item in remaining if item.kind == Kind.IMAGE}
    generated.update(*(shard_names(item.path) for item in remaining if item.kind == Kind.SHARD))
    orphans = []
    for item in remaining:
        if item.changed < before and _is_orphan(item, generated) and not used.needs(item):
            orphans.append(item)
            plan[_folder(item), "features of images that are gone"].append(item)
    orphan_places = {item.place for item in orphans}
    _, useless = with_companions((item for item in remaining if item.place not in orphan_places), companions)
    for item in useless:
        if item.changed < before:
            plan[_folder(item), "nothing is left that it lists"].append(item)
    return plan


def _folder(item: Item) -> str:
    """Returns the folder of a store that an item counts for."""
    depth = {"captions": 2, "images": 2, "features": 3, "students": 2, "adapters": 2, "prompts_learned": 2}.get(
        item.parts[0], 1
    )
    return "/".join(item.parts[:depth][: len(item.parts) - 1]) or "."


def _is_orphan(item: Item, generated: set[str]) -> bool:
    """Checks whether a chunk holds only features of synthetic images, all of which are deleted."""
    if item.kind != Kind.FEATURES:
        return False
    source = read_inputs(item.path.parent / "inputs.json").get("source")
    if not isinstance(source, dict) or source.get("source") != "synthetic" or source.get("images") == ELSEWHERE:
        return False
    # A chunk that cannot be read is no orphan but damaged, which `verify` reports.
    names = chunk_names(item.path)
    return names is not None and generated.isdisjoint(names[0]) and not has_discarded_images(item.path)


def _delete(items: Sequence[Item]) -> list[Item]:
    """Deletes files that have not changed; folders stay, since a run may be about to write there."""
    deleted = []
    for item in items:
        # Minutes may lie between the plan and this line, in which a run may have rewritten the file.
        try:
            if item.path.lstat().st_mtime_ns == item.changed:
                item.path.unlink()
                deleted.append(item)
        except FileNotFoundError:
            continue
    return deleted
