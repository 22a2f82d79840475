"""Learnt prompts of sweeps by their learner: each figure by paradigm and over seeds."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lgclip.comparison import Side, comparable
from lgclip.learner_cells import (
    Cells,
    LearnersError,
    Place,
    Slot,
    Told,
    cells_of,
    is_elsewhere,
    is_setting,
    lacking,
    placed,
    repetition_of,
)
from lgclip.runs import find_runs, settings_of
from lgclip.seed_rows import TOP1, Figure, Row, told_briefly

BY_KIND = ("seen", "unseen", "harmonic")
"""Columns beside `top1` where some classes were seen: accuracy on these, on the others, and the harmonic mean."""


@dataclass(frozen=True)
class Learners:
    """What sweeps say of their learners.

    Attributes:
        rows: The learners.
        beside: The methods that were judged beside them.
        paradigms: What may be known of the pool, with the settings of it that differ.
        notes: What is not in the table, or is of fewer seeds.
    """

    rows: Sequence[Row]
    beside: Sequence[Row]
    paradigms: Sequence[str]
    notes: Sequence[str]

    @property
    def figures(self) -> list[Figure]:
        """The columns."""
        every = [Figure(kind, paradigm) for paradigm in self.paradigms for kind in (TOP1.kind, *BY_KIND)]
        return [figure for figure in every if any(row.of(figure) for row in self.rows)]


def read_learners(places: Sequence[Path]) -> Learners:
    """The learners of some sweeps.

    A run that is there twice counts once, and so do learners that differ in a setting on which they do not depend.

    Args:
        places: Folders of sweeps, or of runs.

    Raises:
        RunError: If a folder holds no finished run.
        ComparisonError: If the runs did not judge the same images.
        LearnersError: If no run learnt a prompt, or two of one setting have the same seeds.
    """
    found = find_runs(places)
    learnt = [run for run in found if run.result.get("learner")]
    own = [run for run in learnt if not run.result["config"].get("ckpt")]
    if not own:
        named = ", ".join(map(str, places))
        raise LearnersError(f"{named}: no run learnt a prompt, of {len(found)} in all: run evaluate.py method=air")
    for run in own[1:]:
        comparable(own[0], run)
    counts = {
        "without a learner": len(found) - len(learnt),
        "with ckpt=, which do not say how the prompt was learnt": len(learnt) - len(own),
    }
    notes = [f"left out: {n} {which}" for which, n in counts.items() if n]
    told = placed(own)
    cells = cells_of(told)
    kept = {row: runs for row, runs in cells.items() if not is_elsewhere(row, cells)}
    rows = _rows(kept)
    for row, runs in zip(rows, kept.values(), strict=True):
        notes += [f"{row.label}: {note}" for note in lacking(runs, told)]
    paradigms = list(dict.fromkeys(one.paradigm for one in told))
    return Learners(rows, _beside(cells), paradigms, notes)


def of_both(a: Row, b: Row) -> tuple[Row, Row]:
    """Two rows, of each the repetitions alone that both have, so that a difference compares the same splits."""
    places = [place for place in a.runs if place in b.runs]
    pairs = {
        place: [(x, y) for x in a.runs[place] for y in b.runs[place] if repetition_of(x.run) == repetition_of(y.run)]
        for place in places
    }
    runs = [{place: [pair[i] for pair in pairs[place]] for place in places if pairs[place]} for i in (0, 1)]
    return (Row(a.name, a.apart, _values(runs[0]), runs[0]), Row(b.name, b.apart, _values(runs[1]), runs[1]))


def _rows(cells: Cells) -> list[Row]:
    shown = _shown([dict(json.loads(own), name=name) for name, own in cells])
    return [_row(name, apart, own) for ((name, _), own), apart in zip(cells.items(), shown, strict=True)]


def _row(name: str, apart: str, own: Mapping[Slot, Told], column: str | None = None) -> Row:
    runs: dict[Place, list[Side]] = {}
    for one in own.values():
        runs.setdefault(one.place, []).append(Side(one.run, column))
    return Row(name, apart, _values(runs), runs)


def _values(runs: Mapping[Place, Sequence[Side]]) -> dict[Hashable, dict[Figure, float]]:
    """Figures by seed, each the mean over what is repeated within it."""
    values: dict[Hashable, dict[Figure, float]] = {}
    for (paradigm, seed), sides in runs.items():
        every = [_figures(side) for side in sides]
        own = {Figure(kind, paradigm): float(np.mean([one[kind] for one in every])) for kind in every[0]}
        values.setdefault(seed, {}).update(own)
    return values


def _figures(side: Side) -> dict[str, float]:
    by_kind = side.run.result["learner"].get("by_kind") or {}
    return {TOP1.kind: side.figures["top1"], **by_kind.get(side.method, {})}


def _beside(cells: Cells) -> list[Row]:
    """The methods beside: one row each where all runs have the same answers, else one for each of them."""
    found = []
    for name in dict.fromkeys(name for own in cells.values() for one in own.values() for name in one.beside):
        groups: list[tuple[dict[Slot, Told], list[Row]]] = []
        for row, own in zip(_rows(cells), cells.values(), strict=True):
            having = {slot: one for slot, one in own.items() if name in one.beside}
            group, members = next((one for one in groups if _agree(name, one[0], having)), ({}, []))
            if having and not members:
                groups.append((group, members))
            members.append(row)
            group |= {slot: one for slot, one in having.items() if slot not in group}
        apart = _groups_apart([members for _, members in groups])
        found += [_row(name, one, group, name) for one, (group, _) in zip(apart, groups, strict=True)]
    return found


def _agree(name: str, one: Mapping[Slot, Told], other: Mapping[Slot, Told]) -> bool:
    both = [(one[slot].run.predictions, other[slot].run.predictions) for slot in one if slot in other]
    return all(np.array_equal(a.beside[name], b.beside[name]) for a, b in both)


def _groups_apart(groups: Sequence[Sequence[Row]]) -> list[str]:
    """The settings of which no two groups share a value; where there is none, their rows."""
    if len(groups) == 1:
        return [""]
    own = [[settings_of(runs[0].run) for row in rows for runs in row.runs.values()] for rows in groups]
    told: list[dict[str, Any]] = [{} for _ in groups]
    for key in dict.fromkeys(key for settings in own for one in settings for key in one if is_setting(key)):
        values = [{json.dumps(one.get(key)) for one in settings} for settings in own]
        if all(len(one) == 1 for one in values) and len(set.union(*values)) == len(groups):
            for one, value in zip(told, values, strict=True):
                one[key] = json.loads(*value)
    if told[0]:
        return [told_briefly(one) for one in told]
    return [f"beside {' and '.join(row.label for row in rows)}" for rows in groups]


def _shown(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The settings that tell each row from others of its name, or from the first row."""
    told = []
    for row in rows:
        alike = [other for other in rows if other["name"] == row["name"]]
        apart = [
            key
            for key in row
            if key != "name" and any(other[key] != row[key] for other in [*alike, rows[0]] if key in other)
        ]
        told.append({key: row[key] for key in apart})
    return [told_briefly(one) for one in told]
