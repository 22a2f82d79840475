"""The stage that writes: every class is stored as it is done, failures are named together."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from open_clip.tokenizer import SimpleTokenizer
from worlds import picture_folder

from lgclip.batch import Subject
from lgclip.identity import NOT_AN_INPUT
from lgclip.prompts.base import PromptError, PromptWriter, Task, Written
from lgclip.prompts.length import cut_tokens
from lgclip.stages import StageBar, Stages, quiet
from lgclip.store import PromptStore
from lgclip.writing import Writing, _named


@dataclasses.dataclass(frozen=True)
class Scripted(PromptWriter):
    """Gives what it was told to, one class after the other, and notes what it was asked."""

    said: dict[str, list[str]]
    asked: list[Task] = dataclasses.field(default_factory=list, metadata=NOT_AN_INPUT)
    allow_fallback: bool = dataclasses.field(default=False, metadata=NOT_AN_INPUT)
    breaks_at: str | None = dataclasses.field(default=None, metadata=NOT_AN_INPUT)

    @property
    def at_once(self) -> int:
        return 2

    @property
    def falls_back(self) -> bool:
        return self.allow_fallback

    def inputs(self, subject: Subject, seed: int) -> dict[str, object]:
        return {"class": subject.class_index, "seed": seed}

    def load(self, device: torch.device) -> Any:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Written | PromptError]]:
            for place, task in reversed(list(enumerate(tasks))):
                self.asked.append(task)
                if task.subject.name == self.breaks_at:
                    raise RuntimeError("power cut")
                prompts = self.said[task.subject.name]
                enough = len(prompts) >= task.wanted
                yield place, Written(prompts, 1) if enough else PromptError(f"class {place}: no", prompts, 2)

        return write


SUBJECTS = [Subject(i, name, "a type of pet") for i, name in enumerate(("cat", "dog", "axolotl", "hen"))]
SAID = {name: [f"a {name} {i}" for i in range(3)] for name in ("cat", "dog", "axolotl", "hen")}


def stage(root: Path, wanted: int = 3, said: Any = SAID, **settings: Any) -> tuple[Writing, list[Task]]:
    pen = Scripted(said, **settings)
    return Writing(pen, PromptStore(root), SUBJECTS, wanted, 0), pen.asked


def run(writing: Writing) -> None:
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()], enable_model_summary=False
    )
    Stages(trainer).complete("prompts", writing, len(writing.subjects))


def test_every_class_is_written_once(tmp_path: Path) -> None:
    writing, asked = stage(tmp_path)
    run(writing)
    assert writing.texts() == [SAID[subject.name] for subject in SUBJECTS]
    assert sorted(task.subject.class_index for task in asked) == [0, 1, 2, 3]
    again, asked = stage(tmp_path, wanted=2)
    run(again)
    assert not asked
    assert again.texts() == [SAID[subject.name][:2] for subject in SUBJECTS]


def test_a_crash_loses_the_class_in_hand_alone(tmp_path: Path) -> None:
    writing, _ = stage(tmp_path, breaks_at="axolotl")  # asked after the hen, which shares its batch
    with pytest.raises(RuntimeError, match="power cut"):
        run(writing)
    assert writing.missing() == [2]
    writing, asked = stage(tmp_path)
    run(writing)
    assert [task.subject.name for task in asked] == ["axolotl"]


def test_a_class_that_fails_loses_no_other_and_is_named(tmp_path: Path) -> None:
    said = {**SAID, "cat": [], "hen": ["a hen 0"]}
    writing, _ = stage(tmp_path, said=said)
    with pytest.raises(
        PromptError, match=r"^2 of 4 classes have too few .*class 0: no; class 1: no.*llm\.allow_fallback"
    ):
        run(writing)
    assert writing.missing() == [0, 3]
    assert writing.texts()[1:3] == [SAID["dog"], SAID["axolotl"]]
    writing, asked = stage(tmp_path)
    run(writing)
    assert {task.subject.name: (task.have, task.turn) for task in asked} == {"cat": ((), 2), "hen": (("a hen 0",), 2)}
    assert writing.templated() == [0, 0, 0, 0]


def test_templates_stand_in_only_where_it_is_allowed_and_are_marked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said = {**SAID, "hen": ["a hen 0"]}
    writing, _ = stage(tmp_path, said=said, allow_fallback=True)
    run(writing)
    stand_in = "a photo of a hen, a type of pet."
    assert writing.texts()[3] == ["a hen 0", stand_in, stand_in]
    assert writing.templated() == [0, 0, 0, 2]
    assert "1 classes have template sentences in place of prompts that Scripted did not give: 3" in caplog.text
    (entry,) = [e for p in (tmp_path / "prompts").iterdir() if (e := json.loads(p.read_text())).get("fallback")]
    assert entry["prompts"] == ["a hen 0"]
    assert entry["fallback"] == [stand_in] * 2
    assert entry["failure"] == "class 1: no"
    strict, asked = stage(tmp_path)
    assert strict.missing() == [3], "who does not allow templates does not get them from the store"
    run(strict)
    assert [task.subject.name for task in asked] == ["hen"]
    assert strict.texts()[3] == SAID["hen"]
    more, asked = stage(tmp_path, said=said, allow_fallback=True)
    run(more)
    assert not asked, "nor is a class asked again that has been written since"


def test_prompts_that_clip_cuts_are_kept_and_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "a cat " + "word " * 100
    writing, _ = stage(tmp_path, said={**SAID, "cat": [long.strip(), "a cat 1", "a cat 2"]})
    run(writing)
    assert writing.texts()[0][0] == long.strip()
    told = [record.getMessage() for record in caplog.records if "CLIP" in record.getMessage()]
    assert told == ["1 of 12 prompts are longer than the 77 tokens that CLIP's text towers read; up to 27 are cut off"]


@given(st.text(st.characters(codec="ascii"), max_size=300))
def test_the_tokens_that_are_cut_are_those_that_clip_cuts(text: str) -> None:
    tokenizer = SimpleTokenizer()
    assert cut_tokens([text]) == [max(0, len(tokenizer.encode(text)) + 2 - 77)]


def test_many_failing_classes_are_all_named() -> None:
    said = _named([f"class {i} ('c{i}'): 0 usable prompts of 3 in 2 rounds (refusal 2)" for i in range(50)], 60)
    assert said.startswith("50 of 60 classes have too few prompts")
    assert all(f"class {i} ('c{i}')" in said for i in range(50))
    assert said.count("refusal") == 20
    assert "\n" not in said


def test_two_processes_share_the_classes_and_say_one_error(tmp_path: Path) -> None:
    """The second run has work for one process alone, and the other waits for it."""
    names = ("blue moon", "green ring", "red star", "\N{LLAMA} x")  # the small model cannot spell the last
    pictures = picture_folder(tmp_path / "pictures", names, each=1)
    arguments = [
        "dataset=folder", f"dataset.root={pictures}", "llm=tiny", "llm.max_rounds=1", "prompts_per_class=2",
        f"paths.store={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.accelerator=cpu",
        "trainer.devices=2", "trainer.strategy=ddp",
    ]  # fmt: skip
    for rounds in (1, 2):
        done = subprocess.run(
            [sys.executable, "generate.py", *arguments],
            cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode == 1, done.stderr
        assert "error: 1 of 4 classes have too few prompts" in done.stderr
        assert "still missing" not in done.stderr
        entries = [json.loads(path.read_text()) for path in (tmp_path / "store" / "prompts").iterdir()]
        turns = {entry["inputs"]["class"]: entry["turn"] for entry in entries}
        assert turns == {**dict.fromkeys(names, 1), names[3]: rounds}
