"""Tests which data each method of a result is said to have seen."""

from typing import Any

import pytest

from lgclip.reporting.data_seen import data_seen
from lgclip.reporting.result_schema import DataSeen

PROMPTS = {"prompts_from": "class_names"}
IMAGES = {"images_from": "prompts"}


def seen(described: dict[str, Any], **values: Any) -> DataSeen:
    base = {"method": "lgclip", "n": 1200, "student": None, "prompt_tuning": None, "text": None}
    base |= {"llm": PROMPTS, "diffuser": IMAGES, "predictor": {"lgclip": described}}
    return DataSeen(**data_seen({**base, **values})["lgclip"])


ALIGNED = {"alignment": {"images": 2000, "source": "training"}}
TEST_ALIGNED = {"alignment": {"images": 300, "source": "test"}}
REFINED = {"transduction": {"part": "StatA"}}
TUNED = {"trained_on": {"labelled": 60, "unlabelled": 900, "synthetic": 0}}
LLM = {"text": {"kind": "llm", "inputs": {}}}


@pytest.mark.parametrize(
    ("described", "values", "label", "kind"),
    [
        ({"text_weight": 0.0}, {}, "names", "names"),
        (ALIGNED, {}, "names + 2,000 unlabelled", "names + unlabelled"),
        (TEST_ALIGNED, {}, "names + 300 test images", "names + test images"),
        (REFINED, {}, "names + 1,200 test images", "names + test images"),
        (
            {**ALIGNED, **REFINED},
            {},
            "names + 2,000 unlabelled + 1,200 test images",
            "names + unlabelled + test images",
        ),
        (
            {"learned": "prompt"},
            {"prompt_tuning": TUNED},
            "names + 900 unlabelled + 60 labelled",
            "names + unlabelled + labelled",
        ),
        (
            {"learned": "student"},
            {"student": {"trained_on": {"real": 30, "synthetic": 300}}},
            "names + 30 labelled",
            "names + labelled",
        ),
        ({}, {"llm": {"prompts_from": "captions"}}, "names + captioned real images", "names + captioned"),
        ({}, {"llm": {"prompts_from": "file"}}, "names + unknown prompts", "names + unknown"),
        ({}, {"diffuser": {"images_from": "folder"}, "llm": None}, "names + unknown images", "names + unknown"),
        ({"text_weight": 1.0}, {"llm": {"prompts_from": "captions"}}, "names", "names"),
        (
            {"text_weight": 1.0},
            {"text": LLM, "llm": {"prompts_from": "captions"}},
            "names + captioned real images",
            "names + captioned",
        ),
        (
            {"text_weight": 1.0},
            {"text": {"text": {"kind": "descriptors", "inputs": {"content": "abc"}}}},
            "names + unknown descriptors",
            "names + unknown",
        ),
    ],
    ids=[
        "names", "aligned", "test-aligned", "transduction", "both", "prompts", "student", "captions", "prompt-file",
        "image-folder", "templates", "captions-as-text", "descriptor-file",
    ],
)  # fmt: skip
def test_label_and_kind(described: dict[str, Any], values: dict[str, Any], label: str, kind: str) -> None:
    record = seen(described, **values)
    assert (record.label, record.kind) == (label, kind)


def test_baselines_have_seen_their_part_alone() -> None:
    predictor = {"lgclip": REFINED, "inductive": {}, "clip_text": {"text_weight": 1.0}}
    values = {"method": "lgclip", "n": 9, "student": None, "prompt_tuning": None, "text": None, "predictor": predictor}
    labels = {
        name: record["label"] for name, record in data_seen({**values, "llm": PROMPTS, "diffuser": IMAGES}).items()
    }
    assert labels == {"lgclip": "names + 9 test images", "inductive": "names", "clip_text": "names"}
