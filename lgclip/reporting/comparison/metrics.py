"""Reads the metrics in the cells of a comparison."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from lgclip.evaluation.robustness import Accuracy, Line, baseline, effective_robustness
from lgclip.reporting.comparison.axes import REAL, trained_on
from lgclip.reporting.comparison.results import ComparisonError, MethodResult
from lgclip.reporting.result_schema import Cost, Metrics, RunResult, SeenUnseen, to_json
from lgclip.reporting.run_folder import flat

TOP1 = "top1"
ROBUSTNESS = "effective_robustness"
IN_DISTRIBUTION = "in_distribution"
"""Top-1 on the run's data set over the classes of a shifted set."""

_ACCURACIES = tuple(field.name for field in fields(Metrics) if not field.name.endswith("ci95"))
_SEEN_UNSEEN = tuple(field.name for field in fields(SeenUnseen))
PERCENT = (*_ACCURACIES, *_SEEN_UNSEEN, IN_DISTRIBUTION, ROBUSTNESS)
"""Metrics that are shown in percent, or in points."""
SECONDS_PER_IMAGE = "seconds_per_image"
"""Wall time of the generation of one synthetic image, as a mean over all images of its generator in the store."""
IMAGE_MEMORY = "image_memory"
"""Peak memory of the generation of the images, in GiB; known where the run generated some."""
GENERATION = (SECONDS_PER_IMAGE, IMAGE_MEMORY)
_LOWER_IS_BETTER = (
    "ece", "nll", "brier", "aurc", "auroc", "balanced_accuracy", "seconds", "total_seconds", *GENERATION,
)  # fmt: skip
"""Suffixes of metrics for which lower is better; an attack should find nothing."""


@dataclass(frozen=True)
class MetricReader:
    """Reads metrics of results.

    Attributes:
        lines: Predicts accuracy on each shifted set from in-distribution accuracy, fitted to the students of real
            images.
    """

    lines: Mapping[str, Line]

    @classmethod
    def of(cls, results: Sequence[MethodResult]) -> "MetricReader":
        """Fits the lines through the students that were trained on real images only, each counted once."""
        pairs: dict[str, dict[str | None, tuple[Accuracy, Accuracy]]] = {}
        for result in results:
            # Only students of real images make the line, as in arXiv:2007.00644: effective robustness is what a model
            # has beyond standard training. Synthetic ones would shift the line that they are measured against.
            if result.shifted_set is not None and trained_on(result) == REAL:
                students = pairs.setdefault(result.shifted_set, {})
                # Several runs may evaluate one student; twice in the sample it would have twice the weight in the fit.
                students.setdefault(result.learned_key, accuracies_of(result))
        lines = {}
        for name, students in pairs.items():
            in_distribution, shifted = zip(*students.values(), strict=True)
            lines[name] = baseline(in_distribution, shifted)
        return cls(lines)

    def value(self, result: MethodResult, metric: str) -> float | None:
        """Returns the value of a metric; None where the result does not have it."""
        if metric in _ACCURACIES:
            return float(getattr(result.metrics, metric))
        if metric in (IN_DISTRIBUTION, ROBUSTNESS):
            return self._shifted(result, metric)
        # What follows is known only for the run's own data set.
        if result.shifted_set is not None:
            return None
        if metric in _SEEN_UNSEEN:
            return _seen_or_unseen(result, metric)
        # Other fields, such as the calibration error or the cost, are those of the run's own method.
        if result.baseline is not None:
            return None
        return _of_run(result.run.result, metric)

    def _shifted(self, result: MethodResult, metric: str) -> float | None:
        """Returns a metric that only shifted sets have."""
        name = result.shifted_set
        if name is None or (metric == ROBUSTNESS and name not in self.lines):
            return None
        inside, shifted = accuracies_of(result)
        if metric == IN_DISTRIBUTION:
            return inside.top1
        return float(effective_robustness(inside, shifted, self.lines[name])["rho"])


def _seen_or_unseen(result: MethodResult, metric: str) -> float | None:
    prompt_tuning = result.run.result.prompt_tuning
    # Absent where all classes have labels, or none has: then seen and unseen are undefined.
    if prompt_tuning is None or prompt_tuning.by_type is None:
        return None
    accuracies = prompt_tuning.by_type.get(result.method)
    return float(getattr(accuracies, metric)) if accuracies else None


def accuracies_of(result: MethodResult) -> tuple[Accuracy, Accuracy]:
    """Returns the accuracy in distribution and on a shifted set, over the same classes."""
    shifted = result.run.result.ood[result.shifted_set or ""]
    # The number of images goes along, as the fit of the line tests whether accuracies differ by more than chance.
    in_distribution_n = shifted.shift.in_distribution.n
    if result.baseline is None:
        inside = shifted.shift.in_distribution.top1
    else:
        inside = shifted.in_distribution_baselines[result.baseline].top1
    return Accuracy(float(inside), in_distribution_n), Accuracy(float(result.metrics.top1), shifted.n)


def _of_run(result: RunResult, metric: str) -> float | None:
    """Returns a number that is known of the run, not of each of its methods."""
    if metric in GENERATION:
        return _generation_cost(result.cost, metric)
    return _field(to_json(result), metric)


def _generation_cost(cost: Cost, metric: str) -> float | None:
    """Returns a cost of the synthetic images; None where it is not recorded."""
    if metric == SECONDS_PER_IMAGE:
        stage = cost.computed_before.get("images")
        part = stage.parts.get("images") if stage else None
        return part.seconds_each if part else None
    for stage in cost.stages:
        if stage.stage == "images" and stage.peak_memory is not None:
            return stage.peak_memory / 2**30
    return None


def _field(values: Mapping[str, Any], name: str) -> float | None:
    """Returns a number of result.json by its dotted name."""
    value: Any = values
    for key in name.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    # A bool is an int in Python, but True is no metric of 1.0.
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


def check_metrics(metrics: Sequence[str], results: Sequence[MethodResult], reader: MetricReader) -> None:
    """Checks that a result has each metric.

    Raises:
        ComparisonError: If none has it.
    """
    for metric in metrics:
        if any(reader.value(result, metric) is not None for result in results):
            continue
        if metric == ROBUSTNESS:
            raise ComparisonError(
                "no effective robustness: it needs --columns dataset, a shifted set (ood=NAME), and a student of "
                "real images as the baseline (student.real_fraction=1)"
            )
        # A dict keeps the order of result.json, so the message is the same each time.
        numbers: dict[str, None] = {}
        for result in results:
            numbers |= dict.fromkeys(_numbers(result))
        raise ComparisonError(
            f"no run tells {metric!r}: choose {', '.join((*PERCENT, *GENERATION))} or a number of result.json, such as "
            f"{', '.join(list(numbers)[:8])}"
        )


def _numbers(result: MethodResult) -> Iterator[str]:
    values = to_json(result.run.result)
    for name, value in flat({key: values[key] for key in ("confidence", "membership", "detectable", "cost")}):
        if isinstance(value, int | float):
            yield name


def lower_is_better(metric: str) -> bool:
    """Returns whether the lowest value of a metric is the best."""
    # The prefix is that of the attack with a threshold from other images: `membership.held_out_balanced_accuracy`.
    return metric.rpartition(".")[2].removeprefix("held_out_") in _LOWER_IS_BETTER


def is_ranked(metric: str) -> bool:
    """Returns whether a metric has a best value."""
    # Counts and settings in result.json, such as a temperature, are shown but no value of them is better.
    return metric in PERCENT or lower_is_better(metric)


def format_value(value: float, metric: str, signed: bool = False) -> str:
    """Returns a formatted value: fractions in percent, other numbers with three decimals."""
    if metric in PERCENT:
        value = round(100 * value, 1) + 0.0  # adding 0.0 turns -0.0, which would be shown as "-0.0", into 0.0
        digits = 1
    elif abs(value) >= 100:
        digits = 1  # seconds of a run: thousandths say nothing
    else:
        digits = 3
    # Effective robustness is a difference, so its sign is part of the statement.
    sign = "+" if signed or metric == ROBUSTNESS else ""
    return f"{value:{sign}.{digits}f}"


def robustness_notes(reader: MetricReader, metrics: Sequence[str]) -> list[str]:
    """Returns notes on the computation of effective robustness; empty where it is not requested."""
    if ROBUSTNESS not in metrics:
        return []
    notes = ["effective robustness: top-1 above what accuracy in distribution predicts, in points (arXiv:2007.00644)"]
    for name, line in reader.lines.items():
        # Two decimals only for a slope that was estimated; "1.00" would look like an estimate.
        slope = f"{line.slope:.2f}" if line.fitted else "1"
        runs = "1 student" if line.n == 1 else f"{line.n} students"
        formula = f"logit = {slope} x logit in distribution {line.intercept:+.2f}"
        notes.append(f"{name}: {formula}, through {runs} of real images")
    if not all(line.fitted for line in reader.lines.values()):
        notes.append("slope 1: in distribution those students differ by no more than chance, which fits no slope")
    return notes
