"""The release's protocol with fewer images than generated, from config to result."""

from pathlib import Path

import numpy as np
import pytest
from factories import Sandbox, evaluate_run

from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run


@pytest.mark.slow
def test_official_selection_ranks_full_images(sandbox: Sandbox, tmp_path: Path) -> None:
    overrides = ("protocol=official_code", "images_per_prompt=4", "selection=text", "selection.keep=2")
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    restored = restore_run(Run.read(tmp_path / "run"))
    views = restored.streams["synthetic"].views
    assert len(views) == 10
    assert result["scales"]["part"] == "WithFullImage"
    plain = evaluate_run(sandbox, tmp_path / "plain", "protocol=official_code", "images_per_prompt=4")
    assert plain["scales"]["part"] == "RandomResizedCrops"
    assert np.isfinite(result["metrics"]["top1"])
