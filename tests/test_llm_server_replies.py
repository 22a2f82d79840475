"""What becomes of a server's replies: good, bad, odd, too few."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import (
    BAD_FIRST,
    KEY,
    NAMES,
    always,
    calls,
    completion,
    first,
    good,
    good_reply,
    llm,
    run,
    stage,
)

from lgclip.prompts.base import PromptError

pytest_plugins = ("chat_fixtures",)
pytestmark = pytest.mark.usefixtures("key")


def test_a_good_server_is_asked_once_a_class(serve: Any, tmp_path: Path) -> None:
    model = serve(always(good_reply))
    writing = stage(tmp_path, llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw."))
    run(writing)
    assert writing.texts() == [good(name) for name in NAMES]
    assert calls(model) == [1, 1, 1, 1]
    assert model.keys == {f"Bearer {KEY}"}
    body = model.asked["red fox"][0]
    assert {key: body[key] for key in ("model", "temperature", "top_p", "top_k", "max_tokens")} == {
        "model": "good-model", "temperature": 1.0, "top_p": 0.9, "top_k": 7, "max_tokens": 2048
    }  # fmt: skip
    assert body["response_format"]["json_schema"]["schema"]["required"] == ["prompts"]
    assert body["messages"][0] == {"role": "system", "content": "You draw."}
    assert "red fox (a kind of animal)" in body["messages"][1]["content"]
    assert "Write 4 " in body["messages"][1]["content"]
    seeds = {request["seed"] for requests in model.asked.values() for request in requests}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**31 for seed in seeds)
    run(stage(tmp_path, llm(model, top_p=0.9, extra={"top_k": 7}, system="You draw.")))
    assert calls(model) == [1, 1, 1, 1], "what is stored is not asked for again"


@pytest.mark.parametrize("bad", BAD_FIRST.values(), ids=BAD_FIRST.keys())
def test_after_a_bad_reply_it_is_asked_again(bad: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(first(bad))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name, 2) for name in NAMES], "nothing of the bad reply is kept"
    assert calls(model) == [2, 2, 2, 2]


def test_a_bad_reply_changes_the_seed_and_a_lost_one_does_not(serve: Any, tmp_path: Path) -> None:
    for bad, same in ((BAD_FIRST["refusal"], False), (BAD_FIRST["500"], True)):
        model = serve(first(bad))
        run(stage(tmp_path / str(same), llm(model)))
        seeds = [[body["seed"] for body in model.asked[name]] for name in NAMES]
        assert [one == two for one, two in seeds] == [same] * 4


SHAPES: dict[str, Callable[[str], str]] = {
    "fenced": lambda name: f"Here you go:\n```json\n{json.dumps({'prompts': good(name)})}\n```\nEnjoy!",
    "bare list": lambda name: json.dumps(good(name)),
    "objects": lambda name: json.dumps([{"prompt": text} for text in good(name)]),
    "numbered list": lambda name: "\n".join(f"{i}. {text}" for i, text in enumerate(good(name), 1)),
    "bold bullets": lambda name: "Sure:\n" + "\n".join(f"- **{text}**" for text in good(name)),
    "thinking block": lambda name: f"<think>1. a bad {name}</think>{json.dumps({'prompts': good(name)})}",
    "too many": lambda name: json.dumps({"prompts": good(name, count=9)}),
    "duplicates": lambda name: json.dumps({"prompts": [text for text in good(name) for _ in range(3)]}),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_replies_of_any_shape_are_read(shape: Any, serve: Any, tmp_path: Path) -> None:
    model = serve(always(lambda name, turn: completion(shape(name))))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name) for name in NAMES]
    assert calls(model) == [1, 1, 1, 1]


def test_of_a_cut_reply_the_whole_sentences_are_kept_and_the_rest_is_asked_for(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        whole = json.dumps({"prompts": good(name, turn)})
        return completion(whole[: whole.index("side 2") + 3], "length") if turn == 1 else completion(whole)

    model = serve(always(answer))
    writing = stage(tmp_path, llm(model))
    run(writing)
    assert writing.texts() == [good(name)[:2] + good(name, 2)[:2] for name in NAMES]
    assert calls(model) == [2, 2, 2, 2]
    again = model.asked["barn owl"][1]["messages"][-1]["content"]
    assert "Write 2 " in again
    assert all(f"- {text}" in again for text in good("barn owl")[:2]), "it is told what is there"


def test_too_few_are_asked_for_again_at_most_k_times(serve: Any, tmp_path: Path) -> None:
    model = serve(always(lambda name, turn: good_reply(name, 1 if name == "sea otter" else turn, 2)))
    writing = stage(tmp_path, llm(model))
    said = r"1 of 4 classes .*class 2 \('sea otter'\): 2 usable prompts of 4 in 3 rounds \(duplicate 4\)"
    with pytest.raises(PromptError, match=said):
        run(writing)
    assert calls(model) == [2, 2, 3, 2]
    assert writing.missing() == [2]
    assert writing.texts()[2] == good("sea otter")[:2], "what it gave is kept"
    model.answer = always(lambda name, turn: good_reply(name, turn, 2))
    run(stage(tmp_path, llm(model)))
    assert calls(model) == [2, 2, 4, 2], "the others are not asked again"
    assert writing.texts()[2] == [*good("sea otter")[:2], *good("sea otter", 4)[:2]]


def test_asking_for_more_keeps_what_is_there(serve: Any, tmp_path: Path) -> None:
    model = serve(always(good_reply))
    run(stage(tmp_path, llm(model)))
    more = stage(tmp_path, llm(model), wanted=6)
    run(more)
    assert more.texts() == [good(name) + good(name, 2)[:2] for name in NAMES]
    assert calls(model) == [2, 2, 2, 2]


def test_a_class_that_is_never_described_may_get_templates(serve: Any, tmp_path: Path) -> None:
    def answer(name: str, turn: int) -> Any:
        return completion("I'm sorry, I can't.") if name == "red fox" else good_reply(name)

    model = serve(always(answer))
    writing = stage(tmp_path, llm(model, allow_fallback=True))
    run(writing)
    assert writing.texts()[0] == ["a photo of a red fox, a kind of animal."] * 4
    assert writing.templated() == [4, 0, 0, 0]
    assert calls(model) == [3, 1, 1, 1]
    run(stage(tmp_path, llm(model, allow_fallback=True)))
    assert calls(model) == [3, 1, 1, 1]
    with pytest.raises(PromptError, match=r"class 0 .*refusal 3"):
        run(stage(tmp_path, llm(model)))
