"""Reports which stages of a run used labels of real images, test images, or the encoder's text tower."""

from collections.abc import Sequence
from dataclasses import dataclass

from lgclip.reporting.result_schema import JsonObject, PromptTuningRecord, RunResult, StudentRecord
from lgclip.types import TEST

SEEN = ("real_labels", "test_images", "unlabelled", "text_tower")
"""Kinds of data that a stage may use."""


@dataclass(frozen=True)
class Exposure:
    """Describes which data one stage used; None where that is unknown.

    Attributes:
        stage: The stage.
        decides: Whether the predictions depend on it.
        real_labels: Labels of the evaluated images.
        test_images: The evaluated images.
        unlabelled: Real images together, without their labels: an estimate of their distribution.
        text_tower: The encoder's text tower, which is for the baseline.
        note: Inputs of the stage.
    """

    stage: str
    decides: bool
    real_labels: bool | None
    test_images: bool | None
    text_tower: bool | None
    note: str
    unlabelled: bool | None = False


def exposure(result: RunResult) -> list[Exposure]:
    """Returns one row per stage, in the order of the pipeline, from a run's result.

    Args:
        result: Content of its result.json.
    """
    scoring = result.predictor[result.method]
    last = _evaluation_rows(result, scoring.get("text_weight", 0.0))
    if transduction := scoring.get("transduction"):
        last.insert(0, _transduction(transduction, result.n))
    # A student and tuned prompts bring their own stages in place of features, selection and calibration.
    if result.student is not None:
        return [*_generated(result), *_student(result.student), *last]
    if result.prompt_tuning is not None:
        return [*_generated(result), *_prompt_tuning(result.prompt_tuning), *last]
    rows = [
        *_generated(result),
        Exposure("features", True, False, True, False, "each image by itself, by the image tower"),
    ]
    # Text features are made wherever there is a text tower; whether the method uses them is another question.
    if "text" in result.store:
        rows.append(_sentences(result, scoring))
    if alignment := scoring.get("alignment"):
        rows.append(_alignment(alignment))
    if result.diffuser:
        rows += _fitted(result, scoring)
    return [*rows, *last]


_PROMPTS = {
    "class_names": (False, "written from class names and the words of the config"),
    "captions": (False, "captions of real training images, with the names of their classes"),
    "file": (None, "from a file; who wrote them is not known here"),
}
"""For each `PromptGenerator.prompts_from`, whether the prompts used test images and labels; None: unknown."""

_IMAGES = {
    "prompts": (False, "generated from the prompts only; a diffusion model reads them with a text encoder of its own"),
    "folder": (None, "from a folder; how they were made is not known here"),
}
"""The same for each `ImageSource.images_from`."""


def _generated(result: RunResult) -> list[Exposure]:
    """Returns the rows of prompts and images."""
    rows = []
    if result.llm:
        # A class of the user's own need not say it. Not known is not "no": the audit must not clear what it cannot see.
        unknown = (None, "by a class that does not say what its prompts are made from")
        seen, note = _PROMPTS.get(result.llm["prompts_from"], unknown)
        is_captioned = result.llm["prompts_from"] == "captions"
        rows.append(
            Exposure("prompts", True, seen, seen, seen, note, unlabelled=seen if seen is None else is_captioned)
        )
    if result.diffuser:
        unknown = (None, "by a class that does not say where its images come from")
        seen, note = _IMAGES.get(result.diffuser["images_from"], unknown)
        rows.append(Exposure("images", True, seen, seen, seen, note, unlabelled=seen))
    return rows


def _student(student: StudentRecord) -> list[Exposure]:
    """Returns the rows of a student's training, and of the selection of its checkpoint."""
    images = student.trained_on
    # The best epoch by test accuracy is a maximum over epochs, so the metric is biased upwards.
    uses_test = student.selected_on == "real"
    note = f"{images.synthetic} synthetic and {images.real} real training images with their labels"
    criteria = {"synthetic": "by accuracy on left-out synthetic images", "real": "by accuracy on the test images"}
    chosen = criteria.get(student.selected_on or "", "the last one, by nothing")
    return [
        Exposure("training", True, False, False, False, note),
        Exposure("checkpoint", True, uses_test, uses_test, False, chosen),
    ]


def _prompt_tuning(prompt_tuning: PromptTuningRecord) -> list[Exposure]:
    """Returns the row of prompt tuning, which uses the text tower for its classes."""
    images = prompt_tuning.trained_on
    note = (
        f"{images.unlabelled} unlabelled, {images.labelled} labelled and {images.synthetic} synthetic images, none of "
        "them evaluated; guessed labels"
    )
    return [Exposure("prompt tuning", True, False, False, True, note, unlabelled=images.unlabelled > 0)]


_SENTENCES = {
    "template": "a template with class names",
    "ensemble": "templates with class names",
    "llm": "the prompts",
    "descriptors": "descriptors of a language model",
    "waffle": "random words with class names",
}
"""Description of the sentences of each text side."""


def _sentences(result: RunResult, scoring: JsonObject) -> Exposure:
    """Returns the row of the text prototypes, which are computed wherever there is a text tower."""
    uses = []
    if scoring["text_weight"] > 0:
        uses.append("the method's prototypes")
    if scoring["selects_by_text"]:
        uses.append("the choice of images")
    note = " and ".join(uses) or "what stands beside, not for the method"
    record = result.text["text"] if result.text else None
    kind = _SENTENCES[record.kind] if record else _SENTENCES["ensemble"]
    seen: bool | None = False
    if record and record.kind == "llm" and result.llm:
        seen, _ = _PROMPTS.get(result.llm["prompts_from"], (None, ""))
    elif record and record.inputs.get("content"):
        kind, seen = "descriptors of a file; who wrote them is not known here", None
    return Exposure("sentences", bool(uses), seen, seen, True, f"{kind}, for {note}")


def _alignment(alignment: JsonObject) -> Exposure:
    """Returns the row of the alignment of real with synthetic images."""
    is_test = alignment["source"] == TEST
    where = "the evaluated images" if is_test else f"{alignment['source']}, none of them evaluated"
    note = f"mean of {alignment['images']} unlabelled images: {where}"
    return Exposure("alignment", True, False, is_test, False, note, unlabelled=True)


def _transduction(transduction: JsonObject, n: int) -> Exposure:
    """Returns the row of a rule that classifies all evaluated images together."""
    note = f"{transduction['part']} of all {n} evaluated images together"
    return Exposure("transduction", True, False, True, False, note, unlabelled=True)


def _fitted(result: RunResult, scoring: JsonObject) -> list[Exposure]:
    """Returns the rows of selection, calibration and temperature, which use synthetic images."""
    selection = scoring["selection"]
    mixed = scoring["text_weight"] > 0
    chosen = scoring["selects_by_text"]
    selection_note = (
        "all images" if selection["keep"] is None else f"{selection['keep']} a class by {selection['part']}"
    )
    rows = [Exposure("selection", True, False, False, chosen, selection_note)]
    if scoring["leave_one_out"] is not None:
        # `scoring` has the weight that calibration chose. With a weight above 0 in the config, others were tried.
        tried = chosen or mixed or result.config["method"]["text_weight"] > 0
        rows.append(Exposure("calibration", True, False, False, tried, "on left-out synthetic images alone"))
    fitted = result.confidence.fitted_on == "synthetic images"
    note = "on left-out synthetic images alone" if fitted else "the default, fitted on nothing"
    # The temperature scales the logits, which changes no prediction; hence `decides` is False below.
    tower = fitted and (chosen or mixed)
    return [*rows, Exposure("temperature", False, False, False, tower, f"{note}; of confidence only")]


def _evaluation_rows(result: RunResult, weight: float) -> list[Exposure]:
    """Returns the rows of the evaluation and the use of its predictions."""
    note = "each image by itself"
    if weight:
        note += f", text weight {weight:g}"
    rows = [
        Exposure("evaluation", True, False, True, weight > 0, note),
        Exposure("metrics", False, True, False, False, "predictions are compared with labels"),
    ]
    if result.diffuser:
        note = "gap and accuracy of a class; nothing of it goes back"
        rows.append(Exposure("diagnostics", False, True, True, False, note))
    if result.sweep:
        # A run cannot know whether its sweep is a grid or a search, nor what its reader does with the cells.
        if result.config.get("objective") == "leave_one_out":
            note = "its objective is leave_one_out, on synthetic images alone"
            rows.append(Exposure("sweep", True, False, False, weight > 0, note))
        else:
            note = "a grid chooses nothing; a search by top-1, or taking the best cell, chooses by test labels"
            rows.append(Exposure("sweep", True, None, None, False, note))
    return rows


def conclusions(rows: Sequence[Exposure], method: str) -> list[str]:
    """Returns one line for each kind of data that must not, or need not, affect the predictions.

    Args:
        rows: Output of `exposure`.
        method: The method.
    """
    # What only describes the result, such as the diagnostics, may see everything.
    deciding = [row for row in rows if row.decides]
    lines = []
    questions = (
        ("labels of real images", "real_labels"),
        ("unlabelled real images", "unlabelled"),
        ("the text tower", "text_tower"),
    )
    for label, field in questions:
        stages = [row.stage for row in deciding if getattr(row, field)]
        unknown = [row.stage for row in deciding if getattr(row, field) is None]
        line = f"{label} in the predictions of {method}: "
        line += f"yes, by {', '.join(stages)}" if stages else "no"
        if unknown:
            line += f"; not known of {', '.join(unknown)}"
        lines.append(line)
    return lines
