from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from lgclip.batch import Subject
from lgclip.prompts.base import PromptError
from lgclip.prompts.local import LocalLLM
from lgclip.prompts.replies import usable_lines
from lgclip.prompts.template import Templates
from lgclip.tiny.vocabulary import language_tokenizer

CPU = torch.device("cpu")
ODD_NAMES = ["cat", "a/b", "..", "🦙 llama", "n" * 300, "{name}", "{}", "\\1 %s {0}"]


@pytest.mark.parametrize(
    ("templates", "message"), [((), "at least one sentence"), (("a {}", "a cat"), "'a cat' has no {}")]
)
def test_templates_without_a_place_for_the_name_are_refused(templates: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Templates(templates)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_templates_take_turns_and_hold_any_name_as_it_is(name: str) -> None:
    prompts = Templates(("a {}.", "the {}!")).load(CPU)(Subject(0, name), 5, 0)
    assert prompts == [f"a {name}.", f"the {name}!", f"a {name}.", f"the {name}!", f"a {name}."]


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
        ("a red dog", None),
        ("Here are five prompts:", None),
        ("", None),
    ],
)
def test_a_line_is_a_prompt_if_it_holds_the_name_once_numbering_is_off(line: str, prompt: str | None) -> None:
    assert usable_lines(line, "cat") == ([] if prompt is None else [prompt])


@given(st.text(), st.text(min_size=1))
def test_every_usable_line_is_one_line_with_the_name_in_it(reply: str, name: str) -> None:
    for line in usable_lines(reply, name):
        assert name.casefold() in line.casefold()
        assert line == " ".join(line.split())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"instruction": "write"}, "no {name}"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"top_p": 0}, r"\(0, 1\]"),
        ({"top_p": 1.1}, r"\(0, 1\]"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"replies_per_round": -1}, "at least 1"),
        ({"max_rounds": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"llm\.{name}=.*{message}"):
        LocalLLM("hub/llm", **setting)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model in the hub's format that has learned nothing: it says any letter."""
    torch.manual_seed(0)
    tokenizer: Any = language_tokenizer(["a cat"], size=258)
    place = tmp_path_factory.mktemp("llm")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def writer(folder: Path, **settings: Any) -> LocalLLM:
    # Any reply holds the empty name, which lets a model without any learning write prompts.
    return LocalLLM(str(folder), **{"max_new_tokens": 6, "replies_per_round": 3, **settings})


def test_more_prompts_continue_fewer(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    few, many = pen(Subject(0, ""), 2, 0), pen(Subject(0, ""), 8, 0)
    assert len(few) >= 2
    assert len(many) >= 8
    assert len(set(many)) == len(many)
    assert many[: len(few)] == few


def test_prompts_depend_on_class_name_and_seed_alone(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    first = pen(Subject(0, ""), 3, 0)
    torch.rand(5)  # what else drew random numbers meanwhile is no matter
    assert writer(folder).load(CPU)(Subject(0, ""), 3, 0) == first
    assert pen(Subject(1, ""), 3, 0) != first
    assert pen(Subject(0, ""), 3, 1) != first


def test_writing_leaves_the_random_state_alone(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    before = torch.get_rng_state()
    pen(Subject(0, ""), 1, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("settings", [{"temperature": 0.01}, {"top_p": 0.001}, {"max_new_tokens": 1}])
def test_the_sampling_settings_reach_the_model(settings: dict[str, Any], folder: Path) -> None:
    def replies(**changed: Any) -> list[str]:
        return writer(folder, replies_per_round=16, max_rounds=1, **changed).load(CPU)(Subject(0, ""), 1, 0)

    # Sure of itself, or short of words, the model repeats itself.
    assert len(replies(**settings)) < len(replies())


def test_too_few_prompts_are_an_error_that_names_the_class(folder: Path) -> None:
    pen = writer(folder, max_rounds=2).load(CPU)
    with pytest.raises(PromptError, match=r"class 4 \('axolotl'\).* 0 usable prompts of 3 in 2 rounds"):
        pen(Subject(4, "axolotl"), 3, 0)


def test_the_model_is_asked_for_the_name_in_the_instruction(folder: Path) -> None:
    """The double stands for a model that says what it was told, which no untrained model does."""
    llm = LocalLLM(str(folder), instruction="Draw {name}!")
    asked: list[tuple[str, int]] = []

    def replies(name: str, seed: int) -> list[str]:
        asked.append((name, seed))
        return [f"1. a {name}\n2. a {name} in round {len(asked)}\nthat is all"]

    assert llm._write(replies, 2, "cat", 4, 7) == ["a cat", *(f"a cat in round {i}" for i in (1, 2, 3))]
    assert len({seed for _, seed in asked}) == 3
