"""Students of a sweep by what they were trained on: each figure over seeds."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.comparison import SEEDS, Side, comparable
from lgclip.robustness import Line, Share, baseline, effective_robustness
from lgclip.runs import Run, differing, find_runs
from lgclip.seed_rows import TOP1, Figure, Row

REAL, BASIC = "real", "basic"
"""Names of the training sets that others are compared with."""
MEMBERSHIP = ("auroc", "balanced_accuracy", "held_out_balanced_accuracy")
"""Columns beside `top1`; `inside`, top-1 in distribution over the classes of a shifted set; and `rho`, the effective
robustness."""
_JUDGED_ON = ("ckpt", "membership", "ood")  # what they were judged on, or where they lie


class StudentsError(ValueError):
    """Runs that make no table of students; the message says why."""


@dataclass(frozen=True)
class Students:
    """What a sweep says of its students.

    Attributes:
        rows: Students by what they were trained on, then the methods beside, which have no runs of their own.
        shifted: Names of the shifted sets.
        lines: The baseline of each shifted set through the runs on real images; none without such a run.
        left_out: Runs of other methods.
    """

    rows: Sequence[Row]
    shifted: Sequence[str]
    lines: Mapping[str, Line]
    left_out: int

    @property
    def figures(self) -> list[Figure]:
        """Every column, whether or not a run tells it."""
        by_set = [Figure(kind, name) for kind in ("top1", "inside", "rho") for name in self.shifted]
        return [TOP1, *by_set, *(Figure(kind) for kind in MEMBERSHIP)]


def read_students(folder: Path) -> Students:
    """The students of a sweep.

    A student that was judged twice counts once, by the run that tells most.

    Raises:
        RunError: If the folder holds no finished run.
        ComparisonError: If the runs did not judge the same images.
        StudentsError: If no run judged a student, or two students of one setting have the same seed.
    """
    found = find_runs([folder])
    own: dict[str, Run] = {}
    for run in (run for run in found if run.result.get("student")):
        key = str(run.result["student"]["key"])
        if key not in own or _told(run) > _told(own[key]):
            own[key] = run
    if not own:
        raise StudentsError(
            f"{folder} holds no run of a student, of {len(found)} in all: run evaluate.py method=student"
        )
    runs = list(own.values())
    for run in runs[1:]:
        comparable(runs[0], run)
    shifted = list(dict.fromkeys(name for run in runs for name in _shifted(run)))
    lines = _lines(runs, shifted)
    rows = _rows(runs, lines)
    others = sum(not run.result.get("student") for run in found)
    return Students([*rows, *_beside(rows, lines)], shifted, lines, others)


def _told(run: Run) -> tuple[int, bool]:
    return len(_shifted(run)), bool(run.result.get("membership"))


def _shifted(run: Run) -> Mapping[str, Any]:
    return run.result.get("ood") or {}


def _training_set(run: Run) -> Mapping[str, Any]:
    return run.result["student"]["trained_on"]


def is_mixed(row: Row) -> bool:
    """Whether a row's students saw real and synthetic images."""
    return any(of["real"] and of["synthetic"] for (side,) in row.runs.values() for of in [_training_set(side.run)])


def trained_on(run: Run) -> str:
    """What a student was trained on: `real`, the form of the prompts, or `form + share of real`."""
    said = _training_set(run)
    form = said.get("form") or "synthetic"  # a student of unknown prompts
    if not said["synthetic"]:
        return REAL
    return f"{form} + {100 * said['mix']:g}% {REAL}" if said["real"] else form


def _rows(runs: Sequence[Run], lines: Mapping[str, Line]) -> list[Row]:
    """Runs by what they were trained on and by their settings, then by seed.

    Real images come first, then the basic prompt, other prompts, mixtures.
    """
    apart = {
        key: values
        for key, values in differing(runs).items()
        if key.rpartition(".")[2] not in SEEDS and key.partition(".")[0] not in _JUDGED_ON and key != "student.mix"
    }
    groups: dict[tuple[str, str], dict[int, Run]] = {}
    settings: dict[tuple[str, str], dict[str, Any]] = {}
    for i, run in enumerate(runs):
        student = run.result["student"]
        own = {key: values[i] for key, values in apart.items()}
        own |= {key: student[key] for key in ("backbone", "selected_on")}
        group = (trained_on(run), json.dumps(own, sort_keys=True, ensure_ascii=False))
        settings[group] = own
        before = groups.setdefault(group, {}).setdefault(int(student["seed"]), run)
        if before is not run:
            raise StudentsError(
                f"{before.folder} and {run.folder} judged two students of the same setting and seed "
                f"{student['seed']}: leave one of them out of a mean over seeds"
            )
    found = [
        Row(
            group[0],
            _apart(group, settings),
            {seed: _values(run, lines) for seed, run in by_seed.items()},
            {("", seed): [Side(run)] for seed, run in by_seed.items()},
        )
        for group, by_seed in groups.items()
    ]
    return sorted(found, key=lambda row: (row.name != REAL, is_mixed(row), row.name != BASIC, row.name, row.apart))


def _apart(group: tuple[str, str], settings: Mapping[tuple[str, str], Mapping[str, Any]]) -> str:
    """The settings in which a group differs from others of the same training set."""
    alike = [own for other, own in settings.items() if other[0] == group[0]]
    told = [(key, value) for key, value in settings[group].items() if any(own[key] != value for own in alike)]
    return ", ".join(f"{key}={value}" for key, value in told)


def _lines(runs: Sequence[Run], shifted: Sequence[str]) -> dict[str, Line]:
    """What accuracy in distribution foretells, by the students of real images."""
    real = [run for run in runs if trained_on(run) == REAL]
    pairs = {name: [pair for run in real if (pair := _pair(run, name))] for name in shifted}
    return {name: baseline(*zip(*own, strict=True)) for name, own in pairs.items() if own}


def _pair(run: Run, name: str, column: str | None = None) -> tuple[Share, Share] | None:
    """Accuracy in distribution and shifted, over the same classes; None where they are not told."""
    told = _shifted(run).get(name)
    if told is None or (column is not None and column not in told["beside"]):
        return None
    if column is None:
        inside = told["shift"]["in_distribution"]
        return Share(inside["top1"], inside["n"]), Share(told["metrics"]["top1"], told["n"])
    inside = Share(told["in_distribution_beside"][column]["top1"], told["shift"]["in_distribution"]["n"])
    return inside, Share(told["beside"][column]["top1"], told["n"])


def _values(run: Run, lines: Mapping[str, Line], column: str | None = None) -> dict[Figure, float]:
    """Figures of a run's student, or of a method beside it."""
    own = run.result["metrics"] if column is None else run.result["beside"][column]
    values = {TOP1: float(own["top1"])}
    for name, told in _shifted(run).items():
        judged = told["metrics"] if column is None else told["beside"].get(column)
        if judged:
            values[Figure("top1", name)] = float(judged["top1"])
        if pair := _pair(run, name, column):
            values[Figure("inside", name)] = pair[0].top1
            if name in lines:
                values[Figure("rho", name)] = effective_robustness(*pair, lines[name])["rho"]
    membership = (run.result.get("membership") if column is None else None) or {}
    return values | {Figure(kind): membership[kind] for kind in MEMBERSHIP if membership.get(kind) is not None}


def _beside(rows: Sequence[Row], lines: Mapping[str, Line]) -> Iterator[Row]:
    """The methods beside: one row where no run changes one, else one for each of what the students were trained on."""
    runs = [side.run for row in rows for (side,) in row.runs.values()]
    for column in dict.fromkeys(name for run in runs for name in run.result["beside"]):
        told = {
            row.label: {
                seed: _values(side.run, lines, column)
                for (_, seed), (side,) in row.runs.items()
                if column in side.run.result["beside"]
            }
            for row in rows
        }
        every = [values for by_seed in told.values() for values in by_seed.values()]
        if all(values == every[0] for values in every):
            yield Row(column, "", {0: every[0]}, {})
            continue
        alike: dict[str, list[str]] = {}
        for label, by_seed in told.items():
            if by_seed:
                alike.setdefault(repr(by_seed), []).append(label)
        for labels in alike.values():
            yield Row(column, f"beside {' and '.join(labels)}", told[labels[0]], {})
