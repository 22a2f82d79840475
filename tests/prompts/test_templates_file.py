"""Tests `llm=template llm.file=FILE`."""

from pathlib import Path

import pytest
import torch

from lgclip.prompts.base import Task
from lgclip.prompts.template import Templates
from lgclip.store.keys import key_inputs
from lgclip.types import TargetClass


def test_file_has_one_sentence_per_line(tmp_path: Path) -> None:
    file = tmp_path / "templates.txt"
    file.write_text("\ufeffa photo of a {}.\n\n  a drawing of a {name}[, {context}]\n", encoding="utf-8")
    generator = Templates(file=str(file))
    assert generator.templates == ("a photo of a {}.", "a drawing of a {name}[, {context}]")
    task = Task(TargetClass(0, "robin", "a type of bird"), requested=3)
    ((_, written),) = generator.load(torch.device("cpu"))([task], 0)
    assert written.prompts == ["a photo of a robin.", "a drawing of a robin, a type of bird", "a photo of a robin."]


def test_key_has_the_sentences_and_not_the_file(tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("a {}\n")
    listed = key_inputs(Templates(("a {}",)))
    assert key_inputs(Templates(file=str(tmp_path / "a.txt"))) == key_inputs(Templates(file=str(tmp_path / "b.txt")))
    assert key_inputs(Templates(file=str(tmp_path / "a.txt"))) == listed


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"\n \n", "it has no sentence"), (b"a photo\n", "'a photo' has no {}"), (b"\xff\xfea {}", "not text in UTF-8")],
)
def test_unusable_file_is_an_error(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"llm.file=.*t.txt: .*{message}"):
        Templates(file=str(tmp_path / "t.txt"))


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file; it needs one sentence per line"):
        Templates(file=str(tmp_path / "none.txt"))
