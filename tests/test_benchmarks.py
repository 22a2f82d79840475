"""Tests the benchmarks: the comparison of two sides, and that each script starts and rejects wrong use."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

HERE = Path(__file__).resolve().parent.parent / "benchmarks"
SCRIPTS = (
    "classifier",
    "classify_memory",
    "cold_start",
    "default_run",
    "image_generation",
    "evaluation",
    "export",
    "first_run",
    "multi_scale",
    "ray_overhead",
    "scaling",
    "sweep_grid",
    "gpu",
    "gpu_models",
)


@pytest.fixture
def comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the module with another output folder."""
    monkeypatch.syspath_prepend(str(HERE))
    module = importlib.import_module("comparison")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


@pytest.fixture
def row(comparison: Any) -> Any:
    def build_row(**changes: Any) -> Any:
        values = {
            "number": "B2",
            "task": "a",
            "reference": "b",
            "aim": ">= 2",
            "unit": "s",
            "measured": [1.0, 2.0, 4.0],
        }
        return comparison.Row(**{**values, "baselines": [3.0, 4.0, 8.0], "equality": "all", "command": "go", **changes})

    return build_row


def test_ratio_is_the_median_of_rounds(row: Any) -> None:
    assert row().ratios == [3.0, 2.0, 2.0]
    assert row().ratio == 2.0
    assert row(inverse=True).ratios == [1 / 3, 0.5, 0.5]


@pytest.mark.parametrize(
    ("aim", "inverse", "reached"),
    [(">= 2", False, True), (">= 2.01", False, False), ("<= 0.5", True, True), ("<= 0.49", True, False),
     ("", False, None)],
)  # fmt: skip
def test_aim_is_compared_with_the_ratio(row: Any, aim: str, inverse: bool, reached: bool | None) -> None:
    assert row(aim=aim, inverse=inverse).reached is reached


def test_unequal_rounds_are_an_error(row: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = row(baselines=[1.0]).ratio


def test_rounds_alternate_after_a_warm_up(comparison: Any) -> None:
    order: list[str] = []
    numbers: Iterator[int] = iter(range(100))

    def measure(name: str) -> float:
        order.append(name)
        return float(next(numbers))

    assert comparison.alternate(lambda: measure("a"), lambda: measure("b"), rounds=2) == ([2.0, 4.0], [3.0, 5.0])
    assert "".join(order) == "ababab"


def test_timer_measures_the_call(comparison: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: clock[0])
    assert comparison.measure_seconds(lambda: clock.__setitem__(0, 12.5)) == 2.5


def test_table_is_ordered_by_number(comparison: Any, row: Any, tmp_path: Path) -> None:
    for number in ("G1a", "B10", "B2", "B5b", "B5a"):
        comparison.save_row(
            row(number=number, aim="" if number == "B10" else ">= 3"), "a device" if number == "G1a" else ""
        )
    comparison.save_row(row(number="B2"))  # measured again
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("| B", "| G"))]
    assert [line.split(" | ")[0] for line in lines] == ["| B2", "| B5a", "| B5b", "| B10", "| G1a"]
    assert lines[0].endswith("| >= 2 | reached |")
    assert lines[1].endswith("| >= 3 | **missed** |")
    assert lines[3].endswith("|  |  |")
    assert "2 s (1 - 4) | 4 s (3 - 8) | 2 (2 - 3) |" in lines[0]
    assert text.count("\nMeasured on") == 2
    assert "a device" in text
    assert json.loads((tmp_path / "results" / "B2.json").read_text(encoding="utf-8"))["measured"] == [1.0, 2.0, 4.0]


def test_inverse_ratio_is_marked(comparison: Any, row: Any, tmp_path: Path) -> None:
    comparison.save_row(row(aim="", inverse=True))
    assert "| 0.5 (0.333 - 0.5) of reference |" in (tmp_path / "RESULTS.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", SCRIPTS)
def test_benchmarks_document_their_command(name: str) -> None:
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree) or ""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    assert all(isinstance(node, allowed) for node in tree.body)
    runs = [node for node in tree.body if isinstance(node, ast.If)]
    if name == "gpu_models":
        assert not runs
    else:
        assert f"python benchmarks/{name}.py" in docstring
        assert [ast.unparse(node.test) for node in runs] == ["__name__ == '__main__'"]


@pytest.mark.multiprocess
def test_benchmarks_import() -> None:
    """Imports all benchmarks in one process, because each needs torch."""
    completed = run_script("-c", f"import importlib\nfor name in {SCRIPTS!r}: importlib.import_module(name)")
    assert completed.returncode == 0, completed.stderr


@pytest.mark.multiprocess
def test_gpu_benchmark_runs_small() -> None:
    before = stored_results()
    completed = run_script(str(HERE / "gpu.py"), "--device", "cpu", "--small")
    assert completed.returncode == 0, completed.stderr
    for part in ("bf16 matrix product of", "G1a", "G1b", "G1c", "G2a", "G3", "G4", "G5"):
        assert part in completed.stdout
    assert "sweep of 2 cells" in completed.stdout
    assert stored_results() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "add --small"),
        ([], "no CUDA device here; --device cpu --small"),
    ],
)
def test_gpu_benchmark_requires_a_gpu(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(arguments) == 1
    assert words in capsys.readouterr().err


def stored_results() -> dict[str, bytes]:
    """Returns the stored results."""
    return {path.name: path.read_bytes() for path in (HERE / "results").glob("G*.json")}


def run_script(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a Python command that finds the benchmarks."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, *command], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=400, check=False
    )


def test_images_are_rendered_in_a_style(tmp_path: Path) -> None:
    from benchmarks.styled_images import render_in_style
    from lgclip.datasets.folder import Folder
    from lgclip.tiny.styles import STYLES

    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    rows = []
    for number, image in enumerate(pixels):
        file = tmp_path / f"{number}.png"
        Image.fromarray(image).save(file)
        rows.append({"class": number // 2, "name": ("red circle", "a_b")[number // 2], "file": str(file)})
    (tmp_path / "images.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    assert render_in_style(tmp_path, "dusk", tmp_path / "out") == 4
    data = Folder(str(tmp_path / "out"))
    assert data.labels == (0, 0, 1, 1)
    for number, image in enumerate(pixels):
        np.testing.assert_array_equal(np.asarray(data.image(number)), STYLES["dusk"](image, number))
