"""Tests that a run whose metrics are computed does not fail for a picture, a copy or a table."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
from factories import Sandbox, evaluate_run, read_csv

from lgclip.reporting import publish
from lgclip.reporting.wandb.tracking import Tracker

pytest_plugins = ("run_fixtures",)


def damage_images(store: Path) -> None:
    """Overwrites the middle of every stored image, whose end stays complete."""
    for path in store.glob("images/*/*/*.png"):
        content = path.read_bytes()
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes(40) + content[middle + 40 :])


@pytest.mark.slow
def test_damaged_image_costs_the_contact_sheet_only(
    sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage_images(sandbox.store)
    result = evaluate_run(sandbox, tmp_path / "run")
    assert result["metrics"]["top1"] >= 0
    assert not (tmp_path / "run" / "prototypes.png").exists()
    log = (tmp_path / "run" / "evaluate.log").read_text()
    (line,) = [line for line in log.splitlines() if "the contact sheet could not be written" in line]
    assert "cannot be read as an image" in line
    assert "top1" in capsys.readouterr().out.casefold().replace("-", "")


@pytest.mark.slow
def test_failed_extras_leave_metrics_and_files(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def fail(name: str) -> Any:
        def refuse(*_: object) -> None:
            written.append(name)
            assert (tmp_path / "run" / "result.json").is_file()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return refuse

    monkeypatch.setattr(publish, "sheet_of", fail("sheet"))
    monkeypatch.setattr(publish, "quarantine", fail("copies"))
    monkeypatch.setattr(Tracker, "log_tables", fail("tables"))
    monkeypatch.setattr(Tracker, "log_artifacts", fail("artifacts"))
    overrides = ("logger=csv", "on_bad_image=quarantine")
    evaluate_run(sandbox, tmp_path / "run", *overrides)
    assert written == ["sheet", "copies", "tables", "artifacts"]
    log = (tmp_path / "run" / "evaluate.log").read_text()
    assert log.count("could not be written: [Errno 28] No space left on device; the metrics are complete") == 4
    (metrics,) = tmp_path.glob("run/**/metrics.csv")
    assert "top1" in read_csv(metrics)[0]
