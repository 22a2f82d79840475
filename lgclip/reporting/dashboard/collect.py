"""Collects the data of the page that compares runs from their folders."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any

from lgclip import __version__
from lgclip.evaluation.metrics import over_seeds
from lgclip.reporting.comparison.results import ComparisonError, MethodResult, check_comparable
from lgclip.reporting.comparison.significance import compare_with_run
from lgclip.reporting.comparison.table import Cell, build_table
from lgclip.reporting.costs import add_up
from lgclip.reporting.dashboard import rows
from lgclip.reporting.dashboard.schema import Axis, Comparison, Page, RunData, SeedGroup
from lgclip.reporting.run_folder import RESULT, Run, RunError, differing, find_runs, settings_of
from lgclip.runtime.sweep_job import FAILED, SWEEP

CLASS_ROWS = 100_000
"""Maximum number of class rows on a page, over all runs."""

LONGEST = 60
"""Maximum number of characters of a setting in a run's name; templates can be pages long."""

CELLS = 30_000
"""Maximum number of cells of confusion matrices on a page, over all runs."""

VALUES = 250_000
"""Maximum number of class diagnostics on a page, over all runs."""


def collect(places: Sequence[Path], *, title: str, reference: Path | None, images: int) -> Page:
    """Collects the content of the page.

    Args:
        places: Folders of runs and of sweeps.
        title: The page's title; empty for one that names the evaluated data.
        reference: The run that the others are compared with; None for the first.
        images: Maximum number of images of a class in a run's gallery; 0 for a page without images.

    Raises:
        ValueError: If a folder holds no run, or no run has finished.
    """
    runs, failures = _find_runs(places)
    first = Run.read(reference) if reference else runs[0]
    # By resolved folders: the reference may be named by another path than the sweep that it is a job of.
    folders = [run.folder.resolve() for run in runs]
    if first.folder.resolve() not in folders:
        runs = [first, *runs]
        folders = [first.folder.resolve(), *folders]
    reference_id = folders.index(first.folder.resolve())
    # The id of a run is its place in `runs`; failed jobs are numbered after them. The page looks runs up by it.
    data = [rows.finished(run, number) for number, run in enumerate(runs)]
    failed_jobs = [rows.failed(folder, len(runs) + number) for number, folder in enumerate(failures)]
    # Names are made of the axes, so the axes come first.
    axes = _axes(runs, data, failed_jobs)
    _name([*data, *failed_jobs])
    lists = _class_lists(runs, data)
    order = _order(data, reference_id)
    groups, notes = _groups(runs)
    notes += [*_unfinished(places), *_trim(order)]
    thumbs: dict[str, str] = {}
    if images:
        # Images need the data set and the store, which a page without images does not load.
        from lgclip.reporting.dashboard.thumbnails import illustrate

        thumbs, image_notes = illustrate([(runs[run_data["id"]], run_data) for run_data in order], images)
        notes += image_notes
    sets = ", ".join(dict.fromkeys(run_data["dataset"] for run_data in data))
    return Page(
        title=title or f"{sets}: {len(runs)} run{'s' * (len(runs) > 1)}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        version=__version__,
        axes=axes,
        runs=[*data, *failed_jobs],
        reference=reference_id,
        comparisons=_comparisons(runs, reference_id),
        groups=groups,
        class_lists=lists,
        computed_before=add_up([run.result for run in runs]).reused_seconds,
        thumbs=thumbs,
        notes=notes,
    )


def _find_runs(places: Sequence[Path]) -> tuple[list[Run], list[Path]]:
    """Returns the finished runs, and the folders of failed jobs; a job that failed and was repeated is finished."""
    folders: dict[Path, Path] = {}  # by the resolved path, as places may overlap
    for place in places:
        for path in sorted(place.rglob(FAILED), key=_by_number):
            folders[path.parent.resolve()] = path.parent
    # failed.json stays when the job is run again and succeeds.
    failures = [folder for folder in folders.values() if not (folder / RESULT).is_file()]
    # `find_runs` refuses a place without a result. A sweep whose jobs all failed is no mistake of the user, so it is
    # kept from it; a place with neither goes on to it and gets its error.
    readable = [place for place in places if any(place.rglob(RESULT)) or not any(place.rglob(FAILED))]
    if not readable:
        raise RunError(f"{', '.join(map(str, places))}: all {len(failures)} jobs failed, so there is nothing to show")
    return find_runs(readable), failures


def _by_number(path: Path) -> tuple[Path, int, str]:
    # As numbers, because job 10 comes after job 9.
    name = path.parent.name
    return path.parent.parent, int(name) if name.isdecimal() else -1, name


def _axes(runs: Sequence[Run], data: Sequence[RunData], lost: Sequence[RunData]) -> list[Axis]:
    """Returns the settings in which runs differ, with the value of each run whose method uses the setting.

    The overrides of a failed job count too; its other settings are unknown.
    """
    apart = _apart(runs)
    overridden = dict.fromkeys(chain.from_iterable(job["config"] for job in lost))
    for key in overridden:
        if key in apart:
            continue
        # All finished runs agree here. The key is an axis if a failed job has another value, as when all jobs
        # with one value ran out of memory.
        column = [run["config"].get(key) for run in data]
        if any(key in job["config"] and job["config"][key] != column[0] for job in lost):
            apart[key] = column
    for number, run in enumerate(data):
        result = runs[number].result
        run["axes"] = {key: column[number] for key, column in apart.items() if rows.is_used(key, result)}
    for job in lost:
        # A failed job has no resolved config, only its overrides.
        job["axes"] = {key: job["config"][key] for key in apart if key in job["config"]}
    axes = []
    for key in apart:
        column = [run["axes"][key] for run in (*data, *lost) if key in run["axes"]]
        # The runs that use the setting may all have one value of it: then it distinguishes none of them.
        if any(value != column[0] for value in column):
            axes.append(_axis(key, column))
            continue
        for run in (*data, *lost):
            run["axes"].pop(key, None)
    return axes


def _apart(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns `differing`, and values in which runs with the same choice of a part differ: `prompt_tuning.seed`."""
    if len(runs) < 2:
        return {}
    apart = differing(runs)
    settings = [settings_of(run) for run in runs]
    # `differing` lets a choice stand for its values. Runs with one choice may still differ in them, and the page would
    # show such runs under the same name. The list is made first, because keys are added to `apart` meanwhile.
    for group in [key for key in apart if key in runs[0].result.choices]:
        choices = [json.dumps(choice) for choice in apart[group]]
        for choice in dict.fromkeys(choices):
            members = [run for run, run_choice in zip(runs, choices, strict=True) if run_choice == choice]
            for key in differing(members):
                if key.startswith(f"{group}."):
                    apart[key] = [values.get(key) for values in settings]
    return apart


def _axis(key: str, column: Sequence[Any]) -> Axis:
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in column)
    unique: dict[float | str, Any] = {}
    for value in column:
        # 3 and 3.0 are one value of a number; lists and mappings cannot be hashed, but their JSON can.
        unique[float(value) if numeric else json.dumps(value, sort_keys=True)] = value
    values = list(unique.values())
    if numeric:
        values.sort()
    return Axis(key=key, values=values, numeric=numeric)


def _name(every: Sequence[RunData]) -> None:
    """Returns a name that distinguishes a run from the others: its axes, and its folder where they are the same."""
    for run in every:
        settings = run["axes"]
        if not run["metrics"]:  # of a failed job all overrides are shown: any of them may be the reason
            settings = {**run["config"], **settings}
        names = [f"{key}={_text(value)}" for key, value in settings.items()]
        # A single run differs in nothing, and an unfinished one has neither data set nor method.
        run["name"] = ", ".join(names) or ", ".join(filter(None, (run["dataset"], run["method"]))) or run["folder"]
    # Counted before any name is changed, so that both of two equal names get their folder.
    counts = Counter(run["name"] for run in every)
    for run in every:
        if counts[run["name"]] > 1:
            run["name"] += f" [{run['folder']}]"


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= LONGEST:
        return text
    return f"{text[: LONGEST - 1]}…"


def _class_lists(runs: Sequence[Run], data: Sequence[RunData]) -> list[list[str]]:
    # Once per list and not per run: a thousand names in each of a hundred runs would be most of the page.
    lists: dict[tuple[str, ...], int] = {}
    for run, run_data in zip(runs, data, strict=True):
        run_data["class_list"] = lists.setdefault(tuple(run.class_names), len(lists))
    return [list(names) for names in lists]


def _order(data: Sequence[RunData], reference: int) -> list[RunData]:
    """Returns the order in which runs keep their details: the reference, the best of each data set, then the others."""
    best: dict[str, RunData] = {}
    for run in data:
        # Strictly better, so that the first of equal runs stays and the page is the same each time.
        if run["dataset"] not in best or _top1(run) > _top1(best[run["dataset"]]):
            best[run["dataset"]] = run
    numbers = [reference, *(run["id"] for run in best.values()), *range(len(data))]
    return [data[number] for number in dict.fromkeys(numbers)]


def _top1(run_data: RunData) -> float:
    assert run_data["metrics"] is not None
    return float(run_data["metrics"]["top1"])


def _trim(order: Iterable[RunData]) -> list[str]:
    """Drops details that would make the page too large for a browser, and adds a note."""
    rows_left = CLASS_ROWS
    values_left = VALUES
    cells_left = CELLS
    without_classes = 0
    without_diagnostics = 0
    without_matrix = 0
    for run in order:
        # The count goes on below zero: once a run did not fit, no later and smaller one takes its place, so that what
        # is left out is always the end of the order.
        rows_left -= len(run["classes"])
        if rows_left < 0:
            run["classes"] = []
            without_classes += 1
        values_left -= sum(map(len, run["diagnostics"].values()))
        if values_left < 0 and run["diagnostics"]:
            run["diagnostics"] = {}
            without_diagnostics += 1
        cells_left -= len(run["matrix"])
        if cells_left < 0 and run["matrix"]:
            run["matrix"] = []
            without_matrix += 1
    trimmed = (
        (without_classes, "accuracies of classes", "per_class.csv"),
        (without_diagnostics, "diagnostics of classes", "diagnostics.csv"),
        (without_matrix, "confusion matrices", "predictions.csv"),
    )
    notes = []
    for count, kind, file in trimmed:
        if count:
            notes.append(f"The {kind} of {count} runs are left out; their {file} holds them.")
    return notes


def _unfinished(places: Sequence[Path]) -> list[str]:
    """Returns a note on each sweep that has jobs with neither a result nor an error."""
    notes = []
    # A set, as places may overlap; sorted, as a set has no order.
    plans = set(chain.from_iterable(place.rglob(SWEEP) for place in places))
    for path in sorted(plans):
        try:
            jobs = len(json.loads(path.read_text(encoding="utf-8"))["jobs"])
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: start the sweep again in another folder") from error
        unfinished = sum(not _has_ended(path.parent / str(job)) for job in range(jobs))
        if unfinished:
            notes.append(f"{unfinished} of {jobs} jobs of {path.parent} are not finished.")
    return notes


def _has_ended(job: Path) -> bool:
    return (job / RESULT).is_file() or (job / FAILED).is_file()


def _comparisons(runs: Sequence[Run], reference: int) -> list[Comparison]:
    """Returns each run's paired test against the reference, or why there is none; all tests are one family."""
    comparisons: dict[int, Comparison] = {}
    for number, run in enumerate(runs):
        if number == reference:
            continue
        comparisons[number] = Comparison(run=number, difference=None, ci95=None, p=None, p_holm=None, reason=None)
        # A page may hold several data sets: that a run has no test is shown with its reason and ends nothing.
        try:
            check_comparable(run, runs[reference])
        except ComparisonError as error:
            comparisons[number]["reason"] = _incomparable(run, runs[reference], error)
    comparable = [number for number, comparison in comparisons.items() if comparison["reason"] is None]
    if not comparable:
        return list(comparisons.values())
    # In one call, because Holm's correction needs the p values of the whole family.
    comparable_results = [MethodResult(runs[number]) for number in comparable]
    tests = compare_with_run(comparable_results, MethodResult(runs[reference]))
    for number, test in zip(comparable, tests, strict=True):
        comparison = comparisons[number]
        comparison["difference"] = test.test["difference"]
        comparison["ci95"] = test.test["ci95"]
        comparison["p"] = test.test["p"]
        comparison["p_holm"] = test.p_holm
    return list(comparisons.values())


def _incomparable(run: Run, reference: Run, error: ComparisonError) -> str:
    """Returns in one sentence why a run is not compared with the reference."""
    data = run.result.dataset
    reference_data = reference.result.dataset
    # The error names folders and hashes of contents, of which the names of two data sets are enough.
    if (data.name, data.split) != (reference_data.name, reference_data.split):
        return f"evaluated on {data.name}, {data.split}; the reference on {reference_data.name}, {reference_data.split}"
    return str(error)


def _groups(runs: Sequence[Run]) -> tuple[list[SeedGroup], list[str]]:
    """Groups runs that differ only in their seeds; returns none, and a note, where two contradict each other."""
    # Without axes each row of the table is a group: results that differ in their seeds alone.
    try:
        table = build_table([MethodResult(run) for run in runs], by=())
    except ComparisonError as error:
        return [], [f"Means over seeds are not shown: {error}"]
    numbers = {run.folder: number for number, run in enumerate(runs)}
    groups = []
    for row in table.rows:
        # One column, so one cell; the unpacking fails should that ever change.
        (cell,) = row.cells.values()
        groups.append(_group(row.settings, cell, [numbers[result.run.folder] for result in cell.results]))
    return groups, []


def _group(settings: Mapping[str, Any], cell: Cell, members: list[int]) -> SeedGroup:
    summary = over_seeds(list(cell.values("top1").values()))
    return SeedGroup(axes=dict(settings), runs=members, mean=summary["mean"], ci95=summary["ci95"], std=summary["std"])
