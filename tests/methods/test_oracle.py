"""Tests the final accuracy against the exported features and ten lines of NumPy."""

import json
from pathlib import Path

import numpy as np
import pytest
from factories import IMAGES_PER_CLASS, NAMES, FirstRun, Sandbox, evaluate_run, read_arrays, read_csv

from lgclip.cli.main import main

pytest_plugins = ("run_fixtures",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "weights", "unit"),
    [
        (["scales=single"], [1], True),
        (["scales=multi"], [4, 3, 2, 1], True),
        (["scales=multi", "prototype=mean_similarity"], [4, 3, 2, 1], False),
        (["scales=ten"], [10, 9, 8, 7, 6, 5, 4, 3, 2, 1], True),
        # The release: sum over s = 1..10 of s/55 times the unit view at s/10; a mean that is not normalised again.
        (["protocol=official_code", "images_per_prompt=2"], [s / 55 for s in range(1, 11)], False),
        # The text: weight (N + 1 - n) / (1 + ... + N) for n = 1..N, N = 10.
        (["protocol=paper", "images_per_prompt=2"], [(10 + 1 - n) / 55 for n in range(1, 11)], False),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, list) and isinstance(value[0], str) else "",
)
def test_accuracy_matches_numpy(
    sandbox: Sandbox, tmp_path: Path, overrides: list[str], weights: list[float], unit: bool
) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    assert main(["store", "features", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 0
    exported = read_arrays(tmp_path / "out.npz")

    def fuse(views: np.ndarray) -> np.ndarray:
        total = (views.astype(np.float64) * np.array(weights)[:, None]).sum(axis=-2)
        return total / np.linalg.norm(total, axis=-1, keepdims=True)

    prototypes = fuse(exported["synthetic"]).mean(axis=1)
    if unit:
        prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    scores = fuse(exported["real"]) @ prototypes.T
    predicted = scores.argmax(axis=1)

    assert result["metrics"]["top1"] == (predicted == exported["real_labels"]).mean()
    predictions = read_csv(tmp_path / "run" / "predictions.csv")
    assert [int(row["prediction"]) for row in predictions] == predicted.tolist()
    label_scores = scores[np.arange(len(scores)), exported["real_labels"]]
    assert [int(row["rank"]) for row in predictions] == (scores > label_scores[:, None]).sum(axis=1).tolist()


def test_export_has_the_documented_shapes(first_run: FirstRun, tmp_path: Path) -> None:
    assert main(["store", "features", str(first_run.folder), str(tmp_path / "new" / "out.npz")]) == 0
    exported = read_arrays(tmp_path / "new" / "out.npz")
    n = len(NAMES) * IMAGES_PER_CLASS
    c = len(NAMES)
    assert {name: exported[name].shape for name in exported} == {
        "real": (n, 1, 32), "real_labels": (n,), "real_ids": (n,), "real_index": (n,), "views": (1,), "weights": (1,),
        "text": (c, 32), "text_labels": (c,), "text_averages_scores": (),
        "sentences": (c,), "synthetic": (c, 3, 1, 32), "synthetic_ids": (3 * c,),
        "kept": (3, 3 * c), "class_names": (c,), "rows": (3,), "rules": (),
    }  # fmt: skip
    assert exported["real_labels"].tolist() == [i // IMAGES_PER_CLASS for i in range(n)]
    for name in ("real", "synthetic"):
        assert exported[name].dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(exported[name], axis=-1), 1, atol=1e-5)
    assert len(np.unique(exported["synthetic"].reshape(-1, 32).round(6), axis=0)) == 9, "no two images are the same"


def test_export_without_images_has_real_features(sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "run", "method=clip_text")
    assert main(["store", "features", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 0
    exported = read_arrays(tmp_path / "out.npz")
    assert {"real", "real_labels", "text"} <= set(exported)
    assert not {"synthetic", "kept"} & set(exported)


def test_invalid_export_is_one_error(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["store", "features", str(tmp_path / "empty"), str(tmp_path / "out.npz")]) == 1
    assert "finished run" in capsys.readouterr().err
    evaluate_run(sandbox, tmp_path / "run")
    for chunk in sandbox.store.rglob("*.safetensors"):
        chunk.unlink()
    assert main(["store", "features", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 1
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("error: ")
    assert "features are not in the store" in message
    assert not (tmp_path / "out.npz").exists()


def test_export_keeps_the_runs_precision(sandbox: Sandbox, tmp_path: Path) -> None:
    """Checks `auto`, which may be resolved differently where the export is made."""
    evaluate_run(sandbox, tmp_path / "run", "precision=bf16")
    path = tmp_path / "run" / "result.json"
    exported = json.loads(path.read_text(encoding="utf-8"))
    assert exported["encoder"]["precision"] == exported["diffuser"]["precision"] == "bf16"
    exported["config"]["encoder"]["precision"] = exported["config"]["diffuser"]["precision"] = "auto"
    path.write_text(json.dumps(exported), encoding="utf-8")
    assert main(["store", "features", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 0
