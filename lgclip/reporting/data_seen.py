"""Names the data of the evaluated domain that each method of a run has seen: results of unlike data are kept apart."""

from collections.abc import Mapping
from typing import Any

from lgclip.methods.alignment import TEST

NAMES = "names"
"""Label of a method that has seen the class names alone."""

_ORIGINS = {"llm": ("prompts_from", ("class_names", "captions")), "diffuser": ("images_from", ("prompts",))}
"""For each part, the field that names the origin of its output, and the origins that are known."""


def data_seen(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Returns the fields of `DataSeen` for the method of a run and each of its baselines.

    Args:
        values: The fields of result.json.
    """
    return {name: _seen_by(name, described, values) for name, described in values["predictor"].items()}


def _seen_by(name: str, described: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    labelled = 0
    unlabelled = 0
    source: str | None = None
    uses_images = described.get("text_weight", 0.0) < 1
    if name == values["method"]:
        if student := values["student"]:
            labelled = student["trained_on"]["real"]
            uses_images = student["trained_on"]["synthetic"] > 0
        if prompt_tuning := values["prompt_tuning"]:
            labelled = prompt_tuning["trained_on"]["labelled"]
            unlabelled = prompt_tuning["trained_on"]["unlabelled"]
            source = "training"
            uses_images = prompt_tuning["trained_on"]["synthetic"] > 0
    if alignment := described.get("alignment"):
        unlabelled = alignment["images"]
        source = alignment["source"]
    if described.get("transduction"):
        unlabelled = values["n"]
        source = TEST
    captions = uses_images and _origin(values, "llm") == "captions"
    unknown = _unknown(values) if uses_images else []
    parts = [NAMES]
    if captions:
        parts.append("captioned real images")
    if source == TEST:
        parts.append(f"{unlabelled:,} test images")
    elif unlabelled:
        parts.append(f"{unlabelled:,} unlabelled")
    if labelled:
        parts.append(f"{labelled:,} labelled")
    if unknown:
        parts.append("unknown " + " and ".join(unknown))
    return {
        "label": " + ".join(parts),
        "labelled": labelled,
        "unlabelled": unlabelled,
        "unlabelled_from": source,
        "captions": captions,
        "unknown": unknown,
    }


def _origin(values: Mapping[str, Any], group: str) -> str | None:
    field, _ = _ORIGINS[group]
    return (values.get(group) or {}).get(field)


def _unknown(values: Mapping[str, Any]) -> list[str]:
    """Returns what was made outside the run, so that nothing tells which data its makers have seen."""
    unknown: list[str] = []
    for group, word in (("llm", "prompts"), ("diffuser", "images")):
        _, known = _ORIGINS[group]
        if values.get(group) and _origin(values, group) not in known:
            unknown.append(word)
    return unknown
