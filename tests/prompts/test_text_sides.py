"""The sentences of each text side, written by hand for two classes, and what is refused."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from captioners import ScriptedCaptioner
from omegaconf import OmegaConf

from lgclip.datasets.names import ClassNames
from lgclip.prompts.descriptors import INSTRUCTION, Descriptors, descriptor_sentence
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.server_llm import ServerLLM
from lgclip.prompts.template import Templates, fill
from lgclip.prompts.text_side import ALTERNATIVES, Ensemble, LlmSentences, SingleTemplate, TextSide, text_side
from lgclip.prompts.waffle import Waffle
from lgclip.types import TargetClass

PETS = ClassNames(["cat", "dog"], context="a type of pet")


@pytest.mark.parametrize(
    ("side", "expected"),
    [
        (SingleTemplate(), [["a photo of a cat, a type of pet."], ["a photo of a dog, a type of pet."]]),
        (SingleTemplate("itap of a {}."), [["itap of a cat."], ["itap of a dog."]]),
        (Ensemble(), [["a photo of a cat, a type of pet."], ["a photo of a dog, a type of pet."]]),
        (Ensemble(["a {}.", "the {}."]), [["a cat.", "the cat."], ["a dog.", "the dog."]]),
    ],
    ids=["template", "own template", "ensemble", "own ensemble"],
)
def test_templates_are_filled(side: TextSide, expected: list[list[str]]) -> None:
    assert side.sentences(PETS) == expected


def test_single_template_is_the_first_of_the_data_set() -> None:
    names = ClassNames(["cat", "dog"], templates=["a {}.", "the {}."])
    assert SingleTemplate().sentences(names) == [["a cat."], ["a dog."]]
    assert Ensemble("dataset").sentences(names) == [["a cat.", "the cat."], ["a dog.", "the dog."]]


def test_descriptions_of_classes_stay_in_the_sentences() -> None:
    names = ClassNames({"cat": "a grey animal", "dog": ""})
    expected = [["a photo of a cat, a grey animal."], ["a photo of a dog."]]
    assert Ensemble().sentences(names) == SingleTemplate().sentences(names) == expected


def test_imagenet_ensembles_are_clips() -> None:
    seven = Ensemble("imagenet7").sentences(PETS)[0]
    assert (len(seven), seven[0], seven[4]) == (7, "itap of a cat.", "a cat in a video game.")
    eighty = Ensemble("imagenet80").sentences(PETS)[1]
    assert len(set(eighty)) == 80
    assert set(Ensemble("imagenet7").sentences(PETS)[1]) <= set(eighty)


def test_prompts_are_averaged_once_each() -> None:
    written = [["a black cat", "a cat asleep", "a black cat"], ["a dog"]]
    assert LlmSentences().sentences(PETS, written) == [["a black cat", "a cat asleep"], ["a dog"]]


@pytest.mark.parametrize(
    ("descriptor", "sentence"),
    [
        ("four legs", "cat, which has four legs"),
        ("whiskers.", "cat, which has whiskers"),
        ("- antennae", "cat, which has antennae"),
        ("a long tail", "cat, which is a long tail"),
        ("used as a pet", "cat, which is used as a pet"),
        ("often asleep", "cat, which often asleep"),
        ("has fur", "cat, which has fur"),
    ],
)
def test_descriptors_get_the_verb_that_fits(descriptor: str, sentence: str) -> None:
    assert descriptor_sentence("cat", descriptor) == sentence


def test_descriptors_are_read_by_name(tmp_path: Path) -> None:
    file = tmp_path / "descriptors.json"
    file.write_text(json.dumps({"Dog": ["a wet nose", "four  legs"], "cat": ["whiskers"], "cow": ["horns"]}))
    side = Descriptors(str(file))
    assert side.sentences(PETS) == [
        ["cat, which has whiskers"], ["dog, which is a wet nose", "dog, which has four legs"]
    ]  # fmt: skip
    assert side.generator(LocalLLM("tiny:language", instruction="{name}")) is None
    assert side.averages_scores


def test_content_of_the_file_is_the_input_and_not_its_place(tmp_path: Path) -> None:
    contents: list[str | None] = []
    for name, descriptor in (("a.json", "fur"), ("b.json", "fur"), ("c.json", "scales")):
        (tmp_path / name).write_text(json.dumps({"cat": [descriptor]}))
        contents.append(Descriptors(str(tmp_path / name)).content)
    assert contents[0] == contents[1] != contents[2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file; it should hold a JSON object"),
        ("[1", "it is not JSON"),
        ("[]", "it holds list, not an object"),
        ('{"cat": "fur"}', "'cat' holds no list of texts"),
        ('{"cat": [1]}', "'cat' holds no list of texts"),
        ('{"cat": []}', "'cat' has no descriptor"),
        ('{"cat": [" - "]}', "'cat' has no descriptor"),
        ('{"cat": ["a"], "cat": ["b"]}', "'cat' is there twice"),
    ],
)
def test_unusable_files_are_one_clear_error(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "descriptors.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ValueError, match=message) as error:
        Descriptors(str(file))
    assert str(error.value).startswith(f"text.file={file}")


def test_class_without_descriptors_is_named(tmp_path: Path) -> None:
    file = tmp_path / "descriptors.json"
    file.write_text('{"cat": ["whiskers"]}')
    side = Descriptors(str(file))
    with pytest.raises(ValueError, match="1 of 2 classes have no descriptors there: 'dog'; add them"):
        side.check(PETS, Templates())


def test_stored_descriptors_replace_the_file(tmp_path: Path) -> None:
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"Dog": ["a ${price}"], "cat": ["whiskers"], "cow": ["horns"]}))
    second.write_text(json.dumps({"dog": ["four legs"], "cat": ["stripes"]}))
    side = Descriptors(str(first))
    stored = side.for_added_classes(PETS)["stored"]
    config = OmegaConf.create({"text": {"stored": stored}})
    assert OmegaConf.to_container(config, resolve=True) == {"text": {"stored": stored}}
    restored = Descriptors(stored=str(stored))
    assert (restored.sentences(PETS), restored.content) == (side.sentences(PETS), side.content)
    # A second file counts for the classes that are added, and changes no other.
    added = Descriptors(str(second), stored=str(stored))
    dog = ClassNames(["dog"], least=1)
    assert added.sentences(dog) == [["dog, which has four legs"]]
    both = Descriptors(stored=str(added.for_added_classes(dog)["stored"]))
    assert both.sentences(PETS) == [["cat, which has whiskers"], ["dog, which has four legs"]]
    assert both.sentences(ClassNames(["cow"], least=1)) == [["cow, which has horns"]]
    with pytest.raises(ValueError, match=r"'fox'; give theirs in a JSON file.* --override text\.file=FILE"):
        restored.check(ClassNames(["fox"], least=1), Templates())
    assert Descriptors().for_added_classes(PETS) == {}


def test_chat_models_are_asked_for_descriptors() -> None:
    generator = Descriptors(count=4).generator(ServerLLM("some-model", allow_fallback=True))
    assert generator is not None
    request = fill(generator.instruction, TargetClass(0, "tabby cat", "a pet"), 4)
    assert "List 4 visual features in which a tabby cat (a pet) differs" in request
    assert (generator.instruction, generator.must_name, generator.allow_fallback) == (INSTRUCTION, False, False)


@pytest.mark.parametrize("llm", [Templates(), LocalLLM("tiny:language", instruction="{name}")], ids=["fixed", "tiny"])
def test_only_chat_models_are_asked(llm: Any) -> None:
    with pytest.raises(ValueError, match=r"asks a chat model, and llm names none .*text\.file=FILE"):
        Descriptors().check(PETS, llm)


def test_captions_stand_for_no_class() -> None:
    with pytest.raises(ValueError, match="captions describe real training images"):
        LlmSentences().check(PETS, ScriptedCaptioner())


def test_random_descriptors_are_the_same_for_every_class() -> None:
    cats, dogs = Waffle().sentences(PETS)
    assert len(set(cats)) == len(cats) == 30
    assert [sentence.replace(" cat,", " dog,") for sentence in cats] == dogs
    assert Waffle().sentences(ClassNames(["cow", "dog"]))[1] == dogs, "whatever the other classes are"
    assert set(Waffle(pairs=3).sentences(PETS)[0]) < set(cats), "fewer pairs are the first ones"
    assert not set(Waffle(seed=1).sentences(PETS)[0]) & set(cats)
    assert Waffle(pairs=1).sentences(PETS)[0] == [
        f"a photo of a cat, which has {descriptor}." for descriptor in Waffle(pairs=1).descriptors()
    ]


def test_random_descriptors_are_words_and_characters_in_turn() -> None:
    descriptors = Waffle(pairs=200, words=3, length=4).descriptors()
    words = Counter(word for descriptor in descriptors[::2] for word in descriptor.split(" "))
    assert all(len(descriptor.split(" ")) == 3 for descriptor in descriptors[::2])
    assert all(word.isalpha() for word in words)
    assert max(words.values()) < 20, "no word is preferred"
    assert all([len(group) for group in descriptor.split(", ")] == [4, 4, 4] for descriptor in descriptors[1::2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SingleTemplate("a photo"), r"text\.template: 'a photo' has no {}"),
        (lambda: Ensemble([]), r"text\.templates=\[\]: give at least one"),
        (lambda: Ensemble(["a"]), r"text\.templates: 'a' has no {}"),
        (lambda: Ensemble("clip"), r"text\.templates=clip: choose published, dataset, imagenet80, imagenet7"),
        (lambda: Ensemble(alternatives=["best"]), r"text\.alternatives: 'best' is unknown; choose among template"),
        (lambda: Descriptors(count=0), r"text\.count=0"),
        (lambda: Waffle(pairs=0), r"text\.pairs=0"),
        (lambda: Waffle(seed=-1), r"text\.seed=-1"),
    ],
)  # fmt: skip
def test_wrong_values_are_refused(make: Callable[[], TextSide], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_alternatives_have_the_names_of_the_config_group() -> None:
    choices = {path.stem for path in (Path(__file__).parents[2] / "conf" / "text").glob("*.yaml")}
    assert set(ALTERNATIVES) == choices - {"descriptors"}
    for name in ALTERNATIVES:
        assert text_side(name).key_name == name
