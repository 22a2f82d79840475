"""Finished runs, read back from their folders."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int

RESULT_SCHEMA = 2
"""Version of result.json: raised when a field changes its meaning."""

RESULT, PREDICTIONS, PER_CLASS, DIAGNOSTICS = "result.json", "predictions.csv", "per_class.csv", "diagnostics.csv"
"""Names of a run folder's files."""

JUDGED = ("index", "label", "prediction", "rank", "confidence")
"""Columns of predictions.csv; one more for each method beside, with the class that it predicts."""


class RunError(ValueError):
    """A folder holds no finished run, or not a whole one; the message names it."""


@dataclass(frozen=True)
class Predictions:
    """What a run said of each image, in the data set's order.

    Attributes:
        label: True class.
        prediction: Predicted class.
        rank: How many classes come before the true one.
        confidence: Probability of the predicted class; not a number where it is not known.
        beside: The classes that the methods beside it predict, by their name.
    """

    label: Int[np.ndarray, " n"]
    prediction: Int[np.ndarray, " n"]
    rank: Int[np.ndarray, " n"]
    confidence: Float[np.ndarray, " n"]
    beside: Mapping[str, Int[np.ndarray, " n"]]


@dataclass(frozen=True)
class Run:
    """A finished run.

    Attributes:
        folder: Where it lies.
        result: Content of its result.json.
    """

    folder: Path
    result: Mapping[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """The run in a folder.

        Raises:
            RunError: If it holds no finished run, or one of another version.
        """
        path = folder / RESULT
        if not path.is_file():
            raise RunError(f"{folder} holds no {RESULT}: name the folder of a finished run")
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            schema = result["schema"]
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise RunError(f"{path} is damaged: run it again with rerun=true") from error
        if schema != RESULT_SCHEMA:
            raise RunError(f"{path} is of version {schema}, this package reads {RESULT_SCHEMA}: run it again")
        return cls(folder, result)

    @cached_property
    def predictions(self) -> Predictions:
        """Content of predictions.csv.

        Raises:
            RunError: If the file does not say something of each image.
        """
        header, *body = self._rows(PREDICTIONS)
        total, without = self.result.get("images_in_dataset", self.result["n"]), set(self.left_out)
        places = [str(i) for i in range(total) if i not in without]
        if tuple(header[: len(JUDGED)]) != JUDGED or [row[0] for row in body] != places:
            raise RunError(f"{self.folder / PREDICTIONS} is not whole: run it again with rerun=true")
        columns = dict(zip(header, zip(*body, strict=True), strict=True))
        whole = {name: np.array(columns[name], dtype=np.int64) for name in header if name != "confidence"}
        beside = {name: whole[name] for name in header[len(JUDGED) :]}
        confidence = np.array([text or "nan" for text in columns["confidence"]], dtype=np.float64)
        return Predictions(whole["label"], whole["prediction"], whole["rank"], confidence, beside)

    @property
    def left_out(self) -> list[int]:
        """Places in the data set of the images that could not be read, and were not judged."""
        return [one["index"] for one in self.result.get("skipped", ())]

    @cached_property
    def per_class(self) -> list[dict[str, str]]:
        """Rows of per_class.csv, in the order of the classes."""
        header, *body = self._rows(PER_CLASS)
        return [dict(zip(header, row, strict=True)) for row in body]

    @cached_property
    def diagnostics(self) -> list[dict[str, str]]:
        """Rows of diagnostics.csv, in the order of the classes; none where no image was used."""
        if not (self.folder / DIAGNOSTICS).is_file():
            return []
        header, *body = self._rows(DIAGNOSTICS)
        return [dict(zip(header, row, strict=True)) for row in body]

    @property
    def class_names(self) -> list[str]:
        """Name of each class."""
        return [row["name"] for row in self.per_class]

    def _rows(self, name: str) -> list[list[str]]:
        path = self.folder / name
        if not path.is_file():
            raise RunError(f"{path} is not there: run it again with rerun=true")
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.reader(file))


def find_runs(places: Sequence[Path]) -> list[Run]:
    """The finished runs in or below some folders; of each folder in the order of their numbers.

    Raises:
        RunError: If a folder is not there or holds no finished run.
    """
    found: dict[Path, Run] = {}
    for place in places:
        below = sorted({path.parent for path in place.rglob(RESULT)}, key=_in_order)
        if not below:
            raise RunError(f"{place} holds no finished run: name the folder of a run or of a sweep")
        found |= {folder.resolve(): Run.read(folder) for folder in below}
    return list(found.values())


def _in_order(folder: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in folder.parts]


def differing(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The values of the config in which runs differ: by dotted key, the value of each run.

    A part whose choice differs stands for its values: `scales`, not `scales.fractions`. Where a run writes and
    logs does not count, nor does a part's seed that follows the run's, such as `learner.seed`: it is told by `seed`.
    """
    told = [settings_of(run) for run in runs]
    keys = list(dict.fromkeys(key for values in told for key in values))
    columns = {key: [values.get(key) for values in told] for key in keys}
    follows = {key for key, column in columns.items() if key.endswith(".seed") and column == columns.get("seed")}
    apart = {
        key: column
        for key, column in columns.items()
        if key not in follows and any(value != column[0] for value in column)
    }
    return {key: column for key, column in apart.items() if key.partition(".")[0] == key or _group(key) not in apart}


def _group(key: str) -> str:
    return key.partition(".")[0]


_APART = ("logger", "trainer", "paths", "workers", "rerun", "on_bad_image")  # which images were judged is a result


def settings_of(run: Run) -> dict[str, Any]:
    """A run's config, flat, without where it writes and logs; a group's choice stands under the group's name."""
    config = {key: value for key, value in run.result["config"].items() if key not in _APART}
    return {**dict(flat(config)), **{group: one for group, one in run.result["choices"].items() if group in config}}


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Values of nested mappings by dotted key; an empty mapping is a value."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
