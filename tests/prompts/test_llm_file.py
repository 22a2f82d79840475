"""Tests `llm=file`: existing prompts in the formats that people publish."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_image_folder, run_command

from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.prompt_file import PromptFile
from lgclip.store.keys import content_key, key_inputs
from lgclip.types import TargetClass

NAMES = ("Laysan Albatross", "sea_lake", "missile")
SUBJECTS = [TargetClass(i, name) for i, name in enumerate(NAMES)]
SAID = [[f"a {name}, {i}" for i in range(3)] for name in NAMES]


def by_name(names: Any = NAMES) -> dict[str, list[str]]:
    return dict(zip(names, SAID, strict=True))


def as_json(content: Any) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        path = place / "prompts.json"
        path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        return path

    return write


def as_folder(names: list[str]) -> Callable[[Path], Path]:
    def write(place: Path) -> Path:
        for name, texts in zip(names, SAID, strict=True):
            (place / f"{name}.txt").write_text("\n".join(texts) + "\n\n", encoding="utf-8")
        return place

    return write


def as_lines(place: Path) -> Path:
    lines = []
    for c, texts in enumerate(SAID):
        for text in texts:
            for repeat in (0, 1):
                lines.append({"class": c, "name": NAMES[c], "prompt": text, "repeat": repeat, "file": "x.png"})
    path = place / "images.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def with_mark(place: Path) -> Path:
    path = as_json(by_name())(place)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return path


FORMATS: dict[str, Callable[[Path], Path]] = {
    "names": as_json(by_name()),
    "names in another order": as_json(dict(reversed(by_name().items()))),
    "names in another case": as_json(by_name(["laysan_albatross", "Sea Lake", "MISSILE"])),
    "more classes": as_json({"cat": ["a cat"], **by_name()}),
    "indices": as_json({str(i): texts for i, texts in enumerate(SAID)}),
    "padded indices": as_json({f"{i:03}": texts for i, texts in enumerate(SAID)}),
    "lists": as_json(SAID),
    "with a mark of byte order": with_mark,
    "folder by name": as_folder(list(NAMES)),
    "folder by index": as_folder(["0", "1", "2"]),
    "folder by index and name": as_folder(["000-laysan-albatross", "001-sea-lake", "002.Missile"]),
    "images.jsonl": as_lines,
}


def written(path: Path, requested: int = 3, target_classes: Any = SUBJECTS) -> list[list[str]]:
    prompt_generator = PromptFile(str(path))
    prompt_generator.check(target_classes, requested)
    outcomes = dict(
        prompt_generator.load(torch.device("cpu"))(
            [Task(target_class, requested) for target_class in target_classes], 0
        )
    )
    assert all(isinstance(outcome, GeneratedPrompts) for outcome in outcomes.values()), outcomes
    return [outcomes[i].prompts for i in range(len(target_classes))]


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS.keys())
def test_formats_give_the_same_prompts(write: Any, tmp_path: Path) -> None:
    assert written(write(tmp_path)) == SAID


def test_single_text_is_a_list(tmp_path: Path) -> None:
    path = as_json({NAMES[0]: "one  text\n", NAMES[1]: ["", " ", "a lake"], NAMES[2]: ["x", "x"]})(tmp_path)
    assert written(path, 1) == [["one text"], ["a lake"], ["x", "x"]]


def test_repeated_names_need_an_index(tmp_path: Path) -> None:
    target_classes = [*SUBJECTS, TargetClass(3, "missile")]
    lists = [*SAID, ["another missile"] * 3]
    assert written(as_json(lists)(tmp_path), target_classes=target_classes) == lists
    with pytest.raises(
        PromptError, match=r"2 of 4 classes .*2 \('missile'\): other classes .*list of lists.*3 \('missile'\)"
    ):
        written(as_json(by_name())(tmp_path), target_classes=target_classes)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            as_json({NAMES[0]: SAID[0], NAMES[2]: ["a"]}),
            r"2 of 3 .*1 \('sea_lake'\): not there; 2 \('missile'\): 1 prompts",
        ),
        (as_json({**by_name(), "sea lake": ["x"] * 3, "sea_lake": ["y"] * 3, "Missile": ["z"]}), None),
        (
            as_json({NAMES[0]: SAID[0], NAMES[2]: SAID[2], "sea lake": ["x"] * 3, "Sea-Lake": ["y"] * 3}),
            r"1 \('sea_lake'\): any of 'sea lake', 'Sea-Lake'",
        ),
        (as_json(SAID[:2]), r"1 of 3 .*2 \('missile'\): not there"),
        (
            as_folder(["001.Laysan_Albatross", "002.Sea_Lake", "003.Missile"]),
            r"index 1 is of 'Laysan_Albatross'; .*from 0",
        ),
    ],
)
def test_missing_classes_are_named(write: Any, message: str | None, tmp_path: Path) -> None:
    path = write(tmp_path)
    if message is None:  # a name as it is goes before names that are like it
        assert written(path)[1:] == [["y"] * 3, SAID[2]]
        return
    with pytest.raises(PromptError, match=message) as raised:
        written(path)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_generator_fails_per_class(tmp_path: Path) -> None:
    writer = PromptFile(str(as_json({NAMES[0]: SAID[0], NAMES[2]: ["a"]})(tmp_path))).load(torch.device("cpu"))
    outcomes = dict(writer([Task(target_class, 2) for target_class in SUBJECTS], 0))
    assert outcomes[0] == GeneratedPrompts(SAID[0])
    assert str(outcomes[1]) == "class 1 ('sea_lake'): not there"
    assert str(outcomes[2]) == "class 2 ('missile'): 1 prompts of 2"


def test_digit_names_are_not_indices(tmp_path: Path) -> None:
    path = as_json({str(digit): [f"a {digit}"] for digit in range(3)})(tmp_path)
    assert written(path, 1, [TargetClass(i, str(i)) for i in range(3)]) == [["a 0"], ["a 1"], ["a 2"]]
    with pytest.raises(PromptError, match="an index or a name"):
        written(path, 1, [TargetClass(0, "2"), TargetClass(1, "0"), TargetClass(2, "1")])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", "{", "it is not JSON"),
        ("p.json", b"\xff\xfe", "it is not JSON"),
        ("p.json", '"text"', "neither an object of class to prompts nor a list"),
        ("p.json", '{"cat": {"a": 1}}', "'cat' holds no list of texts"),
        ("p.json", '{"cat": [1]}', "'cat' holds no list of texts"),
        ("p.json", "{}", "it holds no prompts"),
        ("p.jsonl", '{"text": "a"}', r"not those of generate\.py's images\.jsonl"),
        ("folder/p.json", "{}", "has no such file"),
        ("folder/p.txt", b"\xff", "not in UTF-8"),
        (None, "", "no such file or folder"),
    ],
)
def test_unknown_format_is_rejected(name: str | None, content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / (name or "nothing")
    if name:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message) as raised:
        PromptFile(str(path.parent if name and "/" in name else path))
    assert str(raised.value).startswith(f"llm.path={tmp_path}")


def test_duplicate_index_is_rejected(tmp_path: Path) -> None:
    for stem in ("1-cat", "01-dog"):
        (tmp_path / f"{stem}.txt").write_text("a pet")
    with pytest.raises(ValueError, match="two files are of class 1"):
        PromptFile(str(tmp_path))


def test_key_has_the_content_not_the_path(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()

    def keys(place: str, content: Any) -> str:
        prompt_generator = PromptFile(str(as_json(content)(tmp_path / place)))
        assert str(tmp_path) not in json.dumps(key_inputs(prompt_generator))
        return content_key(prompt_generator.inputs(TargetClass(0, "cat"), 0))

    assert keys("a", by_name()) == keys("b", by_name())
    assert keys("a", by_name()) != keys("a", {**by_name(), NAMES[0]: ["other"]})


def test_index_is_in_the_key_only_where_the_file_goes_by_index(tmp_path: Path) -> None:
    cats = [TargetClass(index, NAMES[0]) for index in range(2)]
    for content, keys in ((by_name(), 1), (SAID, 2)):
        prompt_generator = PromptFile(str(as_json(content)(tmp_path)))
        assert len({content_key(prompt_generator.inputs(cat, 0)) for cat in cats}) == keys


def test_list_of_another_run_fits_another_order(tmp_path: Path) -> None:
    path = as_lines(tmp_path)
    classes = [TargetClass(0, "adapter"), *(TargetClass(i, name) for i, name in enumerate(NAMES[::-1], 1))]
    assert written(path, target_classes=classes[1:]) == SAID[::-1]
    with pytest.raises(PromptError, match=r"1 of 4 classes .*0 \('adapter'\): not there"):
        written(path, target_classes=classes)


def test_list_of_another_run_with_repeated_names_goes_by_index(tmp_path: Path) -> None:
    path = as_lines(tmp_path)
    line = {"class": 3, "name": "missile", "repeat": 0, "file": "x.png"}
    with path.open("a") as file:
        file.writelines(f"{json.dumps({**line, 'prompt': f'another {i}'})}\n" for i in range(3))
    classes = [*SUBJECTS, TargetClass(3, "missile", occurrence=1)]
    assert written(path, target_classes=classes) == [*SAID, ["another 0", "another 1", "another 2"]]
    shifted = [TargetClass(0, "adapter"), *(TargetClass(c.class_index + 1, c.name) for c in classes)]
    with pytest.raises(PromptError, match=r"the file of index 1 is of 'sea_lake'"):
        written(path, target_classes=shifted)


def test_prompts_of_another_run_are_reused(tmp_path: Path) -> None:
    """Runs generate.py with templates, then with the list it wrote: the same images, generated once."""
    synthetic_images = make_image_folder(tmp_path / "pictures", per_class=1)
    common = [
        "dataset=folder", f"dataset.root={synthetic_images}", "prompts_per_class=2", "diffuser.size=32",
        "diffuser.steps=1", f"paths.store={tmp_path / 'store'}", "trainer.accelerator=cpu",
    ]  # fmt: skip
    templates = "llm.templates=['a photo of a {}.','a drawing of a {}.']"
    run_command("generate", *common, "llm=template", templates, f"hydra.run.dir={tmp_path / 'one'}")
    listed = tmp_path / "one" / "images.jsonl"
    run_command("generate", *common, "llm=file", f"llm.path={listed}", f"hydra.run.dir={tmp_path / 'two'}")
    assert (tmp_path / "two" / "images.jsonl").read_text() == listed.read_text()
    assert len(list((tmp_path / "store" / "images").rglob("*.png"))) == 6


@pytest.mark.parametrize(
    ("file_name", "content", "repeated"),
    [
        ("p.json", '{"cat": ["a cat"], "dog": ["a dog"], "cat": ["another cat"]}', "'cat'"),
        ("p.json", '{"0": ["a cat"], "1": ["a dog"], "0": ["another cat"]}', "'0'"),
        ("p.json", '{"cat": ["a cat"], "cat ": ["another cat"]}', "'cat '"),
        ("p.json", '{"caf\u00e9": ["a caf\u00e9"], "cafe\u0301": ["another"]}', "'cafe\u0301'"),
        ("p.json", '{"cat": "a cat", "cat": "a cat"}', "'cat'"),
        ("p.jsonl", '{"class": 0, "class": 1, "prompt": "a cat"}', "'class'"),
    ],
)
def test_repeated_name_is_an_error(file_name: str, content: str, repeated: str, tmp_path: Path) -> None:
    path = tmp_path / file_name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=r"is there twice.*keep one of them") as raised:
        PromptFile(str(path))
    assert repeated in str(raised.value)
    assert str(path) in str(raised.value)


def test_repeated_name_in_a_folder_is_an_error(tmp_path: Path) -> None:
    for stem in ("caf\u00e9", "cafe\u0301"):
        (tmp_path / f"{stem}.txt").write_text("a caf\u00e9 at night")
    if len(list(tmp_path.iterdir())) < 2:
        pytest.skip("this file system knows one of the two names only")
    with pytest.raises(ValueError, match="is there twice"):
        PromptFile(str(tmp_path))
