"""Finished runs against one of them: image by image, and setting by setting over their seeds."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from lgclip.runs import Run, differing, find_runs
from lgclip.statistics import holm, over_seeds, paired, welch

SEEDS = ("seed", "prompt_order_seed")
"""Settings that make a repetition of a run, not another setting."""


class ComparisonError(ValueError):
    """Runs that cannot be compared; the message says in what they differ."""


class Side(NamedTuple):
    """A judgement of every image: a run's own, or that of a method beside it.

    Attributes:
        run: The run.
        column: Name of the method beside; None for the run's own.
    """

    run: Run
    column: str | None = None

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.column or self.run.result["method"]

    @property
    def figures(self) -> Mapping[str, Any]:
        """Its metrics, as in result.json."""
        return self.run.result["metrics"] if self.column is None else self.run.result["beside"][self.column]

    @property
    def prediction(self) -> Int[np.ndarray, " n"]:
        """The class that it predicts of each image."""
        predictions = self.run.predictions
        return predictions.prediction if self.column is None else predictions.beside[self.column]


@dataclass(frozen=True)
class Compared:
    """A judgement against another of the same images.

    Attributes:
        side: The one.
        reference: The other.
        settings: The settings in which the compared runs differ from each other, as `side` has them.
        reference_settings: The same, as the reference has them.
        test: `difference`, `ci95`, `only_this`, `only_other` and `p` of `statistics.paired`.
        p_holm: The p value, raised for all tests that were made together.
    """

    side: Side
    reference: Side
    settings: Mapping[str, Any]
    reference_settings: Mapping[str, Any]
    test: Mapping[str, Any]
    p_holm: float


@dataclass(frozen=True)
class SeedGroup:
    """Judgements that differ in their seeds alone.

    Attributes:
        settings: The settings in which the groups differ from each other.
        sides: The judgements.
    """

    settings: Mapping[str, Any]
    sides: tuple[Side, ...]

    @property
    def unit(self) -> str:
        """The seed whose values are the repetitions; orders of prompts only where nothing else was repeated."""
        return SEEDS[0] if len({_seeds(side)[0] for side in self.sides}) > 1 else SEEDS[1]

    @cached_property
    def values(self) -> list[float]:
        """Top-1 of each repetition; orders within one seed are averaged, for they share their images."""
        at = SEEDS.index(self.unit)
        own: dict[object, list[float]] = {}
        for side in self.sides:
            own.setdefault(_seeds(side)[at], []).append(side.figures["top1"])
        return [float(np.mean(values)) for values in own.values()]


@dataclass(frozen=True)
class OverSeeds:
    """A setting's mean over seeds, and how it differs from that of the reference.

    Attributes:
        group: The judgements.
        summary: `n`, `mean`, `std` and `ci95` of `statistics.over_seeds`.
        test: `difference`, `ci95` and `p` of `statistics.welch`; None for the reference's own setting, or if
            that has one seed only.
        p_holm: The p value, raised for all settings; None where there is none.
    """

    group: SeedGroup
    summary: Mapping[str, Any]
    test: Mapping[str, Any] | None
    p_holm: float | None


def read_spec(text: str) -> Side:
    """The judgement that `RUN` or `RUN:METHOD` stands for.

    Raises:
        RunError: If there is no finished run.
        ComparisonError: If no such method was judged in it.
    """
    folder, column = _split(text)
    return _side(Run.read(folder), column)


def read_sides(places: Sequence[str]) -> list[Side]:
    """The judgements of all runs in or below some folders, each with `:METHOD` if a method beside is meant.

    Raises:
        RunError: If there is no finished run in a place.
        ComparisonError: If no such method was judged in one of them.
    """
    named = [_split(place) for place in places]
    return [_side(run, column) for folder, column in named for run in find_runs([folder])]


def _split(text: str) -> tuple[Path, str | None]:
    """A folder may have a colon in its name, so what is there goes first."""
    whole = Path(text).expanduser()
    head, colon, column = text.rpartition(":")
    if whole.exists() or not colon:
        return whole, None
    return Path(head).expanduser(), column


def _side(run: Run, column: str | None) -> Side:
    if column is None or column == run.result["method"]:
        return Side(run)
    if column not in run.result["beside"]:
        judged = ", ".join([run.result["method"], *run.result["beside"]])
        raise ComparisonError(f"{run.folder} did not judge {column!r}: choose one of {judged}")
    return Side(run, column)


def comparable(a: Run, b: Run) -> None:
    """Checks that two runs judged the same images among the same classes.

    Raises:
        ComparisonError: If they did not; it names all in which they differ.
    """
    one, other = a.result, b.result
    shown = {f"data set's {key}": (one["dataset"][key], other["dataset"][key]) for key in ("name", "split", "names")}
    shown["images' source"] = (one["dataset"]["source"], other["dataset"]["source"])
    shown |= {
        "number of images": (one["n"], other["n"]),
        "number of classes": (one["num_classes"], other["num_classes"]),
    }
    told = [f"{what} {x!r} and {y!r}" for what, (x, y) in shown.items() if x != y]
    if one["num_classes"] == other["num_classes"]:
        names = [(c, x, y) for c, (x, y) in enumerate(zip(a.class_names, b.class_names, strict=True)) if x != y]
        told += [f"name of class {c} {x!r} and {y!r}, one of {len(names)}" for c, x, y in names[:1]]
    if a.left_out != b.left_out:
        left = " and ".join(f"{len(out)} (first {out[:3]})" if out else "none" for out in (a.left_out, b.left_out))
        told.append(f"images left out as unreadable, {left}")
    if one["n"] == other["n"]:
        unlike = int((a.predictions.label != b.predictions.label).sum())
        told += [f"labels of {unlike} images"] if unlike else []
    if told:
        raise ComparisonError(
            f"{a.folder} and {b.folder} did not judge the same images: they differ in the {'; the '.join(told)}. "
            "Compare runs of one data set with one list of names"
        )


def compare(sides: Sequence[Side], reference: Side | None = None) -> list[Compared]:
    """Tests each judgement against one of them on the same images.

    Args:
        sides: The judgements; one that is there twice counts once.
        reference: What they are compared with; by default the first of them.

    Raises:
        ComparisonError: If there is nothing to compare, or the images are not the same.
    """
    if not sides:
        raise ComparisonError("no run is named: name the folders of runs or sweeps")
    against = reference or sides[0]
    others = list({_identity(side): side for side in sides if _identity(side) != _identity(against)}.values())
    if not others:
        raise ComparisonError(
            f"{against.run.folder} alone is nothing to compare: name another run, or a method beside it, RUN:METHOD"
        )
    for side in others:
        comparable(against.run, side.run)
    label = against.run.predictions.label
    tests = [paired(label, side.prediction, against.prediction) for side in others]
    base, *settings = _told_apart([against.run, *(side.run for side in others)])
    raised = holm([test["p"] for test in tests])
    return [
        Compared(side, against, own, base, test, p)
        for side, own, test, p in zip(others, settings, tests, raised, strict=True)
    ]


def seed_groups(sides: Sequence[Side]) -> list[SeedGroup]:
    """Gathers the judgements that differ in their seeds alone, in the order of their first.

    A repetition that is there twice counts once.

    Raises:
        ComparisonError: If the same seeds gave two results, or a group's images are not the same.
    """
    unique = list({_identity(side): side for side in sides}.values())
    groups: dict[str, tuple[dict[str, Any], dict[tuple[object, ...], Side]]] = {}
    for side, settings in zip(unique, _told_apart([side.run for side in unique], SEEDS), strict=True):
        _, own = groups.setdefault(_text([settings, side.column]), (settings, {}))
        before = own.setdefault(_seeds(side), side)
        comparable(next(iter(own.values())).run, side.run)
        if not np.array_equal(before.prediction, side.prediction):
            raise ComparisonError(
                f"{before.run.folder} and {side.run.folder} have the same config and seeds but judge otherwise, so the "
                "code or the files changed between them: leave one of them out of a mean over seeds"
            )
    return [SeedGroup(settings, tuple(own.values())) for settings, own in groups.values()]


def over_groups(groups: Sequence[SeedGroup], reference: Side) -> list[OverSeeds]:
    """Means over seeds, and Welch's test of each against the reference's own setting; the seeds are the sample.

    Groups of one repetition are left out, as they say nothing of the spread.
    """
    repeated = [group for group in groups if len(group.values) > 1]
    base = next((g for g in repeated if _identity(reference) in map(_identity, g.sides)), None)
    tests = [welch(g.values, base.values) if base and g is not base else None for g in repeated]
    raised = iter(holm([test["p"] for test in tests if test and test["p"] is not None]))
    return [
        OverSeeds(g, over_seeds(g.values), test, next(raised) if test and test["p"] is not None else None)
        for g, test in zip(repeated, tests, strict=True)
    ]


def _identity(side: Side) -> tuple[Path, str | None]:
    return side.run.folder.resolve(), side.column


def _seeds(side: Side) -> tuple[object, ...]:
    return tuple(side.run.result["config"].get(name) for name in SEEDS)


def _text(value: object) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _told_apart(runs: Sequence[Run], but: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Of each run, the settings by which it differs from another; the same for none but equal runs.

    Where a part's choice differs its values are not told, so runs with the same choice are looked at again.
    """
    columns = {key: values for key, values in differing(runs).items() if key not in but}
    told = [{key: values[i] for key, values in columns.items()} for i in range(len(runs))]
    alike: dict[str, list[int]] = {}
    for i, own in enumerate(told):
        alike.setdefault(_text(own), []).append(i)
    if columns:
        for places in alike.values():
            for i, more in zip(places, _told_apart([runs[i] for i in places], but), strict=True):
                told[i] |= more
    return told
