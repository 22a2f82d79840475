"""What models say, to prompts: every shape that a reply may come in, and what becomes of each sentence."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.batch import Subject
from lgclip.prompts.base import PromptError, Task, Written
from lgclip.prompts.chat import Notebook
from lgclip.prompts.local import LocalLLM
from lgclip.prompts.replies import NoPromptsError, sentences_of
from lgclip.prompts.verdicts import Outcome, names, sameness, spoilt, verdict

A, B = "a red cat on a mat", "a blue cat in the rain"
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
def test_two_sentences_come_out_of_any_shape(reply: str) -> None:
    assert sentences_of(reply) == [A, B]


@pytest.mark.parametrize(
    "reply",
    ["", " \n\t", "<think>", "<think>only thoughts of a cat", "[]", '{"prompts": []}', "```json\n```", "1.\n2.\n"],
)
def test_a_reply_may_hold_nothing(reply: str) -> None:
    assert sentences_of(reply) == []


@pytest.mark.parametrize("value", [{"message": "hello"}, {"answer": 42}, {"error": "overloaded"}, {}])
def test_json_of_another_kind_is_no_prompt(value: Any) -> None:
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
def test_what_stands_around_a_line_is_taken_off(line: str, prompt: str | None) -> None:
    assert sentences_of(line) == ([] if prompt is None else [prompt])


@given(st.text())
def test_any_reply_is_read_and_every_sentence_is_one_clean_line(reply: str) -> None:
    try:
        found = sentences_of(reply)
    except NoPromptsError:
        return
    for sentence in found:
        assert sentence
        assert sentence == " ".join(sentence.split())


@given(st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1), min_size=1))
def test_a_json_list_comes_back_as_it_was(sentences: list[str]) -> None:
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
def test_a_refusal_is_told_apart(text: str) -> None:
    assert spoilt(text) is Outcome.REFUSAL


@pytest.mark.parametrize("text", ERRORS)
def test_an_error_text_is_told_apart(text: str) -> None:
    assert spoilt(text) is Outcome.ERROR_TEXT


@pytest.mark.parametrize(
    "text", [A, B, "an icon of a cat", "nullarbor plain with a cat", "a terror bird", "a cat saying sorry"]
)
def test_a_description_is_neither(text: str) -> None:
    assert spoilt(text) is None


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
def test_a_name_is_found_however_it_is_written(text: str, name: str) -> None:
    assert names(text, name)


@pytest.mark.parametrize(("text", "name"), UNNAMED)
def test_a_name_that_is_not_there_is_not_found(text: str, name: str) -> None:
    assert not names(text, name)


@given(st.text(st.characters(categories=["L"]), min_size=1), st.text(), st.text())
def test_a_name_between_spaces_is_always_found(name: str, before: str, after: str) -> None:
    assert names(f"{before} {name} {after}", name)


@pytest.mark.parametrize(
    ("text", "name", "outcome"),
    [
        (A, "cat", Outcome.USABLE),
        ("", "cat", Outcome.EMPTY),
        ("cat", "cat", Outcome.TOO_SHORT),
        ("红色的 猫 在 垫子 上面", "cat", Outcome.WRONG_LANGUAGE),
        ("рыжий кот на коврике cat", "cat", Outcome.WRONG_LANGUAGE),
        ("un gato rojo sobre el cat", "cat", Outcome.USABLE),  # the script alone is looked at
        ("红色的猫", "猫", Outcome.USABLE),  # words without spaces are not counted
        ("a red dog on a mat", "cat", Outcome.NO_NAME),
        ("A red cat, on a mat!", "cat", Outcome.DUPLICATE),
        ("I'm sorry, I can't draw a cat", "cat", Outcome.REFUSAL),
        ("Error: no cat", "cat", Outcome.ERROR_TEXT),
        ("an image of an error message", "error message", Outcome.USABLE),
    ],
)
def test_every_sentence_has_one_outcome(text: str, name: str, outcome: Outcome) -> None:
    known = {sameness(A)} if outcome is Outcome.DUPLICATE else set()
    rules = {"must_name": True, "exact_name": False, "min_words": 3}
    assert verdict(text, Subject(0, name), known, **rules) is outcome


def test_the_rules_on_the_name_are_the_configs() -> None:
    said, subject = "two black footed albatrosses at sea", Subject(0, "Black-footed Albatross")
    for must_name, exact_name, outcome in (
        (True, False, Outcome.USABLE), (True, True, Outcome.NO_NAME), (False, True, Outcome.USABLE)
    ):  # fmt: skip
        assert verdict(said, subject, set(), must_name=must_name, exact_name=exact_name, min_words=1) is outcome


def book(wanted: int, have: tuple[str, ...] = (), turn: int = 0) -> Notebook:
    return Notebook(Task(Subject(7, "cat"), wanted, have, turn), LocalLLM("hub/llm"))


def test_a_notebook_keeps_what_is_new_after_what_is_there() -> None:
    kept = book(4, (A,), turn=3)
    assert kept.missing == 3
    kept.add([json.dumps([A.upper(), B]), f"1. {B}.\n2. a cat made of glass"])
    assert kept.prompts == [A, B, "a cat made of glass"]
    assert isinstance(kept.result(), PromptError)
    kept.add(["- the cat that came last\n- and one cat more"])
    assert kept.result() == Written([A, B, "a cat made of glass", "the cat that came last", "and one cat more"], 5)


@pytest.mark.parametrize(
    "bad", [*REFUSALS, *ERRORS, '{"error": "the cat is overloaded"}', '{"message": "a cat is here"}']
)
def test_no_refusal_and_no_error_text_becomes_a_prompt(bad: str) -> None:
    kept = book(1)
    kept.add([bad, json.dumps({"prompts": [bad]})])
    assert kept.prompts == []


def test_a_failure_says_what_became_of_the_replies() -> None:
    failed = book(5)
    failed.add([REFUSALS[0], "", ERRORS[0], f"{A}\n{A}", '{"answer": "no cat"}'])
    failed.add(["a dog on a mat\na dog in the rain"])
    assert str(failed.result("the server went away")) == (
        "class 7 ('cat'): 1 usable prompts of 5 in 2 rounds (the server went away; without the class name 2, "
        "refusal 1, empty 1, error text 1, duplicate 1, not the format that was asked for 1)"
    )


def test_what_is_there_is_shown_when_more_is_asked_for() -> None:
    llm = LocalLLM("hub/llm", instruction="{count} of {name}", again="not:\n{have}", system="You draw {name}.")
    first, later = (Notebook(Task(Subject(0, "cat"), 5, have), llm) for have in ((), (A, B)))
    assert llm.chat(first) == [
        {"role": "system", "content": "You draw cat."}, {"role": "user", "content": "5 of cat"}
    ]  # fmt: skip
    assert llm.chat(later)[-1]["content"] == f"3 of cat\n\nnot:\n- {A}\n- {B}"
