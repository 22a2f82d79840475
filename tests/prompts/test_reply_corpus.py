"""Tests the prompts of several hundred replies, by shape; the replies are in `reply_corpus.py`."""

import json
import sys
from pathlib import Path

import pytest

from lgclip.prompts.base import Task
from lgclip.prompts.chat import ChatHistory
from lgclip.prompts.local_llm import LocalLLM
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
