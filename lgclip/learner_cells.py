"""Where each run of a learner stands in their table: its row, its column, its repetition."""

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from lgclip.comparison import SEEDS
from lgclip.runs import Run, differing, settings_of
from lgclip.seed_rows import told_briefly

_SEEDS = ("learner.seed", "paradigm.split_seed", "paradigm.shots_seed", *SEEDS)
"""What makes a repetition. The first of them that varies is the sample; what else does is averaged within it."""
_NO_SETTINGS = ("ckpt", "learner", "membership", "objective", "ood", "paradigm", "student")
"""Keys, and groups but the learner's, that have their own place in the table or change no figure of it."""

Repetition = tuple[Hashable, ...]
Place = tuple[str, Hashable]
"""Column and seed."""
Slot = tuple[str, Repetition]
"""Column and all seeds."""
Cells = dict[tuple[str, str], dict[Slot, "Told"]]
"""The runs of each row."""
_T = TypeVar("_T")


class LearnersError(ValueError):
    """Runs that make no table of learners; the message says why."""


class Told(NamedTuple):
    """A run's place in the table.

    Attributes:
        run: The run.
        row: Its learner, and as JSON the settings that may tell it from others.
        paradigm: Its column.
        unit: Which of its seeds is the sample there.
    """

    run: Run
    row: tuple[str, str]
    paradigm: str
    unit: int

    @property
    def place(self) -> Place:
        """Its column and its seed."""
        return self.paradigm, repetition_of(self.run)[self.unit]

    @property
    def slot(self) -> Slot:
        """Its column and all of its seeds."""
        return self.paradigm, repetition_of(self.run)

    @property
    def beside(self) -> Sequence[str]:
        """Names of the methods beside."""
        return list(self.run.result["beside"])


def is_setting(key: str) -> bool:
    """Whether a key of the config may tell rows apart: no seed, and nothing that has its own place."""
    group, inside, _ = key.partition(".")
    return key not in _SEEDS and (group not in _NO_SETTINGS or (group == "learner" and bool(inside)))


def repetition_of(run: Run) -> Repetition:
    """All seeds of a run."""
    own = settings_of(run)
    return tuple(own.get(key) for key in _SEEDS)


def placed(runs: Sequence[Run]) -> list[Told]:
    """Where each run stands.

    Args:
        runs: Runs of learners.
    """
    settings, everywhere = [settings_of(run) for run in runs], list(differing(runs))
    names = [str(run.result["choices"].get("learner") or run.result["method"]) for run in runs]
    keys = {name: [*everywhere, *differing(_where(runs, names, name))] for name in dict.fromkeys(names)}
    rows = [
        (name, json.dumps({key: own.get(key) for key in keys[name] if is_setting(key)}, sort_keys=True))
        for name, own in zip(names, settings, strict=True)
    ]
    columns = _columns(runs, settings)
    repeated = [repetition_of(run) for run in runs]
    units = {}
    for column in dict.fromkeys(columns):
        values = zip(*_where(repeated, columns, column), strict=True)
        units[column] = next((i for i, one in enumerate(values) if len(set(one)) > 1), 0)
    return [Told(run, row, column, units[column]) for run, row, column in zip(runs, rows, columns, strict=True)]


def _columns(runs: Sequence[Run], settings: Sequence[Mapping[str, object]]) -> list[str]:
    """The paradigm of each run, with the settings in which its runs differ."""
    kinds = [str(run.result["learner"]["paradigm"]) for run in runs]
    keys = {
        kind: [key for key in differing(_where(runs, kinds, kind)) if key.startswith("paradigm.") and key not in _SEEDS]
        for kind in dict.fromkeys(kinds)
    }
    told = [told_briefly({key: own.get(key) for key in keys[kind]}) for kind, own in zip(kinds, settings, strict=True)]
    return [f"{kind} ({said})" if said else kind for kind, said in zip(kinds, told, strict=True)]


def _where(values: Sequence[_T], labels: Sequence[str], label: str) -> list[_T]:
    return [value for value, own in zip(values, labels, strict=True) if own == label]


def cells_of(told: Sequence[Told]) -> Cells:
    """The runs of each row; rows of one name together.

    Raises:
        LearnersError: If two runs have the same place but other answers.
    """
    names = list(dict.fromkeys(one.row[0] for one in told))
    cells: Cells = {}
    for one in sorted(told, key=lambda one: names.index(one.row[0])):
        before = cells.setdefault(one.row, {}).setdefault(one.slot, one)
        if not _is_same(before.run, one.run):
            raise LearnersError(
                f"{before.run.folder} and {one.run.folder} judged two learners of one setting with the same seeds: "
                "leave one of them out of a mean over seeds"
            )
    return cells


def _is_same(a: Run, b: Run) -> bool:
    alike = a.result["learner"]["key"] == b.result["learner"]["key"]
    return alike and np.array_equal(a.predictions.prediction, b.predictions.prediction)


def is_elsewhere(row: tuple[str, str], cells: Cells) -> bool:
    """Whether another row, which has more or comes first, has all that this one has."""
    order, own = list(cells), cells[row]
    return any(
        (len(runs), -order.index(other)) > (len(own), -order.index(row))
        and all(slot in runs and _is_same(one.run, runs[slot].run) for slot, one in own.items())
        for other, runs in cells.items()
        if other[0] == row[0] and other != row
    )


def lacking(own: Mapping[Slot, Told], told: Sequence[Told]) -> Iterator[str]:
    """What other rows have and this one has not, a line a column.

    Args:
        own: Runs of the row.
        told: All runs.
    """
    for paradigm in dict.fromkeys(one.paradigm for one in told):
        every = {one.slot: one for one in told if one.paradigm == paradigm}
        there = {one.place[1] for slot, one in own.items() if slot in every}
        gone = dict.fromkeys(str(one.place[1]) for one in every.values() if one.place[1] not in there)
        n = sum(slot in own for slot in every)
        if not n:
            yield f"no run of {paradigm}"
        elif n < len(every):
            of = f", none of {_SEEDS[next(iter(every.values())).unit]}={','.join(gone)}" if gone else ""
            yield f"{paradigm} has {n} of {len(every)} repetitions{of}"
