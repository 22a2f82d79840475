"""Reads the compared results: each is one method of a run on one data set."""

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from lgclip.reporting.result_schema import Metrics
from lgclip.reporting.run_folder import Run, find_runs

# The order matters: the seeds of a training stand before the run's own seed, which they follow by default. Where both
# vary, the sample of a mean is the trainings.
SEEDS = (
    "prompt_tuning.seed",
    "student.seed",
    "paradigm.split_seed",
    "paradigm.shots_seed",
    "seed",
    "prompt_order_seed",
)
"""Settings that make a repetition of a run, not another setting; the first that varies is the sample of a mean."""


class ComparisonError(ValueError):
    """Reports runs that cannot be compared; the message says why and how to fix it."""


@dataclass(frozen=True)
class MethodResult:
    """Holds the predictions of one method for the images of one data set.

    Attributes:
        run: The run.
        baseline: Name of a baseline that the run evaluated too; None for its own method.
        shifted_set: Name of an out-of-distribution set; None for the data set of the run.
    """

    run: Run
    baseline: str | None = None
    shifted_set: str | None = None

    @property
    def method(self) -> str:
        """Returns the name of the method."""
        return self.baseline or self.run.result.method

    @property
    def dataset(self) -> str:
        """Returns the name of the data set."""
        return self.shifted_set or self.run.result.dataset.name

    @property
    def metrics(self) -> Metrics:
        """Returns its metrics, as in result.json."""
        if self.shifted_set is None:
            return self.run.result.metrics_of(self.method)
        shifted = self.run.result.ood[self.shifted_set]
        if self.baseline is None:
            return shifted.metrics
        return shifted.baselines[self.baseline]

    @property
    def seen(self) -> str:
        """Returns which kinds of data of the evaluated domain the method has seen."""
        return self.run.result.seen[self.method].kind

    @property
    def prediction(self) -> Int[np.ndarray, " n"]:
        """Returns the predicted class of each image of the run's data set."""
        predictions = self.run.predictions
        if self.baseline is None:
            return predictions.prediction
        return predictions.baselines[self.baseline]

    @property
    def learned_key(self) -> str | None:
        """Returns the key of the student or of the tuned prompts; None for a method that trains nothing."""
        # A baseline uses nothing of what the run learned, so the key of the run must not distinguish two baselines.
        if self.baseline is not None:
            return None
        learned = self.run.result.student or self.run.result.prompt_tuning
        return learned.key if learned else None

    @property
    def identity(self) -> tuple[Path, str | None, str | None]:
        """Returns a unique identifier of the result."""
        # Resolved, so that a folder named twice (`runs/1` and `runs/../runs/1`) is one run.
        return self.run.folder.resolve(), self.baseline, self.shifted_set

    @property
    def repetition(self) -> tuple[Hashable, ...]:
        """Returns the value of each of `SEEDS`."""
        result = self.run.result
        values: list[Hashable] = []
        for name in SEEDS:
            group, _, key = name.rpartition(".")
            part = result.config
            if group:
                part = result.config.get(group)
            # A group is absent or None where the run has no such part, as `student` in a run of prototypes.
            values.append(part.get(key) if part else None)
        # A run with `checkpoint=` evaluates what another run trained: its config does not contain the training's
        # seed, but
        # what was learned does.
        if result.prompt_tuning is not None:
            values[SEEDS.index("prompt_tuning.seed")] = result.prompt_tuning.seed
        if result.student is not None:
            values[SEEDS.index("student.seed")] = result.student.seed
        return tuple(values)

    def is_equal_to(self, other: "MethodResult") -> bool:
        """Returns whether another result has the same learned weights and the same predictions."""
        if self.learned_key != other.learned_key or self.metrics != other.metrics:
            return False
        # predictions.csv holds the run's own data set; of shifted sets only metrics are kept.
        if self.shifted_set is not None:
            return True
        # Equal metrics do not suffice: two methods may have the same accuracy with errors on other images.
        return np.array_equal(self.prediction, other.prediction)


def read_result(text: str) -> MethodResult:
    """Returns the result that `RUN` or `RUN:METHOD` names.

    Raises:
        RunError: If there is no finished run.
        ComparisonError: If the run did not evaluate the method.
    """
    folder, method = split_place(text)
    return _result(Run.read(folder), method)


def read_results(places: Sequence[str]) -> list[MethodResult]:
    """Returns the results of all runs in or below some folders, each with `:METHOD` for a baseline.

    Raises:
        RunError: If a folder has no finished run.
        ComparisonError: If no folder is named, or a run did not evaluate the method.
    """
    if not places:
        raise ComparisonError("no run is named: name the folders of runs or sweeps")
    results = []
    for place in places:
        folder, method = split_place(place)
        results += [_result(run, method) for run in find_runs([folder])]
    # Folders may overlap: a sweep and one of its jobs. A run that counts twice would shrink the intervals.
    return list({result.identity: result for result in results}.values())


def split_place(text: str) -> tuple[Path, str | None]:
    """Splits `FOLDER:METHOD`; folder names may contain a colon, so an existing folder takes precedence."""
    folder = Path(text).expanduser()
    # From the right, as only the folder may hold a colon, for instance in a time (`12:30`); a method has none.
    head, colon, method = text.rpartition(":")
    if folder.exists() or not colon:
        return folder, None
    return Path(head).expanduser(), method


def _result(run: Run, method: str | None) -> MethodResult:
    if method is None or method == run.result.method:
        return MethodResult(run)
    if method not in run.result.baselines:
        names = ", ".join([run.result.method, *run.result.baselines])
        raise ComparisonError(f"{run.folder} did not evaluate {method!r}: choose one of {names}")
    return MethodResult(run, method)


def with_baselines(results: Sequence[MethodResult], methods: Collection[str] | None) -> list[MethodResult]:
    """Adds the baselines of the runs, after the runs' own methods.

    Args:
        results: Results of runs.
        methods: Names of the methods to keep; None keeps all.

    Raises:
        ComparisonError: If no run evaluated one of the methods.
    """
    extended = list(results)
    for result in results:
        if result.baseline is None:
            extended += [MethodResult(result.run, name) for name in result.run.result.baselines]
    # A place such as RUN:clip_text has put a baseline among the results already.
    extended = list({result.identity: result for result in extended}.values())
    if methods is None:
        return extended
    names = list(dict.fromkeys(result.method for result in extended))
    for name in methods:
        if name not in names:
            raise ComparisonError(f"no run evaluated {name!r}: choose among {', '.join(names)}")
    return [result for result in extended if result.method in methods]


def with_shifted_sets(results: Sequence[MethodResult]) -> Iterator[MethodResult]:
    """Yields each result, and those of the same method on the out-of-distribution sets of the run."""
    for result in results:
        yield result
        for name, shifted in result.run.result.ood.items():
            # A run need not evaluate each of its baselines on each shifted set.
            if result.baseline is None or result.baseline in shifted.baselines:
                yield MethodResult(result.run, result.baseline, name)


def check_comparable(a: Run, b: Run) -> None:
    """Checks that two runs evaluated the same images with the same classes.

    Raises:
        ComparisonError: If they did not; it names everything in which they differ.
    """
    first = a.result
    second = b.result
    pairs: dict[str, tuple[object, object]] = {
        "data set's name": (first.dataset.name, second.dataset.name),
        "data set's split": (first.dataset.split, second.dataset.split),
        "data set's names": (first.dataset.names, second.dataset.names),
        "images' content": (first.dataset.fingerprint, second.dataset.fingerprint),
        "number of images": (first.n, second.n),
        "number of classes": (first.num_classes, second.num_classes),
    }
    # All differences are collected before the error is raised, so that the user can mend them in one go.
    differences = [f"{field} {x!r} and {y!r}" for field, (x, y) in pairs.items() if x != y]
    # The files are compared only where their lengths agree; otherwise the count above says it already.
    if first.num_classes == second.num_classes:
        names = zip(a.class_names, b.class_names, strict=True)
        renamed = [(c, x, y) for c, (x, y) in enumerate(names) if x != y]
        if renamed:
            # One example is enough: with another list of names nearly all of the classes differ.
            c, x, y = renamed[0]
            differences.append(f"name of class {c} {x!r} and {y!r}, one of {len(renamed)}")
    # Equal numbers of images do not suffice: each run may have skipped another image, and a paired test would then
    # compare predictions of different images.
    if a.left_out != b.left_out:
        counts = [_describe_left_out(a.left_out), _describe_left_out(b.left_out)]
        differences.append(f"images left out as unreadable, {' and '.join(counts)}")
    if first.n == second.n:
        unequal = int((a.predictions.label != b.predictions.label).sum())
        if unequal:
            differences.append(f"labels of {unequal} images")
    if differences:
        raise ComparisonError(
            f"{a.folder} and {b.folder} were not evaluated on the same images: they differ in the "
            f"{'; the '.join(differences)}."
            " Compare runs of one data set with one list of names"
        )


def _describe_left_out(places: Sequence[int]) -> str:
    if not places:
        return "none"
    return f"{len(places)} (first {places[:3]})"
