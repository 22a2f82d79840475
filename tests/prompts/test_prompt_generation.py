"""Tests the stage that generates prompts: classes are stored one by one, failures are reported together."""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from factories import make_image_folder
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from open_clip.tokenizer import SimpleTokenizer

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptGenerator, Task
from lgclip.prompts.filtering import cut_tokens
from lgclip.stages.prompts import PromptGenerationStage, _named
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.store.prompts import PromptStore
from lgclip.types import TargetClass


@dataclasses.dataclass(frozen=True)
class ScriptedGenerator(PromptGenerator):
    """Returns scripted prompts, one class after the other, and records its tasks."""

    key_name: ClassVar[str] = "ScriptedGenerator"

    replies: dict[str, list[str]]
    tasks: list[Task] = dataclasses.field(default_factory=list, metadata=NOT_AN_INPUT)
    allow_fallback: bool = dataclasses.field(default=False, metadata=NOT_AN_INPUT)
    breaks_at: str | None = dataclasses.field(default=None, metadata=NOT_AN_INPUT)

    @property
    def items_per_call(self) -> int:
        return 2

    @property
    def falls_back(self) -> bool:
        return self.allow_fallback

    def inputs(self, target_class: TargetClass, seed: int) -> dict[str, object]:
        return {**target_class.identity(), "seed": seed}

    def load(self, device: torch.device) -> Any:
        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
            for place, task in reversed(list(enumerate(tasks))):
                self.tasks.append(task)
                if task.target_class.name == self.breaks_at:
                    raise RuntimeError("power cut")
                prompts = self.replies[task.target_class.name]
                enough = len(prompts) >= task.requested
                yield place, GeneratedPrompts(prompts, 1) if enough else PromptError(f"class {place}: no", prompts, 2)

        return write


SUBJECTS = [TargetClass(i, name, "a type of pet") for i, name in enumerate(("cat", "dog", "axolotl", "hen"))]
REPLIES = {name: [f"a {name} {i}" for i in range(3)] for name in ("cat", "dog", "axolotl", "hen")}


def generation_stage(
    root: Path, requested: int = 3, replies: Any = REPLIES, **settings: Any
) -> tuple[PromptGenerationStage, list[Task]]:
    prompt_generator = ScriptedGenerator(replies, **settings)
    return PromptGenerationStage(prompt_generator, PromptStore(root), SUBJECTS, requested, 0), prompt_generator.tasks


def run_stage(writing: PromptGenerationStage) -> None:
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()], enable_model_summary=False
    )
    Stages(trainer).complete("prompts", writing, len(writing.target_classes))


def test_every_class_is_generated_once(tmp_path: Path) -> None:
    writing, tasks = generation_stage(tmp_path)
    run_stage(writing)
    assert writing.texts() == [REPLIES[target_class.name] for target_class in SUBJECTS]
    assert sorted(task.target_class.class_index for task in tasks) == [0, 1, 2, 3]
    again, tasks = generation_stage(tmp_path, requested=2)
    run_stage(again)
    assert not tasks
    assert again.texts() == [REPLIES[target_class.name][:2] for target_class in SUBJECTS]


def test_crash_loses_only_the_current_class(tmp_path: Path) -> None:
    writing, _ = generation_stage(tmp_path, breaks_at="axolotl")  # asked after the hen, which shares its batch
    with pytest.raises(RuntimeError, match="power cut"):
        run_stage(writing)
    assert writing.missing() == [2]
    writing, tasks = generation_stage(tmp_path)
    run_stage(writing)
    assert [task.target_class.name for task in tasks] == ["axolotl"]


def test_failed_class_is_named(tmp_path: Path) -> None:
    replies = {**REPLIES, "cat": [], "hen": ["a hen 0"]}
    writing, _ = generation_stage(tmp_path, replies=replies)
    with pytest.raises(
        PromptError, match=r"^2 of 4 classes have too few .*class 0: no; class 1: no.*llm\.allow_fallback"
    ):
        run_stage(writing)
    assert writing.missing() == [0, 3]
    assert writing.texts()[1:3] == [REPLIES["dog"], REPLIES["axolotl"]]
    writing, tasks = generation_stage(tmp_path)
    run_stage(writing)
    assert {task.target_class.name: (task.existing, task.turn) for task in tasks} == {
        "cat": ((), 2),
        "hen": (("a hen 0",), 2),
    }
    assert writing.templated() == [0, 0, 0, 0]


def test_fallback_templates_are_optional_and_marked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    replies = {**REPLIES, "hen": ["a hen 0"]}
    writing, _ = generation_stage(tmp_path, replies=replies, allow_fallback=True)
    run_stage(writing)
    stand_in = "a photo of a hen, a type of pet."
    assert writing.texts()[3] == ["a hen 0", stand_in, stand_in]
    assert writing.templated() == [0, 0, 0, 2]
    assert (
        "1 classes have template sentences in place of prompts that ScriptedGenerator did not return: 3" in caplog.text
    )
    (entry,) = [e for p in (tmp_path / "prompts").glob("*.json") if (e := json.loads(p.read_text())).get("fallback")]
    assert entry["prompts"] == ["a hen 0"]
    assert entry["fallback"] == [stand_in] * 2
    assert entry["failure"] == "class 1: no"
    strict, tasks = generation_stage(tmp_path)
    assert strict.missing() == [3], "who does not allow templates does not get them from the store"
    run_stage(strict)
    assert [task.target_class.name for task in tasks] == ["hen"]
    assert strict.texts()[3] == REPLIES["hen"]
    lenient, tasks = generation_stage(tmp_path, replies=replies, allow_fallback=True)
    run_stage(lenient)
    assert not tasks, "nor is a class asked again that has been written since"


def test_truncated_prompts_are_reported_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    long = "a cat " + "word " * 100
    writing, _ = generation_stage(tmp_path, replies={**REPLIES, "cat": [long.strip(), "a cat 1", "a cat 2"]})
    run_stage(writing)
    assert writing.texts()[0][0] == long.strip()
    warnings = [record.getMessage() for record in caplog.records if "CLIP" in record.getMessage()]
    assert warnings == [
        "1 of 12 prompts are longer than the 77 tokens that CLIP's text towers read; up to 27 are cut off"
    ]


@pytest.mark.slow
@given(st.text(st.characters(codec="ascii"), max_size=300))
def test_truncated_tokens_match_clip(text: str) -> None:
    tokenizer = SimpleTokenizer()
    assert cut_tokens([text]) == [max(0, len(tokenizer.encode(text)) + 2 - 77)]


def test_many_failed_classes_are_named() -> None:
    message = _named([f"class {i} ('c{i}'): 0 usable prompts of 3 in 2 rounds (refusal 2)" for i in range(50)], 60)
    assert message.startswith("50 of 60 classes have too few prompts")
    assert all(f"class {i} ('c{i}')" in message for i in range(50))
    assert message.count("refusal") == 20
    assert "\n" not in message


@pytest.mark.multiprocess
def test_two_processes_share_classes_and_errors(tmp_path: Path) -> None:
    """Checks a second run with work for one process alone, for which the other waits."""
    names = ("blue moon", "green ring", "red star", "\N{LLAMA} x")  # the small model cannot spell the last
    synthetic_images = make_image_folder(tmp_path / "pictures", names, per_class=1)
    arguments = [
        "dataset=folder", f"dataset.root={synthetic_images}", "llm=tiny", "llm.max_rounds=1", "prompts_per_class=2",
        f"paths.store={tmp_path / 'store'}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.accelerator=cpu",
        "trainer.devices=2", "trainer.strategy=ddp",
    ]  # fmt: skip
    for rounds in (1, 2):
        completed = subprocess.run(
            [sys.executable, "generate.py", *arguments],
            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert completed.returncode == 1, completed.stderr
        assert "error: 1 of 4 classes have too few prompts" in completed.stderr
        assert "still missing" not in completed.stderr
        entries = [json.loads(path.read_text()) for path in (tmp_path / "store" / "prompts").glob("*.json")]
        turns = {entry["inputs"]["class"]: entry["turn"] for entry in entries}
        assert turns == {**dict.fromkeys(names, 1), names[3]: rounds}
