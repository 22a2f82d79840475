"""Defines the content of result.json as typed values, with a version.

pydantic validates files against these dataclasses, and derives the JSON Schema in docs/result.schema.json from
them (`python -m lgclip.reporting.result_schema`). Fields that depend on the parts of a run, such as the inputs of an
encoder, are open mappings.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lgclip.runtime.versions import RESULT_SCHEMA

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Number = int | float
Interval = Sequence[Number]
"""Lower and upper bound of a 95% interval."""
JsonObject = Mapping[str, Any]
"""Values whose names depend on the parts of a run."""

SCHEMA_ID = "https://json-schema.org/draft/2020-12/schema"


class ResultError(ValueError):
    """Reports a result.json that cannot be read; the message names the file, the field and the fix."""


@dataclass(frozen=True)
class DatasetRecord:
    """Describes the data set that was evaluated.

    `names` is its list of class names, `templates` are the templates of the text baseline. `fingerprint` is equal for
    equal images and labels. `folder_names` gives the class name of each of the user's folders, `files_left_out` counts
    what is in these folders and not read, and `files_noted` what is read although one might not expect it.
    """

    name: str
    split: str
    names: str
    context: str
    templates: Sequence[str]
    source: JsonObject
    fingerprint: str
    folder_names: Mapping[str, str]
    files_left_out: Mapping[str, int]
    files_noted: Mapping[str, int]


def _json_name(field: str) -> str:
    """Returns the name of a field in result.json: `class` is a Python keyword, so that no dataclass can have it."""
    return "class" if field == "class_index" else field


@dataclass(frozen=True)
class SkippedImage:
    """Describes an unreadable test image: index in the data set, content key, file, class with its name, reason."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"alias_generator": _json_name}

    index: int
    id: str
    file: str
    class_index: int
    name: str
    reason: str


@dataclass(frozen=True)
class NotedImage:
    """Describes a test image that was evaluated and is unusual, such as one without contrast; as `SkippedImage`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"alias_generator": _json_name}

    index: int
    id: str
    file: str
    class_index: int
    name: str
    note: str


@dataclass(frozen=True)
class SweepRecord:
    """Describes the job of a sweep: the folder of the sweep, the number of the job and its overrides."""

    dir: str
    job: int
    overrides: Sequence[str]


@dataclass(frozen=True)
class TextRecord:
    """Describes the sentences that stand for the classes: their kind, how many a class has at least and at most.

    `example` is the first sentence of the first class, `inputs` are the settings that the sentences depend on.
    """

    kind: str
    sentences: Sequence[int]
    example: str
    inputs: JsonObject


@dataclass(frozen=True)
class Metrics:
    """Holds accuracies from 0 to 1; `mean_per_class` is over the classes that have images."""

    top1: Number
    top1_ci95: Interval
    top5: Number
    mean_per_class: Number
    mean_per_class_ci95: Interval


@dataclass(frozen=True)
class PairedTest:
    """Compares the method with another one on the same images: bootstrap interval and p of McNemar's exact test."""

    difference: Number
    ci95: Interval
    only_this: int
    only_other: int
    p: Number


@dataclass(frozen=True)
class DetectableDifference:
    """Holds the smallest difference that a paired test detects with this power; None if there are too few images."""

    difference: Number | None
    power: Number
    discordant: Number
    discordant_from: str


@dataclass(frozen=True)
class RejectionPoint:
    """Holds top-1 among the most confident images; `coverage` is their fraction."""

    coverage: Number
    top1: Number


@dataclass(frozen=True)
class DataSeen:
    """Describes the data of the evaluated domain that a method has seen; unlike data are never ranked without a word.

    `label` says it in words. `labelled` and `unlabelled` count real images, the latter none of the evaluated ones;
    `unlabelled_from` is `training` or a folder. `test_images` counts the evaluated images that were used together.
    `captions` is true if captions of real images made the prompts. `unknown` lists what was made outside the run:
    prompts, images, descriptors.
    """

    label: str
    labelled: int
    unlabelled: int
    unlabelled_from: str | None
    test_images: int
    captions: bool
    unknown: Sequence[str]

    @property
    def kind(self) -> str:
        """Returns the label without numbers."""
        kinds = {
            "captioned": self.captions,
            "unlabelled": self.unlabelled > 0,
            "test images": self.test_images > 0,
            "labelled": self.labelled > 0,
            "unknown": bool(self.unknown),
        }
        return " + ".join(["names", *(kind for kind, is_seen in kinds.items() if is_seen)])


@dataclass(frozen=True)
class Confidence:
    """Holds calibration metrics of the confidence, and what the temperature was fitted on."""

    temperature: Number
    fitted_on: str
    ece: Number
    nll: Number
    brier: Number
    aurc: Number
    rejection: Sequence[RejectionPoint]


@dataclass(frozen=True)
class Correlation:
    """Holds Spearman's rank correlation of a diagnostic with the accuracies of the classes."""

    spearman: Number | None
    p: Number | None


@dataclass(frozen=True)
class StageRecord:
    """Describes the work of a stage, the items it reused from the store, and its cost; memory in bytes."""

    stage: str
    computed: int
    reused: int
    seconds: Number
    unit: str
    device: str
    devices: int
    peak_memory: int | None
    peak_from: str | None
    tokens: Mapping[str, int] | None
    workers: int | None = None


@dataclass(frozen=True)
class ReusedPart:
    """Describes what a stage used of one store, and its past cost."""

    key: str
    unit: str
    used: int
    computed: int
    seconds_each: Number | None
    seconds: Number | None
    device: str | None


@dataclass(frozen=True)
class ReusedStage:
    """Describes what one stage reused from the store, and its past cost; None where no cost log has it."""

    seconds: Number | None
    count: int
    device: str | None
    parts: Mapping[str, ReusedPart]


@dataclass(frozen=True)
class Cost:
    """Holds the seconds of this run, and in total with those of everything that it reused.

    `complete` is false if a stage that added to what was reused has recorded no end: it was killed or still runs, and
    the total lacks its time. It is null in results of earlier versions.
    """

    stages: Sequence[StageRecord]
    computed_before: Mapping[str, ReusedStage]
    seconds: Number
    total_seconds: Number | None
    towers: JsonObject | None
    payback: JsonObject | None
    complete: bool | None = None


@dataclass(frozen=True)
class TrainedOn:
    """Describes the training images of a student: how many real and synthetic ones, and the prompt format.

    `real_fraction` is the fraction of real images.
    """

    form: str | None
    real_fraction: Number
    synthetic: int
    real: int
    held_out: int
    dataset: str
    split: str | None
    images: str | None


@dataclass(frozen=True)
class StudentRecord:
    """Describes a trained student; `history` has a value per epoch."""

    key: str | None
    backbone: str | None
    seed: int | None
    selected_on: str | None
    epoch: int | None
    accuracy: Number | None
    steps: int | None
    history: Mapping[str, Sequence[Number | None]]
    precision: str
    trained_on: TrainedOn


@dataclass(frozen=True)
class TrainingImages:
    """Counts the images of the pool that prompts were tuned on."""

    labelled: int
    unlabelled: int
    synthetic: int


@dataclass(frozen=True)
class SeenUnseen:
    """Holds the accuracy on the classes with labels in training, on the others, and their harmonic mean."""

    seen: Number
    unseen: Number
    harmonic: Number


@dataclass(frozen=True)
class PromptTuningRecord:
    """Describes tuned prompts; each of `rounds` has its number and, where known, precision, coverage, accuracy, losses.

    `by_type` is absent where all classes are of one type.
    """

    key: str
    prompt_types: Sequence[str]
    seed: int
    paradigm: str
    rounds: Sequence[JsonObject]
    auxiliary: JsonObject | None
    temperature: Number
    trained_on: TrainingImages
    by_type: Mapping[str, SeenUnseen] | None = None


@dataclass(frozen=True)
class PoolRecord:
    """Holds the accuracy of a transductive rule over pools of one kind, from the scores of one method.

    `rule` is `none` for the scores themselves. `pools` is the number of pools, `images` their mean size. `difference`
    is to `none`, with a paired interval.
    """

    kind: str
    start: str
    rule: str
    pools: int
    images: Number
    top1: Number
    ci95: Interval
    difference: Number
    difference_ci95: Interval


@dataclass(frozen=True)
class Accuracy:
    """Holds top-1 with Wilson's interval on n images."""

    top1: Number
    top1_ci95: Interval
    n: int


@dataclass(frozen=True)
class Shift:
    """Compares accuracy on a shifted set with the in-distribution accuracy over the same classes."""

    in_distribution: Accuracy
    shifted: Accuracy
    difference: Number
    difference_ci95: Interval
    ratio: Number | None
    ratio_ci95: Interval | None


@dataclass(frozen=True)
class ShiftedDataset:
    """Describes an out-of-distribution data set."""

    name: str
    split: str
    source: JsonObject


@dataclass(frozen=True)
class ShiftedResult:
    """Holds the evaluation on an out-of-distribution data set; `in_distribution` is over its classes."""

    dataset: ShiftedDataset
    n: int
    images_in_dataset: int
    num_classes: int
    metrics: Metrics
    baselines: Mapping[str, Metrics]
    in_distribution: Metrics
    in_distribution_baselines: Mapping[str, Metrics]
    shift: Shift


@dataclass(frozen=True)
class Membership:
    """Holds the result of a threshold attack that separates training images of a student from test images."""

    members: int
    non_members: int
    auroc: Number
    auroc_ci95: Interval | None
    balanced_accuracy: Number
    balanced_accuracy_ci95: Interval
    threshold: Number
    held_out_balanced_accuracy: Number | None
    held_out_balanced_accuracy_ci95: Interval | None


@dataclass(frozen=True)
class RunResult:
    """Holds the result of a run, in the order of the fields of result.json.

    `baselines` holds the baselines that were evaluated in the same pass, `paired` their tests against the method.
    `ties` counts the images for which several classes share a method's highest score, so that the order of the classes
    decides. `seen` says which data each method has seen. `encoder`, `llm`, `diffuser` and `scales` are the inputs of
    these parts; None for a part that was not used. `text` describes the sentences of the classes, and those of further
    text baselines; None without a text tower, and in results of earlier versions.
    """

    schema: int
    run_key: str
    sweep: SweepRecord | None
    choices: Mapping[str, str | None]
    method: str
    dataset: DatasetRecord
    n: int
    images_in_dataset: int
    skipped: Sequence[SkippedImage]
    noted_images: Sequence[NotedImage]
    ties: Mapping[str, int]
    num_classes: int
    encoder: JsonObject | None
    llm: JsonObject | None
    diffuser: JsonObject | None
    scales: JsonObject | None
    text: Mapping[str, TextRecord] | None = field(default=None, kw_only=True)
    prompts_per_class: int
    images_per_prompt: int
    seed: int
    templated_prompts: Sequence[int]
    missing_images: Sequence[JsonObject]
    protocol: str | None
    predictor: Mapping[str, JsonObject]
    seen: Mapping[str, DataSeen]
    metrics: Metrics
    baselines: Mapping[str, Metrics]
    baseline: Metrics | None
    student: StudentRecord | None
    prompt_tuning: PromptTuningRecord | None
    ood: Mapping[str, ShiftedResult]
    pools: Sequence[PoolRecord]
    membership: Membership | None
    paired: Mapping[str, PairedTest]
    detectable: DetectableDifference
    confidence: Confidence
    diagnostics: Mapping[str, Correlation | None] | None
    stages: Sequence[StageRecord]
    cost: Cost
    store: Mapping[str, str]
    config: JsonObject
    versions: Mapping[str, str]
    git_commit: str | None

    @property
    def left_out(self) -> list[int]:
        """Returns the indices in the data set of the test images that could not be read."""
        return [image.index for image in self.skipped]

    def metrics_of(self, method: str) -> Metrics:
        """Returns the metrics of the run's method or of one of its baselines.

        Raises:
            KeyError: If the run did not evaluate such a method.
        """
        if method == self.method:
            return self.metrics
        return self.baselines[method]


# Built once and on demand: the import of pydantic and the building of the validator take a noticeable part of the start
# of a command, and most commands read no result.
@lru_cache(maxsize=1)
def _adapter() -> "TypeAdapter[RunResult]":
    from pydantic import TypeAdapter

    return TypeAdapter(RunResult)


def from_json(values: object, source: str | Path = "result.json") -> RunResult:
    """Reads the content of a result.json.

    Args:
        values: Content of the file, as `json.loads` returns it.
        source: The file, for the error.

    Raises:
        ResultError: If it has another version, or a field is missing or of the wrong type.
    """
    from pydantic import ValidationError

    if not isinstance(values, Mapping) or "schema" not in values:
        raise ResultError(f"{source} is damaged: it has no field 'schema'; run it again with rerun=true")
    # Before the validation: a file of another version would otherwise be reported as damaged.
    if values["schema"] != RESULT_SCHEMA:
        raise ResultError(
            f"{source} is of version {values['schema']}, this package reads {RESULT_SCHEMA}: run it again"
        )
    try:
        return _adapter().validate_python(values)
    except ValidationError as error:
        raise ResultError(f"{source}: {_first_problem(error)}; run it again with rerun=true") from error


def _first_problem(error: "ValidationError") -> str:
    # The first one is enough: the file is rewritten as a whole, not repaired field by field.
    problem = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "missing":
        return f"the field {field!r} is missing"
    return f"the field {field!r} is {str(problem['input'])[:60]!r}: {problem['msg']}"


def to_json(result: RunResult) -> dict[str, Any]:
    """Turns a result into the plain values of result.json, in the order of its fields."""
    values = _adapter().dump_python(result, by_alias=True)
    # The file lacks the field where all classes are of one kind. A dataclass cannot lack it, so it is None there.
    prompt_tuning = values["prompt_tuning"]
    if prompt_tuning is not None and prompt_tuning["by_type"] is None:
        del prompt_tuning["by_type"]
    return values


def create_result(values: Mapping[str, Any]) -> RunResult:
    """Turns the plain values of a run into its result.

    Raises:
        ResultError: If a field is missing, of the wrong type, or unknown to the dataclasses: it would be lost.
    """
    # pydantic drops fields that it does not know, so a field that was forgotten here would vanish without an error.
    result = from_json(values, "the result of this run")
    unknown = list(_undescribed(values, to_json(result)))
    if unknown:
        raise ResultError(f"result_schema.py describes no field {', '.join(unknown)}: add it, so that it is written")
    return result


def _undescribed(values: Any, described: Any, name: str = "") -> Iterator[str]:
    """Yields the dotted names of the fields that only the first values have."""
    if isinstance(values, Mapping):
        for key, value in values.items():
            field = f"{name}.{key}".lstrip(".")
            if key in described:
                yield from _undescribed(value, described[key], field)
            else:
                yield field
    elif isinstance(values, list | tuple):
        for place, value in enumerate(values):
            yield from _undescribed(value, described[place], f"{name}.{place}")


def json_schema() -> dict[str, Any]:
    """Returns the JSON Schema of result.json."""
    return {"$schema": SCHEMA_ID, **_adapter().json_schema()}


def json_text(values: Mapping[str, Any]) -> str:
    """Turns plain values into the text of a JSON file."""
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(json_text(json_schema()), end="")
