"""Rows of a table over seeds, and how two of them differ: seed by seed, and image by image."""

import json
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lgclip.comparison import Side
from lgclip.statistics import holm, over_seeds


class Figure(NamedTuple):
    """A column.

    Attributes:
        kind: What it is: `top1` and others of the table.
        on: The shifted set or the paradigm that it is of; "" for the data set itself.
    """

    kind: str
    on: str = ""


TOP1 = Figure("top1")


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seeds alone, or a method that was judged beside such runs.

    Attributes:
        name: What was trained or learnt, or the method's name.
        apart: The settings that tell it from others; "" if there is none.
        values: Figures by seed; what a run does not tell is not there.
        runs: What was judged, by a figure's `on` and by seed; several where a seed has several orders or splits.
    """

    name: str
    apart: str
    values: Mapping[Hashable, Mapping[Figure, float]]
    runs: Mapping[tuple[str, Hashable], Sequence[Side]]

    @property
    def label(self) -> str:
        """Its name, with the settings that tell it apart."""
        return f"{self.name} ({self.apart})" if self.apart else self.name

    def of(self, figure: Figure) -> dict[Hashable, float]:
        """A figure by seed, of the runs that tell it."""
        return {seed: told[figure] for seed, told in self.values.items() if figure in told}

    def summary(self, figure: Figure) -> dict[str, Any] | None:
        """`n`, `mean`, `std` and `ci95` of `statistics.over_seeds`; None where no run tells it."""
        values = list(self.of(figure).values())
        return over_seeds(values) if values else None


@dataclass(frozen=True)
class Difference:
    """How two rows differ, over the seeds that both have.

    Attributes:
        one: Label of the one.
        other: Label of the other.
        figure: Of what.
        n: Seeds that both have.
        mean: Mean difference, the first minus the other.
        over_seeds: `ci95` and `p` of the paired t test; None for one seed, or where all differ by the same.
        over_images: The same where the images are the sample and the seeds are as they are; None where the row
            does not hold what was predicted of each.
        p_holm: The seeds' p value, raised for all tests of the table; None where there is none.
    """

    one: str
    other: str
    figure: Figure
    n: int
    mean: float
    over_seeds: Mapping[str, Any] | None
    over_images: Mapping[str, Any] | None
    p_holm: float | None = None


def difference(a: Row, b: Row, figure: Figure) -> Difference | None:
    """How two rows differ in a figure; None without a seed that both have.

    Args:
        a: The one.
        b: The other.
        figure: Of what.
    """
    one, other = a.of(figure), b.of(figure)
    seeds = [seed for seed in one if seed in other]
    if not seeds:
        return None
    values = np.array([one[seed] - other[seed] for seed in seeds])
    over_images, places = None, [(figure.on, seed) for seed in seeds]
    if figure.kind == TOP1.kind and all(place in row.runs for place in places for row in (a, b)):
        right = [_right(a.runs[place]) - _right(b.runs[place]) for place in places]
        over_images = _t_test(np.mean(right, axis=0))
    return Difference(a.label, b.label, figure, len(seeds), float(values.mean()), _t_test(values), over_images)


def with_holm(found: Iterable[Difference]) -> list[Difference]:
    """The same differences, each with its p value raised for all of them."""
    found = list(found)
    raised = iter(holm([one.over_seeds["p"] for one in found if one.over_seeds]))
    return [replace(one, p_holm=next(raised)) if one.over_seeds else one for one in found]


def told_briefly(settings: Mapping[str, Any]) -> str:
    """Settings in few words: of a key its last part, of a path its name, of a hash its beginning."""
    last = [key.rpartition(".")[2] for key in settings]
    names = [short if last.count(short) == 1 else key for short, key in zip(last, settings, strict=True)]
    return ", ".join(f"{name}={_short(value)}" for name, value in zip(names, settings.values(), strict=True))


def _right(sides: Sequence[Side]) -> Float[np.ndarray, " n"]:
    right = np.array([side.prediction == side.run.predictions.label for side in sides])
    return right.mean(axis=0, dtype=np.float64)


def _t_test(values: Float[np.ndarray, " k"]) -> dict[str, Any] | None:
    """Whether paired differences are 0 on average; None for one, or where none differs from the others."""
    if len(values) < 2 or np.ptp(values) < 1e-12:
        return None
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(values, 0.0)
    interval = test.confidence_interval(0.95)
    return {"ci95": [float(interval.low), float(interval.high)], "p": float(test.pvalue)}


def _short(value: object) -> str:
    if not isinstance(value, str):
        return "none" if value is None else json.dumps(value)
    name = Path(value).name
    return name[:8] if len(name) >= 32 and not set(name) - set("0123456789abcdef") else name
