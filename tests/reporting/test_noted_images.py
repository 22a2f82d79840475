"""What makes a metric meaningless is in the result: flat images, ties, files that were left out."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import Sandbox, evaluate_run, make_image_folder
from PIL import Image

from lgclip.methods.base import PredictionCollector


@pytest.mark.slow
def test_flat_images_and_left_out_files_are_reported(
    fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make_image_folder(tmp_path / "pictures_with_faults")
    folder = sorted(path for path in root.iterdir())[1]
    Image.new("RGB", (48, 40), "gray").save(folder / "0.png")
    (folder / ".ipynb_checkpoints").mkdir()
    (folder / ".ipynb_checkpoints" / "1.png").write_bytes((folder / "1.png").read_bytes())

    # Twice: the second run decodes no image, and still knows.
    for name in ("first", "second"):
        result = evaluate_run(fresh_sandbox, tmp_path / name, f"dataset.root={root}")

        assert result["dataset"]["files_left_out"] == {"hidden": 1}
        assert list(result["dataset"]["folder_names"].values()) == [
            path.name.replace("_", " ") for path in sorted(root.iterdir())
        ]
        [image] = result["noted_images"]
        assert image["file"] == str(folder / "0.png")
        assert image["note"] == "without contrast"
        assert "1 test images are unusual" in capsys.readouterr().out


def test_ties_are_counted() -> None:
    """An encoder that sees nothing gives every image class 0."""
    collector = PredictionCollector()
    scores = torch.tensor([[0.5, 0.5, 0.1], [0.1, 0.7, 0.7], [0.3, 0.2, 0.2], [0.4, 0.4, 0.4]])
    collector.update(scores, torch.tensor([0, 0, 0, 2]), torch.arange(4))

    rows, _ = collector.compute()

    expected = (scores.numpy() == scores.numpy().max(axis=1, keepdims=True)).sum(axis=1) > 1
    np.testing.assert_array_equal(rows[:, 4], expected)
