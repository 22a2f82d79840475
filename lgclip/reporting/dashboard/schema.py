"""Defines the structure of the page's data, as JSON."""

from typing import Any, TypedDict


class Axis(TypedDict):
    """Describes a config value that differs between runs, such as `prompts_per_class`."""

    key: str
    values: list[Any]  # in the order in which they are shown: numbers by size, other values as they come
    numeric: bool


class Stage(TypedDict):
    """Describes the work and the cost of one stage of a run."""

    stage: str
    unit: str
    computed: int
    reused: int
    seconds: float
    device: str | None
    devices: int
    peak_memory: int | None  # bytes
    peak_from: str | None  # "device", "process" or "samples"; see lgclip/store/cost_log.py
    tokens: int | None  # read and written by the language model, together


class Confusion(TypedDict):
    """Counts images of one class that are predicted as another, the most frequent pairs first."""

    true: int
    predicted: int
    count: int
    images: list[str]  # keys of `Page.thumbs`: misjudged real images
    of_true: list[str]  # synthetic images of the true class
    of_predicted: list[str]  # synthetic images of the class that it is taken for


class PromptImages(TypedDict):
    """Holds a prompt of a class, and the images generated from it."""

    prompt: str
    images: list[str]  # keys of `Page.thumbs`


class ClassRow(TypedDict):
    """Describes one class of a run."""

    n: int
    right: int
    taken_for: int | None  # class index
    times: int


class ReliabilityBin(TypedDict):
    """Describes the images whose confidence lies in one bin."""

    n: int
    confidence: float  # mean
    accuracy: float


class FeatureMap(TypedDict):
    """Holds features projected onto two principal components, in columns: one entry a point."""

    explained: list[float]  # fraction of the variance along x and along y
    kind: list[str]  # "real" | "synthetic" | "prototype"
    class_index: list[int]
    x: list[float]
    y: list[float]
    correct: list[bool | None]  # of real images; null for the others


class Learning(TypedDict):
    """Holds the learning curve of a run's method: prompts by round, a student by epoch."""

    unit: str  # "round" | "epoch"
    first: int  # the number of the first of them: 0 for zero-shot, before the first round
    curves: dict[str, list[float | None]]  # precision, coverage, accuracy: fractions 0..1; loss; a value each
    by_type: dict[str, dict[str, float]]  # method -> top-1 on seen and on unseen classes, and their harmonic mean


class RunData(TypedDict):
    """Describes one run, finished or failed; unknown fields of a failed one are null or empty."""

    id: int
    name: str  # what tells it from the others: "prompts_per_class=1, scales=single"
    folder: str
    status: str  # "finished" | "failed"
    error: str | None
    sweep: str | None
    job: int | None
    axes: dict[str, Any]  # by `Axis.key`
    dataset: str
    split: str
    method: str
    n: int
    metrics: dict[str, Any] | None  # top1, top1_ci95, top5, mean_per_class, mean_per_class_ci95: fractions 0..1
    baselines: dict[str, dict[str, Any]]  # clip_text, fusion: the same metrics
    paired: dict[str, dict[str, Any]]  # difference, ci95, only_this, only_other, p
    detectable: dict[str, Any] | None
    confidence: dict[str, Any] | None  # temperature, fitted_on, ece, nll, brier, aurc, rejection: [{coverage, top1}]
    learning: Learning | None
    correlations: dict[str, dict[str, float | None]]  # measure -> {spearman, p}
    class_list: int  # place in `Page.class_lists`
    classes: list[ClassRow]
    diagnostics: dict[str, list[float | None]]  # measure -> a value a class
    confusions: list[Confusion]
    matrix: list[tuple[int, int, int]]  # true class, predicted class, count; only mistakes that were made
    reliability: list[ReliabilityBin]  # empty without confidences
    feature_map: FeatureMap | None  # null where the store was not read, or does not hold the features any more
    gallery: list[list[PromptImages]]  # by class; empty where no images are shown
    stages: list[Stage]
    cost: dict[str, Any]
    config: dict[str, Any]  # flat: dotted key -> value
    provenance: list[tuple[str, str]]  # label, text: versions, commit, weights, store keys, split
    right: str | None  # base64 of a bit an image, the lowest bit of a byte first: 1 if it is classified correctly
    evaluation_key: str | None  # the same for runs that evaluated the same images and classes


class Comparison(TypedDict):
    """Holds a paired comparison of a run with the reference run."""

    run: int
    difference: float | None  # top-1 of the run minus the reference's; null where they cannot be compared
    ci95: list[float] | None
    p: float | None
    p_holm: float | None
    reason: str | None  # why they cannot be compared


class SeedGroup(TypedDict):
    """Groups runs that differ only in their seeds."""

    axes: dict[str, Any]
    runs: list[int]
    mean: float
    ci95: list[float] | None  # of the mean, by Student's t; null for one run
    std: float | None


class Page(TypedDict):
    """Holds the complete page."""

    title: str
    created: str  # date and time, ISO 8601
    version: str  # of lgclip
    axes: list[Axis]
    runs: list[RunData]
    reference: int | None  # id of the run that the others are compared with
    comparisons: list[Comparison]
    groups: list[SeedGroup]
    class_lists: list[list[str]]
    computed_before: float | None  # seconds that what the runs re-used had cost, each thing once; null if not known
    thumbs: dict[str, str]  # key -> data URI
    notes: list[str]  # what could not be shown, and why
