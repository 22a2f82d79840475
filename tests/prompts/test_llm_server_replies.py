"""Tests the handling of a server's replies: good, bad, unusual, too few."""

import json
from collections.abc import Callable
from itertools import chain, product
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    BAD_FIRST,
    KEY,
    NAMES,
    completion,
    count_requests,
    fail_first,
    generation_stage,
    good_reply,
    good_sentences,
    reply_always,
    run_stage,
    server_llm,
)

from lgclip.prompts.base import PromptError

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


def test_good_server_gets_one_request_per_class(serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(good_reply))
    writing = generation_stage(tmp_path, server_llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw."))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name) for name in NAMES]
    assert count_requests(model) == [1, 1, 1, 1]
    assert model.keys == {f"Bearer {KEY}"}
    body = model.requests["red fox"][0]
    assert {key: body[key] for key in ("model", "temperature", "top_p", "top_k", "max_tokens")} == {
        "model": "good-model", "temperature": 1.0, "top_p": 0.9, "top_k": 7, "max_tokens": 2048
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["prompts"]
    assert body["messages"][0] == {"role": "system", "content": "You draw."}
    assert "red fox (a kind of animal)" in body["messages"][1]["content"]
    assert "Write 4 " in body["messages"][1]["content"]
    seeds = {request["seed"] for request in chain.from_iterable(model.requests.values())}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    run_stage(generation_stage(tmp_path, server_llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw.")))
    assert count_requests(model) == [1, 1, 1, 1], "what is stored is not asked for again"


@pytest.mark.slow
@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_bad_reply_is_retried(bad: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(fail_first(bad))
    writing = generation_stage(tmp_path, server_llm(model))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name, 2) for name in NAMES], "nothing of the bad reply is kept"
    assert count_requests(model) == [2, 2, 2, 2]


def test_only_bad_replies_change_the_seed(serve: Any, tmp_path: Path) -> None:
    for bad, keeps_seed in ((BAD_FIRST["refusal"], False), (BAD_FIRST["500"], True)):
        model = serve(fail_first(bad))
        run_stage(generation_stage(tmp_path / str(keeps_seed), server_llm(model)))
        seeds = []
        for name in NAMES:
            seeds.append([body["seed"] for body in model.requests[name]])
        assert [first_seed == two for first_seed, two in seeds] == [keeps_seed] * 4


SHAPES: dict[str, Callable[[str], str]] = {
    "fenced": lambda name: f"Here you go:\n```json\n{json.dumps({'prompts': good_sentences(name)})}\n```\nEnjoy!",
    "bare list": lambda name: json.dumps(good_sentences(name)),
    "objects": lambda name: json.dumps([{"prompt": text} for text in good_sentences(name)]),
    "numbered list": lambda name: "\n".join(f"{i}. {text}" for i, text in enumerate(good_sentences(name), 1)),
    "bold bullets": lambda name: "Sure:\n" + "\n".join(f"- **{text}**" for text in good_sentences(name)),
    "thinking block": lambda name: f"<think>1. a bad {name}</think>{json.dumps({'prompts': good_sentences(name)})}",
    "too many": lambda name: json.dumps({"prompts": good_sentences(name, count=9)}),
    "duplicates": lambda name: json.dumps({"prompts": [text for text, _ in product(good_sentences(name), range(3))]}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_replies_of_any_shape_are_parsed(shape: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(lambda name, turn: completion(shape(name))))
    writing = generation_stage(tmp_path, server_llm(model))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name) for name in NAMES]
    assert count_requests(model) == [1, 1, 1, 1]


def test_truncated_reply_keeps_complete_sentences(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        full = json.dumps({"prompts": good_sentences(name, turn)})
        return completion(full[: full.index("side 2") + 3], "length") if turn == 1 else completion(full)

    model = serve(reply_always(answer))
    writing = generation_stage(tmp_path, server_llm(model))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name)[:2] + good_sentences(name, 2)[:2] for name in NAMES]
    assert count_requests(model) == [2, 2, 2, 2]
    again = model.requests["barn owl"][1]["messages"][-1]["content"]
    assert "Write 2 " in again
    assert all(f"- {text}" in again for text in good_sentences("barn owl")[:2]), "the request lists existing prompts"


@pytest.mark.parametrize("finish", ["length", "MAX_TOKENS"])
def test_half_sentence_at_the_token_limit_is_no_prompt(finish: str, serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        sentences = "\n".join(f"{i}. {text}" for i, text in enumerate(good_sentences(name, turn), 1))
        return completion(sentences[:-6], finish) if turn == 1 else completion(sentences)

    model = serve(reply_always(answer))
    writing = generation_stage(tmp_path, server_llm(model, structured=False))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name)[:3] + good_sentences(name, 2)[:1] for name in NAMES]


def test_thinking_parts_of_a_message_are_dropped(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        thinking = {"type": "reasoning", "text": f"a draft {name} sits here\n"}
        return completion([thinking, {"type": "text", "text": "\n".join(good_sentences(name))}])

    writing = generation_stage(tmp_path, server_llm(serve(reply_always(answer))))
    run_stage(writing)
    assert writing.texts() == [good_sentences(name) for name in NAMES]


def test_too_few_prompts_are_retried_k_times(serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(lambda name, turn: good_reply(name, 1 if name == "sea otter" else turn, 2)))
    writing = generation_stage(tmp_path, server_llm(model))
    message = r"1 of 4 classes .*class 2 \('sea otter'\): 2 usable prompts of 4 in 3 rounds \(duplicate 4\)"
    with pytest.raises(PromptError, match=message):
        run_stage(writing)
    assert count_requests(model) == [2, 2, 3, 2]
    assert writing.missing() == [2]
    assert writing.texts()[2] == good_sentences("sea otter")[:2], "what it gave is kept"
    model.answer = reply_always(lambda name, turn: good_reply(name, turn, 2))
    run_stage(generation_stage(tmp_path, server_llm(model)))
    assert count_requests(model) == [2, 2, 4, 2], "the others are not asked again"
    assert writing.texts()[2] == [*good_sentences("sea otter")[:2], *good_sentences("sea otter", 4)[:2]]


def test_more_prompts_keep_the_existing(serve: Any, tmp_path: Path) -> None:
    model = serve(reply_always(good_reply))
    run_stage(generation_stage(tmp_path, server_llm(model)))
    larger = generation_stage(tmp_path, server_llm(model), requested=6)
    run_stage(larger)
    assert larger.texts() == [good_sentences(name) + good_sentences(name, 2)[:2] for name in NAMES]
    assert count_requests(model) == [2, 2, 2, 2]


def test_templates_replace_missing_prompts(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        return completion("I'm sorry, I can't.") if name == "red fox" else good_reply(name)

    model = serve(reply_always(answer))
    writing = generation_stage(tmp_path, server_llm(model, allow_fallback=True))
    run_stage(writing)
    assert writing.texts()[0] == ["a photo of a red fox, a kind of animal."] * 4
    assert writing.templated() == [4, 0, 0, 0]
    assert count_requests(model) == [3, 1, 1, 1]
    run_stage(generation_stage(tmp_path, server_llm(model, allow_fallback=True)))
    assert count_requests(model) == [3, 1, 1, 1]
    with pytest.raises(PromptError, match=r"class 0 .*refusal 3"):
        run_stage(generation_stage(tmp_path, server_llm(model)))
