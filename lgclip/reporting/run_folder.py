"""Reads finished runs from their folders."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lgclip.reporting.result_schema import ResultError, RunResult, from_json
from lgclip.runtime.csv_cells import original_cell

RESULT = "result.json"
PREDICTIONS = "predictions.csv"
PER_CLASS = "per_class.csv"
DIAGNOSTICS = "diagnostics.csv"
"""Names of a run folder's files."""

PREDICTION_COLUMNS = ("index", "label", "prediction", "rank", "confidence")
"""Columns of predictions.csv; one more for each baseline, with the class that it predicts."""


class RunError(ValueError):
    """Reports that a folder holds no finished run, or an incomplete one; the message names it."""


@dataclass(frozen=True)
class Predictions:
    """Holds the predictions of a run, in the data set's order.

    Attributes:
        label: True class.
        prediction: Predicted class.
        rank: Number of classes ranked above the true one.
        confidence: Probability of the predicted class; NaN where it is unknown.
        baselines: The predicted classes of the baselines, by name.
    """

    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    baselines: Mapping[str, Int[np.ndarray, " n"]]


@dataclass(frozen=True)
class Run:
    """Holds a finished run.

    Attributes:
        folder: Its folder.
        result: Content of its result.json.
    """

    folder: Path
    result: RunResult

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Reads the run in a folder.

        Raises:
            RunError: If it holds no finished run, one of another version, or one whose result lacks a field.
        """
        path = folder / RESULT
        if not path.is_file():
            raise RunError(f"{folder} holds no {RESULT}: name the folder of a finished run")
        try:
            return cls(folder, from_json(json.loads(path.read_text(encoding="utf-8")), path))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise RunError(f"{path} is damaged: run it again with rerun=true") from error
        except ResultError as error:
            raise RunError(str(error)) from error

    @cached_property
    def predictions(self) -> Predictions:
        """Returns the content of predictions.csv.

        Raises:
            RunError: If the file lacks an image.
        """
        header, *body = self._rows(PREDICTIONS)
        without = set(self.left_out)
        places = [str(i) for i in range(self.result.images_in_dataset) if i not in without]
        # Every index in its place: comparisons pair the images of two runs by position alone.
        if tuple(header[: len(PREDICTION_COLUMNS)]) != PREDICTION_COLUMNS or [row[0] for row in body] != places:
            raise RunError(f"{self.folder / PREDICTIONS} is incomplete: run it again with rerun=true")
        columns = dict(zip(header, zip(*body, strict=True), strict=True))
        integers = {name: np.array(columns[name], dtype=np.int64) for name in header if name != "confidence"}
        baselines = {name: integers[name] for name in header[len(PREDICTION_COLUMNS) :]}
        # Not a number, or an empty cell, where the method gives no probability.
        confidence = np.array([text or "nan" for text in columns["confidence"]], dtype=np.float64)
        return Predictions(integers["label"], integers["prediction"], integers["rank"], confidence, baselines)

    @property
    def left_out(self) -> list[int]:
        """Returns the indices in the data set of the unreadable images, which were not evaluated."""
        return self.result.left_out

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """Returns the rows of per_class.csv, in the order of the classes."""
        header, *body = self._rows(PER_CLASS)
        return [dict(zip(header, row, strict=True)) for row in body]

    @cached_property
    def diagnostics(self) -> list[dict[str, str]]:
        """Returns the rows of diagnostics.csv, in the order of the classes; empty where no image was used."""
        if not (self.folder / DIAGNOSTICS).is_file():
            return []
        header, *body = self._rows(DIAGNOSTICS)
        return [dict(zip(header, row, strict=True)) for row in body]

    @property
    def class_names(self) -> list[str]:
        """Returns the name of each class."""
        return [row["name"] for row in self.per_class]

    def _rows(self, name: str) -> list[list[str]]:
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path} is not there: run it again with rerun=true")
        # newline="": the csv module reads line ends itself, because a quoted cell may hold one.
        with path.open(newline="", encoding="utf-8") as file:
            return [[original_cell(cell) for cell in row] for row in csv.reader(file)]


def find_runs(places: Sequence[Path]) -> list[Run]:
    """Returns the finished runs in or below some folders; those of each folder in the order of their numbers.

    Raises:
        RunError: If a folder does not exist or holds no finished run.
    """
    runs: dict[Path, Run] = {}  # by the resolved folder, as places may overlap or be links
    for place in places:
        folders = sorted({path.parent for path in place.rglob(RESULT)}, key=_in_order)
        # Per place, not at the end: a mistyped folder must not go unnoticed next to a good one.
        if not folders:
            raise RunError(f"{place} holds no finished run: name the folder of a run or of a sweep")
        runs |= {folder.resolve(): Run.read(folder) for folder in folders}
    return list(runs.values())


def _in_order(folder: Path) -> list[tuple[int, str]]:
    # Job 10 comes after job 9. Pairs, because a number and a word cannot be compared with each other.
    return [(int(part), "") if part.isdigit() else (-1, part) for part in folder.parts]


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """Returns the config values in which runs differ: by dotted key, the value of each run.

    A part whose choice differs replaces its values: `scales`, not `scales.fractions`. Output and logging settings do
    not count, nor does a part's seed that follows the run's, such as `prompt_tuning.seed`: `seed` covers it.
    """
    settings = [settings_of(run) for run in runs]
    columns: dict[str, list[Any]] = {}
    for key in dict.fromkeys(chain.from_iterable(settings)):
        columns[key] = [values.get(key) for values in settings]
    varying: dict[str, list[Any]] = {}
    for key, column in columns.items():
        # `prompt_tuning.seed: ${seed}` is the default, so such a column says nothing that `seed` does not.
        follows_seed = key.endswith(".seed") and column == columns.get("seed")
        # Not by a set: a value may be a list, which cannot be hashed.
        if not follows_seed and any(value != column[0] for value in column):
            varying[key] = column
    # A key without a dot is a choice or a value at the top; the others count unless the choice of their group does.
    return {key: column for key, column in varying.items() if _group(key) == key or _group(key) not in varying}


def _group(key: str) -> str:
    return key.partition(".")[0]


# The config resolves `method.trained` to the values of the groups student, prompt_tuning and paradigm: each of them
# would
# count twice.
_INTERPOLATED = "method.trained."
# Where and how a run runs. `on_bad_image` is among them, because which images were skipped is in the result itself.
_APART = ("logger", "trainer", "paths", "workers", "rerun", "on_bad_image")


def settings_of(run: Run) -> dict[str, Any]:
    """Returns a run's flattened config without output and logging settings; a group's choice is under its name."""
    config = {key: value for key, value in run.result.config.items() if key not in _APART}
    choices = {group: choice for group, choice in run.result.choices.items() if group in config}
    settings = {key: value for key, value in flat(config) if not key.startswith(_INTERPOLATED)}
    # The choice wins over a value of the group's own name, which is there if the group is empty.
    return {**settings, **choices}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Returns the values of nested mappings by dotted key; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
