"""Run folders to the data of the page that compares them."""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lgclip import __version__
from lgclip.comparison import ComparisonError, Side, comparable, compare, seed_groups
from lgclip.costs import add_up
from lgclip.dashboard import rows
from lgclip.dashboard.shape import Axis, Comparison, Page, RunData, SeedGroup
from lgclip.jobs import FAILED, SWEEP
from lgclip.runs import RESULT, Run, RunError, differing, find_runs, settings_of
from lgclip.statistics import over_seeds

CLASS_ROWS = 100_000
"""Rows of classes on a page at most, over all runs."""

LONGEST = 60
"""Characters of a setting in a run's name at most; templates can be pages long."""

VALUES = 250_000
"""Diagnostics of classes on a page at most, over all runs."""


def collect(places: Sequence[Path], *, title: str, reference: Path | None, images: int) -> Page:
    """All that the page shows.

    Args:
        places: Folders of runs and of sweeps.
        title: The page's title; empty for one that says what was judged.
        reference: The run that the others are compared with; None for the first.
        images: Pictures of a class in a run's gallery at most; 0 for a page without pictures.

    Raises:
        ValueError: If a folder holds no run, or not a single run has finished.
    """
    runs, failures = _found(places)
    first = Run.read(reference) if reference else runs[0]
    known = [run.folder.resolve() for run in runs]
    if first.folder.resolve() not in known:
        runs, known = [first, *runs], [first.folder.resolve(), *known]
    at = known.index(first.folder.resolve())
    data = [rows.finished(run, number) for number, run in enumerate(runs)]
    lost = [rows.failed(folder, len(runs) + number) for number, folder in enumerate(failures)]
    axes = _axes(runs, data, lost)
    _name([*data, *lost])
    lists = _class_lists(runs, data)
    order = _order(data, at)
    groups, notes = _groups(runs)
    notes += [*_unfinished(places), *_trim(order)]
    thumbs: dict[str, str] = {}
    if images:
        from lgclip.dashboard.thumbnails import illustrate

        thumbs, more = illustrate([(runs[one["id"]], one) for one in order], images)
        notes += more
    sets = ", ".join(dict.fromkeys(one["dataset"] for one in data))
    return Page(
        title=title or f"{sets}: {len(runs)} run{'s' * (len(runs) > 1)}",
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        axes=axes,
        runs=[*data, *lost],
        reference=at,
        comparisons=_comparisons(runs, at),
        groups=groups,
        class_lists=lists,
        made_before=_made_before(runs),
        thumbs=thumbs,
        notes=notes,
    )


def _made_before(runs: Sequence[Run]) -> float | None:
    results = [run.result for run in runs]
    return add_up(results)["made_before"]["seconds"] if all(result.get("cost") for result in results) else None


def _found(places: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """The finished runs, and the folders of jobs that failed; a job that failed and was run again is finished."""
    failures = (path.parent for place in places for path in sorted(place.rglob(FAILED), key=_by_number))
    once = {folder.resolve(): folder for folder in failures}
    lost = [folder for folder in once.values() if not (folder / RESULT).is_file()]
    told = [place for place in places if any(place.rglob(RESULT)) or not any(place.rglob(FAILED))]
    if not told:
        raise RunError(f"{', '.join(map(str, places))}: all {len(lost)} jobs failed, so there is no figure to show")
    return find_runs(told), lost


def _by_number(path: Path) -> tuple[Path, int, str]:
    name = path.parent.name
    return path.parent.parent, int(name) if name.isdecimal() else -1, name


def _axes(runs: Sequence[Run], data: Sequence[RunData], lost: Sequence[RunData]) -> list[Axis]:
    """The settings in which runs differ, each run's own value filled in.

    What a job that failed was told counts too; what it was not told is not known of it.
    """
    apart = _apart(runs)
    asked = {key: value for one in lost for key, value in one["config"].items()}
    for key in [key for key in asked if key not in apart]:
        own = [one["config"].get(key) for one in data]
        if any(key in one["config"] and one["config"][key] != own[0] for one in lost):
            apart[key] = own
    for number, one in enumerate(data):
        one["axes"] = {key: column[number] for key, column in apart.items()}
    for one in lost:
        one["axes"] = {key: one["config"][key] for key in apart if key in one["config"]}
    return [_axis(key, [one["axes"][key] for one in (*data, *lost) if key in one["axes"]]) for key in apart]


def _apart(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """As `differing`, and the values in which runs with the same choice of a part differ, such as `learner.seed`."""
    if len(runs) < 2:
        return {}
    apart = differing(runs)
    told = [settings_of(run) for run in runs]
    for group in [key for key in apart if key in runs[0].result["choices"]]:
        chosen = [json.dumps(choice) for choice in apart[group]]
        for choice in dict.fromkeys(chosen):
            own = [run for run, one in zip(runs, chosen, strict=True) if one == choice]
            inside = (key for key in differing(own) if key.startswith(f"{group}."))
            apart |= {key: [one.get(key) for one in told] for key in inside}
    return apart


def _axis(key: str, column: Sequence[Any]) -> Axis:
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    keys = map(float, column) if numeric else (json.dumps(value, sort_keys=True) for value in column)
    values = list(dict(zip(keys, column, strict=True)).values())  # 3 and 3.0 are one
    return Axis(key=key, values=sorted(values) if numeric else values, numeric=numeric)


def _name(every: Sequence[RunData]) -> None:
    """A name that tells a run from the others: its axes, and its folder where they are the same."""
    for one in every:
        told = one["axes"] if one["metrics"] else {**one["config"], **one["axes"]}
        names = [f"{key}={_text(told[key])}" for key in told]
        one["name"] = ", ".join(names) or ", ".join(filter(None, (one["dataset"], one["method"]))) or one["folder"]
    twice = Counter(one["name"] for one in every)
    for one in every:
        if twice[one["name"]] > 1:
            one["name"] += f" [{one['folder']}]"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _class_lists(runs: Sequence[Run], data: Sequence[RunData]) -> list[list[str]]:
    lists: dict[tuple[str, ...], int] = {}
    for run, one in zip(runs, data, strict=True):
        one["class_list"] = lists.setdefault(tuple(run.class_names), len(lists))
    return [list(names) for names in lists]


def _order(data: Sequence[RunData], reference: int) -> list[RunData]:
    """Which runs keep their details if not all can: the reference, the best of each data set, then as they come."""
    best: dict[str, RunData] = {}
    for one in data:
        if one["dataset"] not in best or _top1(one) > _top1(best[one["dataset"]]):
            best[one["dataset"]] = one
    chosen = [reference, *(one["id"] for one in best.values()), *range(len(data))]
    return [data[number] for number in dict.fromkeys(chosen)]


def _top1(one: RunData) -> float:
    assert one["metrics"] is not None
    return float(one["metrics"]["top1"])


def _trim(order: Iterable[RunData]) -> list[str]:
    """Leaves out what would make the page too large for a browser, and says so."""
    rows_left, values_left, without, bare = CLASS_ROWS, VALUES, 0, 0
    for one in order:
        rows_left -= len(one["classes"])
        if rows_left < 0:
            one["classes"] = []
            without += 1
        values_left -= sum(map(len, one["diagnostics"].values()))
        if values_left < 0 and one["diagnostics"]:
            one["diagnostics"] = {}
            bare += 1
    told = ((without, "accuracies of classes", "per_class.csv"), (bare, "diagnostics of classes", "diagnostics.csv"))
    return [f"The {what} of {count} runs are left out; their {file} holds them." for count, what, file in told if count]


def _unfinished(places: Sequence[Path]) -> list[str]:
    """A note on each sweep that has jobs with neither a result nor an error."""
    notes = []
    for path in sorted({path for place in places for path in place.rglob(SWEEP)}):
        try:
            jobs = len(json.loads(path.read_text(encoding="utf-8"))["jobs"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: start the sweep again in another folder") from error
        ended = [any((path.parent / str(job) / name).is_file() for name in (RESULT, FAILED)) for job in range(jobs)]
        if not all(ended):
            notes.append(f"{ended.count(False)} of {jobs} jobs of {path.parent} are not finished.")
    return notes


def _comparisons(runs: Sequence[Run], reference: int) -> list[Comparison]:
    """Each run's paired test against the reference, or why there is none; all tests are one family."""
    told: dict[int, Comparison] = {}
    for number, run in enumerate(runs):
        if number == reference:
            continue
        told[number] = Comparison(run=number, difference=None, ci95=None, p=None, p_holm=None, reason=None)
        try:
            comparable(run, runs[reference])
        except ComparisonError as error:
            told[number]["reason"] = str(error)
    fit = [number for number, one in told.items() if one["reason"] is None]
    tests = compare([Side(runs[number]) for number in fit], Side(runs[reference])) if fit else []
    for number, one in zip(fit, tests, strict=True):
        shown = told[number]
        shown["difference"], shown["ci95"] = one.test["difference"], one.test["ci95"]
        shown["p"], shown["p_holm"] = one.test["p"], one.p_holm
    return list(told.values())


def _groups(runs: Sequence[Run]) -> tuple[list[SeedGroup], list[str]]:
    """Runs that differ in their seeds alone; none, and a note, where two of them contradict each other."""
    try:
        found = seed_groups([Side(run) for run in runs])
    except ComparisonError as error:
        return [], [f"Means over seeds are not shown: {error}"]
    numbers = {run.folder: number for number, run in enumerate(runs)}
    groups = []
    for group in found:
        told = over_seeds(group.values)
        members = [numbers[side.run.folder] for side in group.sides]
        groups.append(
            SeedGroup(axes=dict(group.settings), runs=members, mean=told["mean"], ci95=told["ci95"], std=told["std"])
        )
    return groups, []
