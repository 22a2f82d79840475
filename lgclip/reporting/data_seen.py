"""Names the data of the evaluated domain that each method of a run has seen: results of unlike data are kept apart."""

from collections.abc import Mapping
from typing import Any

from lgclip.types import TEST

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
    test_images = 0
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
        if alignment["source"] == TEST:
            test_images = alignment["images"]
        else:
            unlabelled = alignment["images"]
            source = alignment["source"]
    if described.get("transduction"):
        test_images = values["n"]
    uses_prompts = uses_images or _text_kind(described, values) == "llm"
    captions = uses_prompts and _origin(values, "llm") == "captions"
    unknown = _unknown(described, values, uses_prompts=uses_prompts, uses_images=uses_images)
    parts = [NAMES]
    if captions:
        parts.append("captioned real images")
    if unlabelled:
        parts.append(f"{unlabelled:,} unlabelled")
    if test_images:
        parts.append(f"{test_images:,} test images")
    if labelled:
        parts.append(f"{labelled:,} labelled")
    if unknown:
        parts.append("unknown " + " and ".join(unknown))
    return {
        "label": " + ".join(parts),
        "labelled": labelled,
        "unlabelled": unlabelled,
        "unlabelled_from": source,
        "test_images": test_images,
        "captions": captions,
        "unknown": unknown,
    }


def _text_record(described: Mapping[str, Any], values: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the record of the sentences that a method compares with; empty if it uses none."""
    if described.get("text_weight", 0.0) == 0:
        return {}
    return (values.get("text") or {}).get(described.get("text", "text")) or {}


def _text_kind(described: Mapping[str, Any], values: Mapping[str, Any]) -> str | None:
    return _text_record(described, values).get("kind")


def _origin(values: Mapping[str, Any], group: str) -> str | None:
    field, _ = _ORIGINS[group]
    return (values.get(group) or {}).get(field)


def _unknown(
    described: Mapping[str, Any], values: Mapping[str, Any], *, uses_prompts: bool, uses_images: bool
) -> list[str]:
    """Returns the inputs that were made outside the run; which data their makers have seen is unknown."""
    unknown: list[str] = []
    for group, word, is_used in (("llm", "prompts", uses_prompts), ("diffuser", "images", uses_images)):
        _, known_origins = _ORIGINS[group]
        if is_used and values.get(group) and _origin(values, group) not in known_origins:
            unknown.append(word)
    # Descriptors of a file; those of the language model come from the names.
    if _text_record(described, values).get("inputs", {}).get("content"):
        unknown.append("descriptors")
    return unknown
