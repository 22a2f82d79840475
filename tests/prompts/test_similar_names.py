"""Names of things that are similar to the classes are none of them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lgclip.prompts.filtering import normal_form
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.server_llm import ServerLLM
from lgclip.prompts.similar_names import names_generator, recombined_names, usable_names
from lgclip.prompts.template import Templates, fill
from lgclip.types import TargetClass


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        ([["Wolf", "fox"], ["lynx"]], ["Wolf", "lynx", "fox"]),
        ([["1. wolf.", '"fox"', "- coyote,"], []], ["wolf", "fox", "coyote"]),
        ([["Dog", "dogs", "guide dog", "cat"], ["wolf"]], ["wolf"]),
        ([["wolf", "Wolf", "wolf!"], ["WOLF", "lynx"]], ["wolf", "lynx"]),
        ([["an animal that is often seen beside a dog house", "wolf"], []], ["wolf"]),
        ([["", "...", "7", "wolf"], []], ["wolf"]),
        ([["a1", "a2", "a3", "a4"], []], ["a1", "a2", "a3"]),
    ],
)
def test_answers_are_cleaned(answers: list[list[str]], expected: list[str]) -> None:
    assert usable_names(answers, ("dog", "cat"), 3) == expected


def test_kinds_of_a_class_are_no_negatives() -> None:
    assert usable_names([["police car", "sports cars", "carriage"]], ("car",), 3) == ["carriage"]


def test_recombined_names_differ_in_one_word() -> None:
    classes = ("red circle", "blue star")
    assert sorted(recombined_names(classes, 5)) == ["blue circle", "red star"]
    assert recombined_names(("dog", "cat"), 3) == []
    assert recombined_names(("red circle", "cat"), 3) == []
    assert recombined_names(("digit one", "digit two"), 3) == []


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("wxyz")), min_size=2, max_size=10, unique=True),
    st.integers(1, 4),
)
def test_recombined_names_are_no_class(pairs: list[tuple[str, str]], count: int) -> None:
    classes = [" ".join(pair) for pair in pairs]
    names = recombined_names(classes, count)
    assert not {normal_form(name) for name in names} & {normal_form(name) for name in classes}
    assert len(set(names)) == len(names) <= count * len(classes)
    assert names == recombined_names(classes, count)
    for name in names:
        assert any(sum(a != b for a, b in zip(name.split(), other.split(), strict=True)) == 1 for other in classes)


def test_chat_models_are_asked() -> None:
    generator = names_generator(ServerLLM("some-model", allow_fallback=True))
    assert generator is not None
    request = fill(generator.instruction, TargetClass(0, "tabby cat", "a pet"), 3)
    assert request.startswith('Name 3 things that look similar to "tabby cat" (a pet) in a photograph')
    assert not generator.falls_back, "a template sentence is no name"
    assert not generator.must_name


def test_other_generators_are_not_asked() -> None:
    assert names_generator(Templates()) is None
    assert names_generator(LocalLLM("tiny:language", "{name}", again="")) is None
