"""Tests the parsing of replies into prompts: every shape of reply and what becomes of each sentence."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.chat import ChatHistory
from lgclip.prompts.filtering import FilterResult, error_or_refusal, filter_reply, names, normal_form
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.reply_parsing import NoPromptsError, sentences_of
from lgclip.types import TargetClass

A = "a red cat on a mat"
B = "a blue cat in the rain"
JSON = json.dumps({"prompts": [A, B]})

REPLIES = {
    "object": JSON,
    "pretty object": json.dumps({"prompts": [A, B]}, indent=2),
    "bare list": json.dumps([A, B]),
    "another key": json.dumps({"descriptions": [A, B]}),
    "unknown key": json.dumps({"cat": [A, B]}),
    "list of objects": json.dumps([{"prompt": A}, {"description": B}]),
    "objects with numbers": json.dumps({"prompts": [{"id": 1, "text": A}, {"id": 2, "text": B}]}),
    "numbered keys": json.dumps({"prompt1": A, "prompt2": B}),
    "one object a line": "\n".join(json.dumps({"prompt": text}) for text in (A, B)),
    "text for a list": json.dumps({"prompts": f"1. {A}\n2. {B}"}),
    "things that are no text": json.dumps({"prompts": [A, None, 3, B, ["x"]]}),
    "fenced": f"```json\n{JSON}\n```",
    "fenced without a language": f"```\n{JSON}\n```",
    "fenced with talk": f"Here is the JSON you asked for:\n\n```json\n{JSON}\n```\nLet me know if you want more!",
    "talk on the same line": f"Sure! {JSON} I hope this helps.",
    "thinking": f"<think>\nThe user wants cats: [\"draft cat\"]\n1. no cat\n</think>\n{JSON}",
    "thinking that was opened by the template": f"so, cats... {{\"prompts\": [\"draft\"]}}\n</think>\n\n{JSON}",
    "thinking by another name": f"<reasoning>1. draft cat</reasoning>1. {A}\n2. {B}",
    "thinking in brackets": f"[THINK]draft cat[/THINK]{JSON}",
    "cut off": f'{{"prompts": ["{A}", "{B}", "a green cat tha',
    "cut off in a fence": f'```json\n{{"prompts": [\n  "{A}",\n  "{B}",\n  "a gre',
    "trailing comma": f'{{"prompts": ["{A}", "{B}",]}}',
    "missing comma": f'{{"prompts": ["{A}" "{B}"]}}',
    "raw line break inside": f'{{"prompts": ["a red cat\non a mat", "{B}"]}}',
    "numbered": f"1. {A}\n2. {B}",
    "numbered otherwise": f"1) {A}\n(2) {B}",
    "numbered with talk": f"Here are 2 prompts:\n\n1. {A}\n2. {B}\n\nLet me know if you would like more cat prompts.",
    "bullets": f"- {A}\n* {B}",
    "round bullets": f"• {A}\n• {B}",
    "bold numbers": f"**1.** {A}\n**2.** {B}",
    "bold sentences": f"1. **{A}**\n2. **{B}**",
    "labels": f"Prompt 1: {A}\nPrompt 2: {B}",
    "headings": f"## Cats\n\n- {A}\n- {B}",
    "quotes": f'"{A}"\n"{B}"',
    "curly quotes": f"“{A}”\n“{B}”",
    "quoted list with commas": f'"{A}",\n"{B}"',
    "numbers inside the JSON": json.dumps({"prompts": [f"1. {A}", f"2. {B}"]}),
    "plain lines": f"{A}\n\n{B}\n",
    "preamble": f"Certainly! Below are the prompts:\n{A}\n{B}",
    "control characters": f"\ufeff{A}\x00\r\n\x1b{B}\u200b",
    "spaces": f"   {A.replace(' ', '   ')}\t\n {B}",
}  # fmt: skip


@pytest.mark.parametrize("reply", REPLIES.values(), ids=REPLIES.keys())
def test_sentences_are_parsed_from_any_shape(reply: str) -> None:
    assert sentences_of(reply) == [A, B]


@pytest.mark.parametrize(
    "reply",
    ["", " \n\t", "<think>", "<think>only thoughts of a cat", "[]", '{"prompts": []}', "```json\n```", "1.\n2.\n"],
)
def test_empty_replies_are_parsed(reply: str) -> None:
    assert sentences_of(reply) == []


@pytest.mark.parametrize("value", [{"message": "hello"}, {"answer": 42}, {"error": "overloaded"}, {}])
def test_other_json_gives_no_prompt(value: Any) -> None:
    with pytest.raises(NoPromptsError):
        sentences_of(f"```json\n{json.dumps(value)}\n```") if value else sentences_of('{"a": {}}')


@pytest.mark.parametrize(
    ("line", "prompt"),
    [
        ("a red cat", "a red cat"),
        ("  1. a red cat ", "a red cat"),
        ("(12) a red cat", "a red cat"),
        ("3: a red cat", "a red cat"),
        ("- a red cat", "a red cat"),
        ("• 'a red  cat'", "a red cat"),
        ('2) "A Red CAT"', "A Red CAT"),
        ("3 red cats", "3 red cats"),  # a number of things is no numbering
        ("1. 2 red cats", "2 red cats"),
        ("1.5 m of cat", "1.5 m of cat"),
        ("a cat [on a mat] {as ever}", "a cat [on a mat] {as ever}"),
        ("a 'cat' and a \"dog\"", "a 'cat' and a \"dog\""),
        ("Here are five prompts:", None),
    ],
)
def test_list_markers_are_stripped(line: str, prompt: str | None) -> None:
    assert sentences_of(line) == ([] if prompt is None else [prompt])


@given(st.text())
def test_parsed_sentences_are_clean_lines(reply: str) -> None:
    try:
        sentences = sentences_of(reply)
    except NoPromptsError:
        return
    for sentence in sentences:
        assert sentence
        assert sentence == " ".join(sentence.split())


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1))
def test_json_list_is_recovered(sentences: list[str]) -> None:
    assert sentences_of(json.dumps({"prompts": sentences}, ensure_ascii=False)) == sentences


REFUSALS = [
    "I'm sorry, but I can't help with that cat.",
    "I’m sorry, but I cannot describe a cat.",  # noqa: RUF001
    "I cannot provide descriptions of a cat.",
    "I can't assist with that request.",
    "As an AI language model, I have never seen a cat.",
    "Unfortunately, I am not able to do so.",
    "Sorry, no cat today.",
    "I don't have enough information on this cat.",
]
ERRORS = [
    "Error: rate limit reached for cat",
    "API error 500 for cat",
    "Internal Server Error",
    "<!DOCTYPE html><html><body>502 Bad Gateway</body></html>",
    "Traceback (most recent call last): cat",
    "openai.RateLimitError: Error code: 429 - cat",
    "ValueError: no such cat as that",
    "Too Many Requests for the cat",
    "null",
    "the server said: status code 503 for cat",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusal_is_detected(text: str) -> None:
    assert error_or_refusal(text) is FilterResult.REFUSAL


@pytest.mark.parametrize("text", ERRORS)
def test_error_text_is_detected(text: str) -> None:
    assert error_or_refusal(text) is FilterResult.ERROR_TEXT


@pytest.mark.parametrize(
    "text", [A, B, "an icon of a cat", "nullarbor plain with a cat", "a terror bird", "a cat saying sorry"]
)
def test_description_is_accepted(text: str) -> None:
    assert error_or_refusal(text) is None


NAMED = [
    ("a cat", "cat"),
    ("two Cats!", "cat"),
    ("many berries", "berry"),
    ("one berry", "berries"),
    ("sharp knives", "knife"),
    ("three fishermen", "fisherman"),
    ("a black-footed albatross", "Black_footed_Albatross"),
    ("Blackfooted albatrosses", "Black footed Albatross"),
    ("a black footed albatross", "blackfooted-albatross"),
    ("a Boeing 737 200 taxis", "Boeing 737-200"),
    ("birds of paradise", "bird of paradise"),
    ("Geoffroys spider monkey", "Geoffroy's spider monkey"),
    ("a creme brulee", "crème brûlée"),
    ("an aerial view of a road", "highway or road"),
    ("a lake from above", "sea or lake"),
    ("a tench in shallow water", "tench, Tinca tinca"),
    ("a maillot on the beach", "maillot (one-piece)"),
    ("a sea-lake", "sea/lake"),
    ("一只可爱的猫在垫子上", "猫"),
    ("anything at all", ""),
    ("a ++ sign", "++"),
]
UNNAMED = [
    ("a category of things", "cat"),
    ("a dog", "cat"),
    ("a sea lion", "seal"),
    ("an albatross", "black footed albatross"),
    ("the albatross is black and footed", "black footed albatross"),
    ("a road", "a/b"),
    ("a thing in brackets", "maillot (one-piece)"),
    ("一只狗", "猫"),
    ("", "cat"),
]


@pytest.mark.parametrize(("text", "name"), NAMED)
def test_name_is_found_in_variants(text: str, name: str) -> None:
    assert names(text, name)


@pytest.mark.parametrize(("text", "name"), UNNAMED)
def test_missing_name_is_not_found(text: str, name: str) -> None:
    assert not names(text, name)


@given(st.text(st.characters(categories=["L"]), min_size=1), st.text(), st.text())
def test_name_between_spaces_is_found(name: str, before: str, after: str) -> None:
    assert names(f"{before} {name} {after}", name)


@pytest.mark.parametrize(
    ("text", "name", "outcome"),
    [
        (A, "cat", FilterResult.USABLE),
        ("", "cat", FilterResult.EMPTY),
        ("cat", "cat", FilterResult.TOO_SHORT),
        ("红色的 猫 在 垫子 上面", "cat", FilterResult.WRONG_LANGUAGE),
        ("рыжий кот на коврике cat", "cat", FilterResult.WRONG_LANGUAGE),
        ("un gato rojo sobre el cat", "cat", FilterResult.USABLE),  # the script alone is looked at
        ("红色的猫", "猫", FilterResult.USABLE),  # words without spaces are not counted
        ("a red dog on a mat", "cat", FilterResult.NO_NAME),
        ("A red cat, on a mat!", "cat", FilterResult.DUPLICATE),
        ("I'm sorry, I can't draw a cat", "cat", FilterResult.REFUSAL),
        ("Error: no cat", "cat", FilterResult.ERROR_TEXT),
        ("an image of an error message", "error message", FilterResult.USABLE),
    ],
)
def test_every_sentence_has_one_result(text: str, name: str, outcome: FilterResult) -> None:
    known = {normal_form(A)} if outcome is FilterResult.DUPLICATE else set()
    rules = {"must_name": True, "exact_name": False, "min_words": 3}
    assert filter_reply(text, TargetClass(0, name), known, **rules) is outcome


def test_name_filters_are_configurable() -> None:
    sentence = "two black footed albatrosses at sea"
    target_class = TargetClass(0, "Black-footed Albatross")
    for must_name, exact_name, outcome in (
        (True, False, FilterResult.USABLE), (True, True, FilterResult.NO_NAME), (False, True, FilterResult.USABLE)
    ):  # fmt: skip
        assert (
            filter_reply(sentence, target_class, set(), must_name=must_name, exact_name=exact_name, min_words=1)
            is outcome
        )


def make_history(requested: int, existing: tuple[str, ...] = (), turn: int = 0) -> ChatHistory:
    return ChatHistory(Task(TargetClass(7, "cat"), requested, existing, turn), LocalLLM("hub/llm"))


def test_chat_history_keeps_new_sentences() -> None:
    accepted = make_history(4, (A,), turn=3)
    assert accepted.missing == 3
    accepted.add([json.dumps([A.upper(), B]), f"1. {B}.\n2. a cat made of glass"])
    assert accepted.prompts == [A, B, "a cat made of glass"]
    assert isinstance(accepted.result(), PromptError)
    accepted.add(["- the cat that came last\n- and one cat more"])
    assert accepted.result() == GeneratedPrompts(
        [A, B, "a cat made of glass", "the cat that came last", "and one cat more"], 5
    )


@pytest.mark.parametrize(
    "bad", [*REFUSALS, *ERRORS, '{"error": "the cat is overloaded"}', '{"message": "a cat is here"}']
)
def test_refusals_are_never_prompts(bad: str) -> None:
    accepted = make_history(1)
    accepted.add([bad, json.dumps({"prompts": [bad]})])
    assert accepted.prompts == []


def test_failure_reports_rejection_reasons() -> None:
    failed = make_history(5)
    failed.add([REFUSALS[0], "", ERRORS[0], f"{A}\n{A}", '{"answer": "no cat"}'])
    failed.add(["a dog on a mat\na dog in the rain"])
    assert str(failed.result("the server went away")) == (
        "class 7 ('cat'): 1 usable prompts of 5 in 2 rounds (the server went away; without the class name 2, "
        "refusal 1, empty 1, error text 1, duplicate 1, not the format that was asked for 1)"
    )


def test_existing_prompts_are_shown_to_the_model() -> None:
    llm = LocalLLM("hub/llm", instruction="{count} of {name}", again="not:\n{have}", system="You draw {name}.")
    first, later = (ChatHistory(Task(TargetClass(0, "cat"), 5, existing), llm) for existing in ((), (A, B)))
    assert llm.chat(first) == [
        {"role": "system", "content": "You draw cat."}, {"role": "user", "content": "5 of cat"}
    ]  # fmt: skip
    assert llm.chat(later)[-1]["content"] == f"3 of cat\n\nnot:\n- {A}\n- {B}"
