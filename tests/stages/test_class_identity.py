"""Tests that a class is known by its name and occurrence: its place in a list changes neither prompts nor images."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from factories import Sandbox, make_image_folder, read_store, run_command
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lgclip.diffuser.base import image_id, image_prompts, noise_seed
from lgclip.diffuser.pipeline import Diffuser
from lgclip.prompts.base import GeneratedPrompts, PromptGenerator, Task
from lgclip.prompts.chat import ChatHistory, seed_of
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.server_llm import ServerLLM
from lgclip.prompts.template import Templates
from lgclip.stages.generate import places
from lgclip.store.keys import content_key
from lgclip.types import Prompt, TargetClass, count_earlier

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")
NAMES = ("plain blue moon", "dotted cyan ring", "plain orange star", "plain white cross")
OTHER_LISTS = {
    "another order": ("plain orange star", "plain white cross", "plain blue moon", "dotted cyan ring"),
    "a subset": ("dotted cyan ring", "plain white cross"),
    "a subset in another order": ("plain white cross", "plain blue moon"),
}
TINY = LocalLLM("tiny:language", "{name}", again="", exact_name=True, min_words=1, max_new_tokens=64, max_rounds=8)
WITH_LLM = ("llm=tiny",)
WITH_TEMPLATES = ("llm=template", "llm.templates=['a {}.','the {}.','one {}.','some {}.']")


class Generated(NamedTuple):
    """Holds an image that a run generated.

    Attributes:
        id: Its content key.
        pixels: Its pixels.
    """

    id: str
    pixels: np.ndarray


def generate(sandbox: Sandbox, folder: Path, names: Sequence[str], *overrides: str) -> dict[tuple[str, str], Generated]:
    """Generates two images of each class in the order of `names`; returns them by class and prompt."""
    # Folders of numbers, so that the order of the classes is that of the list and not of the alphabet.
    numbers = [f"{index:03}" for index in range(len(names))]
    root = make_image_folder(folder / "pictures", numbers, per_class=1)
    listed_names = folder / "names.txt"
    listed_names.write_text("".join(f"{number}\t{name}\n" for number, name in zip(numbers, names, strict=True)))
    run_command(
        "generate", "dataset=folder", f"dataset.root={root}", f"dataset.names={listed_names}",
        f"diffuser.model={sandbox.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=2",
        f"paths.store={sandbox.store}", "trainer.accelerator=cpu", f"hydra.run.dir={folder / 'run'}", *overrides,
    )  # fmt: skip
    lines = [json.loads(line) for line in (folder / "run" / "images.jsonl").read_text("utf-8").splitlines()]
    assert [line["class"] for line in lines] == sorted([*range(len(names))] * 2), "labels are places in the list"
    assert all(line["name"] == names[line["class"]] for line in lines)
    images: dict[tuple[str, str], Generated] = {}
    for line in lines:
        with Image.open(line["file"]) as image:
            images[line["name"], line["prompt"]] = Generated(Path(line["file"]).stem, np.asarray(image).astype(int))
    assert len(images) == len(lines)
    return images


def classes(*names: str) -> list[TargetClass]:
    return [TargetClass(i, name, "", n) for i, (name, n) in enumerate(zip(names, count_earlier(names), strict=True))]


@pytest.mark.slow
@pytest.mark.parametrize("llm", [WITH_LLM, WITH_TEMPLATES], ids=["language model", "templates"])
def test_order_of_the_classes_changes_no_image(llm: tuple[str, ...], fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    first = generate(fresh_sandbox, tmp_path / "first", NAMES, *llm)
    apart = replace(fresh_sandbox, store=tmp_path / "other store")
    again = generate(apart, tmp_path / "again", OTHER_LISTS["another order"], *llm)
    assert again.keys() == first.keys()
    for key, image in first.items():
        assert again[key].id == image.id
        # One gray level where the last bit of a row depends on its place in a pass; other noise changes all of them.
        np.testing.assert_allclose(again[key].pixels, image.pixels, atol=1)
    assert read_store(apart.store).keys() == read_store(fresh_sandbox.store).keys()


@pytest.mark.slow
def test_other_lists_of_the_same_classes_generate_nothing(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    first = generate(fresh_sandbox, tmp_path / "first", NAMES, *WITH_LLM)
    stored = read_store(fresh_sandbox.store)
    for title, names in OTHER_LISTS.items():
        images = generate(fresh_sandbox, tmp_path / title, names, *WITH_LLM)
        assert {name for name, _ in images} == set(names)
        assert all(image.id == first[key].id for key, image in images.items())
        assert read_store(fresh_sandbox.store) == stored, title


@pytest.mark.slow
@pytest.mark.parametrize("place", [0, 2, 4])
def test_another_class_generates_itself_alone(place: int, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    generate(fresh_sandbox, tmp_path / "first", NAMES, *WITH_LLM)
    before = read_store(fresh_sandbox.store)
    longer = [*NAMES[:place], "striped blue arrow", *NAMES[place:]]
    images = generate(fresh_sandbox, tmp_path / "longer", longer, *WITH_LLM)
    after = read_store(fresh_sandbox.store)
    assert {name: after[name] for name in before} == before
    new = after.keys() - before.keys()
    new_images = [name for name in new if name.endswith(".png")]
    of_arrow = {image.id for (name, _), image in images.items() if name == "striped blue arrow"}
    assert {Path(name).stem for name in new_images} == of_arrow
    assert len(of_arrow) == 2
    (entry,) = new - set(new_images)
    assert json.loads(after[entry])["inputs"]["class"] == "striped blue arrow"


@pytest.mark.slow
def test_order_of_the_classes_changes_no_order_of_prompts(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks `prompt_order_seed`: which prompts of a class are used, and in which order."""
    shuffled = [*WITH_TEMPLATES, "prompt_pool=4", "prompt_order_seed=3"]
    first = list(generate(fresh_sandbox, tmp_path / "first", NAMES, *shuffled))
    again = list(generate(fresh_sandbox, tmp_path / "again", NAMES[::-1], *shuffled))
    for name in NAMES:
        assert [key for key in again if key[0] == name] == [key for key in first if key[0] == name]
    assert len({tuple(text.replace(name, "{}") for _, text in group) for name, group in grouped(first)}) > 1


def grouped(keys: Sequence[tuple[str, str]]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Returns the prompts of each class."""
    return [(name, [key for key in keys if key[0] == name]) for name in NAMES]


def test_language_model_samples_by_name() -> None:
    writer = TINY.load(CPU)

    def written(target_classes: Sequence[TargetClass]) -> dict[tuple[str, int], list[str]]:
        prompts: dict[tuple[str, int], list[str]] = {}
        for place, outcome in writer([Task(target_class, 3) for target_class in target_classes], 0):
            assert isinstance(outcome, GeneratedPrompts), outcome
            prompts[target_classes[place].name, target_classes[place].occurrence] = outcome.prompts
        return prompts

    first = written(classes("plain orange star", "plain blue moon", "plain orange star"))
    assert (
        written(classes("dotted cyan ring", "plain blue moon", "plain orange star", "plain orange star")).items()
        >= first.items()
    )
    assert first["plain orange star", 0] != first["plain orange star", 1]


def test_classes_of_one_name_have_different_images(empty_sandbox: Sandbox) -> None:
    pipeline = Diffuser(str(empty_sandbox.diffuser), steps=2, guidance=3.0, size=32).load(CPU)

    def images(*names: str) -> dict[tuple[str, int], np.ndarray]:
        target_classes = classes(*names)
        prompts = image_prompts(target_classes, [["a photo."]] * len(names), 1, 1)
        pixels = pipeline(prompts, 0).astype(int)
        return {(c.name, c.occurrence): image for c, image in zip(target_classes, pixels, strict=True)}

    first = images("missile", "crane", "missile")
    assert np.abs(first["missile", 0] - first["missile", 1]).max() > 1
    again = images("crane", "missile", "missile")
    for key, image in first.items():
        np.testing.assert_allclose(again[key], image, atol=1)


NAME = st.text(st.sampled_from("ab/"), min_size=1, max_size=3)
GENERATORS: dict[str, PromptGenerator] = {
    "templates": Templates(), "local": TINY, "server": ServerLLM("model", base_url="http://127.0.0.1:1/v1"),
}  # fmt: skip


@given(NAME, st.integers(0, 3), st.integers(0, 999), st.integers(0, 999), st.text(max_size=5), st.integers(0, 2))
def test_no_key_and_no_seed_has_the_index(name: str, occurrence: int, first: int, last: int, text: str, n: int) -> None:
    first_class, last_class = (TargetClass(index, name, "", occurrence) for index in (first, last))
    for prompt_generator in GENERATORS.values():
        assert prompt_generator.inputs(first_class, n) == prompt_generator.inputs(last_class, n)
    histories = [ChatHistory(Task(target_class, 3, turn=n), TINY) for target_class in (first_class, last_class)]
    assert seed_of(n, histories[0]) == seed_of(n, histories[1])
    assert places(first_class, 9, n) == places(last_class, 9, n)
    prompts = [Prompt(target_class, text, n) for target_class in (first_class, last_class)]
    assert noise_seed(prompts[0], n) == noise_seed(prompts[1], n)
    assert image_id("key", prompts[0], n) == image_id("key", prompts[1], n)


def test_context_is_in_the_key_of_a_prompt_and_not_of_an_image() -> None:
    plain = TargetClass(0, "robin")
    bird = plain._replace(context="a type of bird")
    assert Templates().inputs(plain, 0) != Templates().inputs(bird, 0)
    assert image_id("key", Prompt(plain, "a robin", 0), 0) == image_id("key", Prompt(bird, "a robin", 0), 0)


def test_names_and_occurrences_have_different_seeds() -> None:
    """Checks names and sentences that would be the same text side by side."""
    names = ("a", "a/0", "a/0/b", "0/a", "")
    target_classes = [TargetClass(0, name, "", occurrence) for name, occurrence in product(names, range(3))]
    prompts = [Prompt(c, text, repeat) for c, text, repeat in product(target_classes, ("b", "0/b", "a/0/b"), range(2))]
    assert len({noise_seed(prompt, 0) for prompt in prompts}) == len(prompts)
    assert len({image_id("key", prompt, 0) for prompt in prompts}) == len(prompts)
    histories = [ChatHistory(Task(c, 3, turn=turn), TINY) for c, turn in product(target_classes, range(2))]
    assert len({seed_of(0, history) for history in histories}) == len(histories)
    keys = {content_key(Templates().inputs(target_class, 0)) for target_class in target_classes}
    assert len(keys) == len(target_classes)


def test_occurrences_count_equal_names() -> None:
    assert count_earlier([]) == ()
    assert count_earlier(["missile", "crane", "missile", "Missile", "missile"]) == (0, 0, 1, 0, 2)
    for names in permutations(("a", "b", "a", "c")):
        pairs = list(zip(names, count_earlier(names), strict=True))
        assert sorted(pairs) == [("a", 0), ("a", 1), ("b", 0), ("c", 0)]
