"""Tests the prompts of several hundred replies, by shape; the replies are in `reply_corpus.py`."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from lgclip.prompts.base import Task
from lgclip.prompts.chat import ChatHistory
from lgclip.prompts.filtering import error_or_refusal
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.reply_parsing import sentences_of
from lgclip.tiny.captions import caption_of
from lgclip.tiny.world import scene_of
from lgclip.types import TargetClass

sys.path.insert(0, str(Path(__file__).parent))
from reply_corpus import CORPUS, Case

CASES = [pytest.param(case, id=f"{shape}-{i}") for shape, cases in CORPUS.items() for i, case in enumerate(cases)]


def usable_prompts(case: Case, reply: str | None = None) -> tuple[str, ...]:
    history = ChatHistory(Task(TargetClass(0, case.name), 9), LocalLLM("hub/llm"))
    history.add([case.reply if reply is None else reply], truncated=[0] if case.is_truncated else [])
    return tuple(history.prompts)


@pytest.mark.parametrize("case", CASES)
def test_reply_has_these_prompts(case: Case) -> None:
    assert usable_prompts(case) == case.prompts


@pytest.mark.parametrize("case", CORPUS["good prompts"])
def test_good_prompts_pass_in_any_format(case: Case) -> None:
    sentences = list(case.prompts)
    for reply in (
        json.dumps({"prompts": sentences}),
        json.dumps(sentences, ensure_ascii=False),
        "\n".join(f"{i}. {text}" for i, text in enumerate([*sentences, f"another {case.name} in a wide field"], 1)),
        "\n".join(f"- {text}" for text in [*sentences, f"another {case.name} in a wide field"]),
    ):
        assert usable_prompts(case, reply)[: len(sentences)] == case.prompts, reply


def test_corpus_is_large() -> None:
    assert len(CASES) >= 200


DESCRIPTIONS = [
    "this is a {} against a black background", "this image shows a {} against a white wall",
    "this is a {} outside in the rain", "it is a harmful {} on a leaf", "this photo is of a {} outside a barn",
    "that is a {} beyond the fence", "a {} under a policy sign", "this is an illegal {} on the street",
    "here is a {} on the left", "there is a {} in the middle", "the {} is not in focus",
    "this {} cannot be seen clearly behind the grass", "a request for a {} written on paper", "an unsafe {} on a cliff",
    "no {} is visible behind the glass, only its shadow", "this is a {} that refuses to move", "a {} declined in size",
    "the image of a {} was blocked by a tree", "access to the {} is through a gate", "sorry looking {} in the rain",
    "as a {} it sits", "a {} per the rules of composition", "this picture of a {} is against the light",
]  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS)
@pytest.mark.parametrize("name", ["cat", "flowers", "plain orange star", "boxer"])
def test_descriptions_with_words_of_refusals_are_prompts(description: str, name: str) -> None:
    """ "against" and "outside" in a description were taken for a refusal, and the default run changed by 0.2 points."""
    prompt = description.format(name)

    assert error_or_refusal(prompt, name) is None
    assert sentences_of(prompt) == [prompt]


def test_captions_of_the_small_world_are_prompts() -> None:
    rng = np.random.default_rng(0)
    for number in range(2000):
        scene, _ = scene_of("test", number % 1200)
        caption = caption_of(scene, rng, paraphrase=0.0)
        assert error_or_refusal(caption, scene.kind.name) is None, caption
