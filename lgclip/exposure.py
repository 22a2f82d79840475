"""Which stage of a run saw labels of real images, test images, or the encoder's text tower."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

SEEN = ("real_labels", "test_images", "text_tower")
"""What a stage may see."""


@dataclass(frozen=True)
class Exposure:
    """What one stage saw; None where that cannot be known.

    Attributes:
        stage: The stage.
        decides: Whether the predictions depend on it.
        real_labels: Labels of the images that are judged.
        test_images: The images that are judged.
        text_tower: The encoder's text tower, which is for the baseline.
        note: What it works with.
    """

    stage: str
    decides: bool
    real_labels: bool | None
    test_images: bool | None
    text_tower: bool | None
    note: str


def exposure(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row a stage, in the order of the pipeline, from what a run says of itself.

    Args:
        result: Content of its result.json.
    """
    judged = result["judged_by"][result["method"]]
    if judged.get("learned"):
        learnt = _learned(result["student"]) if result["student"] else _prompted(result["learner"])
        return [asdict(row) for row in [*_made(result), *learnt, *_judged(result, 0.0)]]
    rows = [*_made(result), Exposure("features", True, False, True, False, "each image by itself, by the image tower")]
    if "text" in result["store"]:
        rows.append(_sentences(judged))
    if result["diffuser"]:
        rows += _fitted(result, judged)
    return [asdict(row) for row in [*rows, *_judged(result, judged["text_weight"])]]


def _made(result: Mapping[str, Any]) -> list[Exposure]:
    """Prompts and images."""
    rows = []
    if result["llm"]:
        if result["config"]["llm"]["_target_"].startswith("lgclip.prompts.published."):
            rows.append(Exposure("prompts", True, None, None, None, "from a file; who wrote them is not known here"))
        elif result["config"]["llm"]["_target_"].startswith("lgclip.prompts.captioner."):
            note = "captions of real training images, with the names of their classes"
            rows.append(Exposure("prompts", True, False, False, False, note))
        else:
            note = "written from class names and the words of the config"
            rows.append(Exposure("prompts", True, False, False, False, note))
    if result["diffuser"]:
        if result["config"]["diffuser"]["_target_"].startswith("lgclip.diffuser.folder."):
            note = "from a folder; how they were made is not known here"
            rows.append(Exposure("images", True, None, None, None, note))
        else:
            note = "drawn from the prompts alone; a diffusion model reads them with a text encoder of its own"
            rows.append(Exposure("images", True, False, False, False, note))
    return rows


def _learned(student: Mapping[str, Any]) -> list[Exposure]:
    """The training of a student, and the choice of its checkpoint."""
    on = student["trained_on"]
    peeks = student["selected_on"] == "real"
    note = f"{on['synthetic']} synthetic and {on['real']} real training images with their labels"
    chosen = {
        "synthetic": "by accuracy on left-out synthetic images",
        "real": "by accuracy on the test images",
    }.get(student["selected_on"], "the last one, by nothing")
    return [
        Exposure("training", True, False, False, False, note),
        Exposure("checkpoint", True, peeks, peeks, False, chosen),
    ]


def _prompted(learner: Mapping[str, Any]) -> list[Exposure]:
    """The learning of soft prompts, which have the text tower for their classes."""
    on = learner["learnt_from"]
    note = (
        f"{on['unlabelled']} unlabelled, {on['labelled']} labelled and {on['synthetic']} synthetic images, none of "
        "them judged; guessed labels"
    )
    return [Exposure("prompt learning", True, False, False, True, note)]


def _sentences(judged: Mapping[str, Any]) -> Exposure:
    """The text prototypes, which are made wherever there is a text tower."""
    uses = ["the method's prototypes"] if judged["text_weight"] > 0 else []
    uses += ["the choice of images"] if _chooses_by_text(judged) else []
    note = " and ".join(uses) or "what stands beside, not for the method"
    return Exposure("sentences", bool(uses), False, False, True, f"templates with class names, for {note}")


def _fitted(result: Mapping[str, Any], judged: Mapping[str, Any]) -> list[Exposure]:
    """What is chosen or fitted on synthetic images."""
    selection, mixed = judged["selection"], judged["text_weight"] > 0
    chosen = _chooses_by_text(judged)
    how = "all images" if selection["keep"] is None else f"{selection['keep']} a class by {selection['part']}"
    rows = [Exposure("selection", True, False, False, chosen, how)]
    if judged["leave_one_out"] is not None:
        tried = chosen or mixed or result["config"]["method"]["text_weight"] > 0
        rows.append(Exposure("calibration", True, False, False, tried, "on left-out synthetic images alone"))
    if confidence := result.get("confidence"):
        on = confidence["fitted_on"]
        fitted = on != "default"
        note = "on left-out synthetic images alone" if fitted else "the default, fitted on nothing"
        tower = fitted and (chosen or mixed)
        rows.append(Exposure("temperature", False, False, False, tower, f"{note}; of confidence only"))
    return rows


def _judged(result: Mapping[str, Any], weight: float) -> list[Exposure]:
    """Judging, and what is done with the judgement."""
    tower = f", text weight {weight:g}" if weight else ""
    rows = [
        Exposure("judging", True, False, True, weight > 0, f"each image by itself{tower}"),
        Exposure("metrics", False, True, False, False, "predictions are compared with labels"),
    ]
    if result["diffuser"]:
        note = "gap and accuracy of a class; nothing of it goes back"
        rows.append(Exposure("diagnostics", False, True, True, False, note))
    if result["sweep"]:
        if result["config"].get("objective") == "leave_one_out":
            note = "its objective is leave_one_out, on synthetic images alone"
            rows.append(Exposure("sweep", True, False, False, weight > 0, note))
        else:
            note = "a grid chooses nothing; a search by top-1, or taking the best cell, chooses by test labels"
            rows.append(Exposure("sweep", True, None, None, False, note))
    return rows


def _chooses_by_text(judged: Mapping[str, Any]) -> bool:
    return judged["selection"]["part"] == "ByText" and judged["selection"]["keep"] is not None


def verdicts(rows: list[dict[str, Any]], method: str) -> list[str]:
    """One line for each kind of thing that must not, or need not, reach the predictions.

    Args:
        rows: What `exposure` says.
        method: The method.
    """
    deciding = [row for row in rows if row["decides"]]
    lines = []
    for what, seen in (("labels of real images", "real_labels"), ("the text tower", "text_tower")):
        known = [row["stage"] for row in deciding if row[seen]]
        open_ = [row["stage"] for row in deciding if row[seen] is None]
        said = f"yes, by {', '.join(known)}" if known else "no"
        doubt = f"; not known of {', '.join(open_)}" if open_ else ""
        lines.append(f"{what} in the predictions of {method}: {said}{doubt}")
    return lines
