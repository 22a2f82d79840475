"""Settings that cannot matter to the chosen method are reported: a sweep over them would compare equal runs."""

from pathlib import Path

import pytest
from factories import Sandbox, evaluate_run

from lgclip.runtime.unused_settings import IMAGE_SETTINGS, unused_overrides


def test_overrides_are_matched_by_their_group() -> None:
    overrides = [
        "llm.temperature=0.5",
        "+llm.templates=[a]",
        "llm=template",
        "llms=3",
        "encoder=tiny",
        "~selection",
        "seed=1",
    ]

    assert unused_overrides(overrides, IMAGE_SETTINGS) == [
        "llm.temperature=0.5", "+llm.templates=[a]", "llm=template", "~selection"
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "reported"),
    [
        (("method=clip_text", "selection.keep=1"), "no effect on method=clip_text, which uses no synthetic images"),
        (("paradigm.kind=ssl",), "no effect on method=lgclip: paradigm.kind=ssl"),
        (("selection.keep=1",), ""),
    ],
)
def test_settings_without_effect_are_reported(
    overrides: tuple[str, ...], reported: str, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluate_run(sandbox, tmp_path / "run", *overrides)

    output = capsys.readouterr().out
    assert reported in output if reported else "selection.keep" not in output
