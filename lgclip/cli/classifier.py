"""Implements the commands that build, use and change a classifier."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lgclip.classifier.explain import expectations
from lgclip.classifier.places import EXPORT_SUFFIXES, check_place, export_format
from lgclip.datasets.names import read_class_names
from lgclip.runtime.sweep_job import quoted

if TYPE_CHECKING:
    from lgclip.classifier.model import ImageClassifier
    from lgclip.classifier.parts import ClassInfo

_PROMPTS_SHOWN = 3
_ID_SHOWN = 12
NONE_OF_THESE = "none of these"
"""Label of an image that shows none of the classes, and the folder that it is moved to."""


@dataclass(frozen=True)
class BuildOptions:
    """Holds the options of `lgclip build`.

    Attributes:
        names: File of class names, see `lgclip.datasets.names.ClassNames`.
        out: Folder to write, or file that ends with `.zip`.
        overrides: Overrides as of evaluate.py.
        with_encoder: Whether to save the weights of the vision tower too.
        negatives: File of names of things to reject; None has the language model name some.
        improve: Number of rounds of new prompts for confusable classes.
    """

    names: Path
    out: Path
    overrides: Sequence[str] = ()
    with_encoder: bool = False
    negatives: Path | None = None
    improve: int = 0


def build_command(options: BuildOptions) -> Iterator[str]:
    """Runs `lgclip build`.

    Raises:
        ValueError: If a name or a value is wrong, or something else than a classifier is at `out`.
    """
    check_place(options.out)  # before hours of generation
    if options.improve < 0:
        raise ValueError(f"--improve {options.improve}: the number of rounds is 0 or more")

    from lgclip.api import build

    overrides = list(options.overrides)
    if options.negatives is not None:
        overrides.append(f"rejection.names={quoted(str(options.negatives))}")
    classifier = build(options.names, overrides=overrides)
    if options.improve:
        yield from classifier.improve(options.improve)
    classifier.save(options.out, with_encoder=options.with_encoder)
    yield from _summary(classifier, options.out)


def _summary(classifier: "ImageClassifier", out: Path) -> Iterator[str]:
    images = 0 if classifier.support is None else len(classifier.support.labels)
    yield f"{out}: {len(classifier.classes)} classes, {images} synthetic images"
    yield from expectations(classifier)
    sheet = "prototypes.png in it" if out.suffix == ".zip" else str(out / "prototypes.png")
    yield f"look at {sheet}, then: lgclip classify {out} PHOTOS -o labels.csv"


@dataclass(frozen=True)
class ClassifyOptions:
    """Holds the options of `lgclip classify`.

    Attributes:
        classifier: Folder, zip file or hub address of a classifier, or folder of a run.
        images: Files, folders or patterns.
        out: The table to write; None prints one line per image.
        format: `csv`, `jsonl` or `parquet`; None takes that of the file's name.
        top: Number of most probable classes; above 1 there are two columns for each.
        move_to: Folder to move the images to, into a folder per class; None moves nothing.
        shards_to: Folder of one table per shard; None writes one table.
        part: `I/N` for the I-th of N processes that share the shards.
        labels: Where shards hold the true class of an image, see `SampleFields`; None for images without labels.
        names: File with one class name per line, where labels are indices.
        executor: `local`, or `ray` for the workers of a Ray cluster.
    """

    classifier: str
    images: Sequence[str]
    out: Path | None = None
    format: str | None = None
    top: int = 1
    move_to: Path | None = None
    shards_to: Path | None = None
    part: str | None = None
    labels: str | None = None
    names: Path | None = None
    executor: str = "local"


def classify_command(options: ClassifyOptions) -> Iterator[str]:
    """Runs `lgclip classify`.

    Raises:
        ValueError: If there is no classifier, a source does not exist, or a value is wrong.
    """
    from lgclip.api import load
    from lgclip.classifier.tables import format_of, prediction_rows, write_table

    if options.shards_to is not None:
        yield from _classify_shards(options, options.shards_to)
        return
    for name, value in (("part", options.part), ("labels", options.labels), ("executor", options.executor)):
        if value not in (None, "local"):
            raise ValueError(f"--{name} {value}: it concerns shards, and needs --shards-to DIR")
    if options.move_to is not None:
        _check_movable(options.images)
    table_format = format_of(options.out, options.format)
    predictions = load(options.classifier).classify(options.images, top=options.top)
    moves: dict[str, str] = {}
    counts = {"classified": 0, "unreadable": 0, "rejected": 0}

    def rows() -> Iterator[dict[str, object]]:
        targets: set[Path] = set()
        for row in prediction_rows(predictions, options.top):
            counts["unreadable" if row["error"] else "classified"] += 1
            counts["rejected"] += bool(row["rejected"])
            if options.move_to is None:
                yield dict(row)
                continue
            target = "" if row["error"] else str(_target(options.move_to, row, targets))
            if target:
                moves[str(row["path"])] = target
            yield {**row, "moved_to": target}

    if options.out is None:
        for row in rows():
            yield _line(row, options.top)
    else:
        more = ["moved_to"] if options.move_to is not None else []
        write_table(options.out, rows(), table_format, options.top, more)
    # After the table: an image is never somewhere else than a complete table says.
    for source, target in moves.items():
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
    unreadable = f", {counts['unreadable']} could not be read (column error)" if counts["unreadable"] else ""
    if options.out is not None:
        rejected = (
            f", {counts['rejected']} of them as none of the classes (column rejected)" if counts["rejected"] else ""
        )
        yield f"{options.out}: {counts['classified']} images classified{rejected}{unreadable}"
    if options.move_to is not None:
        yield f"{options.move_to}: {len(moves)} images moved into folders of their classes"


def _check_movable(images: Sequence[str]) -> None:
    """Rejects shards, whose images are no files.

    Raises:
        ValueError: If there is one.
    """
    from lgclip.datasets.image_shards import is_shard

    for image in images:
        if is_shard(image):
            raise ValueError(f"--move-to: the images of {image} lie in a shard and cannot be moved")


def _classify_shards(options: ClassifyOptions, folder: Path) -> Iterator[str]:
    """Writes one table per shard."""
    from lgclip.api import load
    from lgclip.classifier.shard_labels import ShardLabels
    from lgclip.classifier.shard_tables import ShardTables, TableSettings
    from lgclip.classifier.sources import shards_of
    from lgclip.classifier.tables import format_of

    if options.out is not None or options.move_to is not None:
        raise ValueError("--shards-to DIR writes a table per shard: leave out --out and --move-to")
    uses_ray = options.executor == "ray"
    if uses_ray and options.part is not None:
        raise ValueError(f"--part {options.part}: with --executor ray the cluster divides the shards; leave one out")
    if options.names is not None and options.labels is None:
        raise ValueError(f"--names {options.names}: it names the classes of labels, and needs --labels")
    labels = None if options.labels is None else ShardLabels.from_options(options.labels, options.names)
    settings = TableSettings(format_of(None, options.format or "parquet"), options.top, labels)
    part = _part_of(options.part)
    shards = shards_of(options.images)
    yield from ShardTables(folder, settings, part, uses_ray).classify(load(options.classifier), shards)


def _part_of(text: str | None) -> tuple[int, int]:
    """Returns index, from 0, and number of the processes that share the shards."""
    if text is None:
        return 0, 1
    first, _, second = text.partition("/")
    if not (first.isdecimal() and second.isdecimal() and 1 <= int(first) <= int(second)):
        raise ValueError(f"--part {text}: give I/N, such as 1/4 for the first of four processes")
    return int(first) - 1, int(second)


def _target(folder: Path, row: Mapping[str, object], targets: set[Path]) -> Path:
    """Returns a free path for an image in the folder of its class."""
    source = Path(str(row["path"]))
    # A class name is text of someone's, and no path.
    label = "".join("_" if letter in '/\\\0:*?"<>|' else letter for letter in str(row["label"])).strip(". ") or "_"
    if row["rejected"]:
        label = NONE_OF_THESE
    target = folder / label / source.name
    number = 2
    while target in targets or target.exists():
        target = folder / label / f"{source.stem} ({number}){source.suffix}"
        number += 1
    targets.add(target)
    return target


def _line(row: dict[str, object], top: int) -> str:
    if row["error"] is not None:
        return f"{row['path']}: cannot be read as an image ({row['error']})"
    ranked = [(row["label"], row["score"])]
    if top > 1:
        ranked = [(row[f"label_{rank}"], row[f"score_{rank}"]) for rank in range(1, top + 1) if row[f"label_{rank}"]]
    listed = ", ".join(f"{name} {score:.3f}" for name, score in ranked)
    if row["rejected"]:
        return f"{row['path']}: {NONE_OF_THESE} (most similar: {listed})"
    return f"{row['path']}: {listed}"


def save_command(run: Path, out: Path, *, with_encoder: bool) -> Iterator[str]:
    """Runs `lgclip save`.

    Args:
        run: Folder of a run.
        out: Folder to write, or file that ends with `.zip`.
        with_encoder: Whether to save the weights of the vision tower too.

    Raises:
        ValueError: If the run has no classifier, something of it does not exist any more, or something else than a
            classifier is at `out`.
    """
    check_place(out)

    from lgclip.reporting.run_classifier import classifier_of

    classifier = classifier_of(run)
    classifier.save(out, with_encoder=with_encoder)
    yield from _summary(classifier, out)


def add_command(place: Path, names: Sequence[str], out: Path | None, overrides: Sequence[str]) -> Iterator[str]:
    """Runs `lgclip add`: adds classes by name, or those of a file of names.

    Raises:
        ValueError: If a name exists already, or a class cannot be built.
    """
    check_place(out or place)

    from lgclip.api import load

    classifier = load(place, overrides=list(overrides))
    described: dict[str, str] = {}
    for name in names:
        # A file of names, with descriptions; anything else is a name.
        described |= read_class_names(Path(name)) if Path(name).is_file() else {name: ""}
    classifier.add(described)
    classifier.save(out or place)
    yield f"{out or place}: {', '.join(described)} added, now {len(classifier.classes)} classes"


def remove_command(place: Path, names: Sequence[str], out: Path | None) -> Iterator[str]:
    """Runs `lgclip remove`.

    Raises:
        ValueError: If a class does not exist, or fewer than two would remain.
    """
    check_place(out or place)

    from lgclip.api import load

    classifier = load(place)
    classifier.remove(names)
    classifier.save(out or place)
    yield f"{out or place}: {len(classifier.classes)} classes remain"


def rename_command(place: Path, old: str, new: str, out: Path | None) -> Iterator[str]:
    """Runs `lgclip rename`.

    Raises:
        ValueError: If the class does not exist, or the new name belongs to another.
    """
    check_place(out or place)

    from lgclip.api import load

    classifier = load(place)
    classifier.rename(old, new)
    classifier.save(out or place)
    yield f"{out or place}: {old} is now {new}; its prompts and images are unchanged"


def edit_command(place: Path, drop: Sequence[str], out: Path | None) -> Iterator[str]:
    """Runs `lgclip edit`: takes synthetic images out for good.

    Raises:
        ValueError: If an id fits no image or several, or a class would have none left.
    """
    check_place(out or place)

    from lgclip.api import load

    classifier = load(place)
    before = len(classifier.image_ids)
    classifier.drop(drop)
    classifier.save(out or place)
    yield f"{out or place}: {before - len(classifier.image_ids)} images dropped, {len(classifier.image_ids)} remain"
    yield from expectations(classifier)


def add_shots_command(place: Path, folder: Path, out: Path | None) -> Iterator[str]:
    """Runs `lgclip add-shots`: mixes a few real images of some classes into their prototypes.

    Args:
        place: The classifier.
        folder: Folder with a folder of images per class, named as the class.
        out: Path to save it to; None overwrites it.

    Raises:
        ValueError: If a folder is no class, an image cannot be read or is there already.
    """
    check_place(out or place)

    from lgclip.api import load
    from lgclip.classifier.shot_folders import images_by_class

    classifier = load(place)
    classifier.add_shots(images_by_class(folder, classifier.class_names))
    classifier.save(out or place)
    yield f"{out or place}: {classifier.edits[-1]}"
    yield from expectations(classifier)


def worth_command(place: str, folder: Path, plot: Path | None, seeds: int) -> Iterator[str]:
    """Runs `lgclip worth`: accuracy against the number of real images, with and without synthetic ones.

    Args:
        place: The classifier.
        folder: Folder with a folder of labelled images per class.
        plot: Image to write; None draws nothing.
        seeds: Number of random choices of the real images.

    Raises:
        ValueError: If a folder is no class, a class has too few images, or one cannot be read.
    """
    from lgclip.api import load
    from lgclip.reporting.worth import measure_worth, plot_worth

    worth = measure_worth(load(place), folder, seeds=seeds)
    yield from worth.lines()
    if plot is not None:
        plot_worth(worth, plot)
        yield f"{plot}: accuracy against the number of real images per class"


def show_command(place: str, sheet: Path | None, *, images: bool = False) -> Iterator[str]:
    """Runs `lgclip show`: what a classifier consists of, and its contact sheet.

    Args:
        place: The classifier.
        sheet: Image to write with the synthetic images; None writes none.
        images: Whether to list the ids of the synthetic images.

    Raises:
        ValueError: If there is no classifier.
    """
    from lgclip.api import load
    from lgclip.classifier.sheet import write_sheet

    classifier = load(place)
    choice = classifier.choice
    views = ", ".join(classifier.scales.views)
    yield f"{len(classifier.classes)} classes, encoder {_encoder_name(classifier)}, views {views}"
    yield (
        f"prototypes: {type(choice.rule).__name__}, text weight {choice.text_weight:g}; temperature "
        f"{classifier.temperature.value:.4f} ({classifier.temperature.fitted_on})"
    )
    for name, value in classifier.origin.items():
        yield f"{name}: {value}"
    yield from expectations(classifier)
    for edit in classifier.edits:
        yield f"changed: {edit}"
    ids: dict[int, list[str]] = {}
    labels = [] if classifier.support is None else classifier.support.labels.tolist()
    for label, image_id in zip(labels, classifier.image_ids, strict=False):
        ids.setdefault(label, []).append(image_id[:_ID_SHOWN])
    for index, info in enumerate(classifier.classes):
        yield from _class_lines(info)
        if images and index in ids:
            yield f"    images, in the order of the sheet: {' '.join(ids[index])}"
    if sheet is not None:
        write_sheet(sheet, classifier.class_names, classifier.strips)
        yield f"{sheet}: the first images of its classes"


def _encoder_name(classifier: "ImageClassifier") -> str:
    config = classifier.settings.get("encoder") or {}
    # The config of two encoders holds both.
    parts = [config[name] for name in ("first", "second") if name in config] or [config]
    names = [" ".join(str(part[key]) for key in ("model", "pretrained") if part.get(key)) for part in parts]
    return " + ".join(filter(None, names)) or type(classifier.encoder).__name__


def _class_lines(info: "ClassInfo") -> Iterator[str]:
    description = f" ({info.description})" if info.description else ""
    renamed = f", generated as {info.prompted_as!r}" if info.prompted_as else ""
    yield f"- {info.name}{description}{renamed}"
    for prompt in info.prompts[:_PROMPTS_SHOWN]:
        yield f"    {prompt}"
    if len(info.prompts) > _PROMPTS_SHOWN:
        yield f"    ... {len(info.prompts) - _PROMPTS_SHOWN} more prompts"


def export_command(place: str, out: Path | None, chosen: str | None, *, int8: bool, resize: bool) -> Iterator[str]:
    """Runs `lgclip export`.

    Args:
        place: Folder, zip file or hub address of a classifier, or folder of a run.
        out: The file; None names it after the classifier.
        chosen: Format; None takes that of the file's name.
        int8: Whether to quantize the weights.
        resize: Whether to put resize and crop into the graph.

    Raises:
        ValueError: If an option does not fit, a package is missing, or the file would give other scores.
    """
    if out is None:
        if chosen is None:
            raise ValueError("name the file by -o, or choose --format onnx, pt2, openvino or safetensors")
        suffix = next(suffix for suffix, name in EXPORT_SUFFIXES.items() if name == chosen)
        out = Path(f"{_short_name(place)}{suffix}")
    chosen = chosen or export_format(out)

    from lgclip.api import load

    yield str(load(place).export(out, format=chosen, int8=int8, resize=resize))


def _short_name(place: str) -> str:
    """Returns the name of a classifier without its folder or owner, its revision and its ending."""
    from lgclip.classifier.hub import PREFIX, split_address

    if place.startswith(PREFIX):
        repo, _ = split_address(place)
        return repo.rpartition("/")[2]
    # Resolved, because of `.` and `..`; of other endings a name such as v1.2 would lose a part.
    path = Path(place).expanduser().resolve()
    return path.stem if path.suffix in (".lgclip", ".zip") else path.name


def push_command(place: Path, address: str, *, public: bool) -> Iterator[str]:
    """Runs `lgclip push`.

    Raises:
        ValueError: If there is no classifier, or the hub refuses.
    """
    from lgclip.classifier.hub import push_classifier, split_address

    split_address(address)

    from lgclip.api import load

    commit = push_classifier(load(place), address, public=public)
    yield f"{address}@{commit}: uploaded; lgclip classify {address} PHOTOS"
