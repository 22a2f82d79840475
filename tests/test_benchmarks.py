"""The benchmarks: how two sides are compared, and that each script starts and refuses wrong use."""

import ast
import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent.parent / "benchmarks"
MINE = ("cold_start", "default_run", "drawing", "judging", "multi_scale", "scaling", "sweep_grid", "gpu", "gpu_models")


@pytest.fixture
def side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, writing elsewhere."""
    monkeypatch.syspath_prepend(str(HERE))
    module = importlib.import_module("side_by_side")
    monkeypatch.setattr(module, "HERE", tmp_path)
    return module


@pytest.fixture
def row(side: Any) -> Any:
    def of(**changes: Any) -> Any:
        given = {"number": "B2", "ours": "a", "against": "b", "aim": ">= 2", "unit": "s", "measured": [1.0, 2.0, 4.0]}
        return side.Row(**{**given, "beside": [3.0, 4.0, 8.0], "equal": "all", "command": "go", **changes})

    return of


def test_the_ratio_is_the_median_of_the_rounds_ratios(row: Any) -> None:
    assert row().ratios == [3.0, 2.0, 2.0]
    assert row().ratio == 2.0
    assert row(inverse=True).ratios == [1 / 3, 0.5, 0.5]


@pytest.mark.parametrize(
    ("aim", "inverse", "reached"),
    [(">= 2", False, True), (">= 2.01", False, False), ("<= 0.5", True, True), ("<= 0.49", True, False),
     ("", False, None)],
)  # fmt: skip
def test_an_aim_is_held_against_the_ratio(row: Any, aim: str, inverse: bool, reached: bool | None) -> None:
    assert row(aim=aim, inverse=inverse).reached is reached


def test_rounds_of_unequal_number_are_an_error(row: Any) -> None:
    with pytest.raises(ValueError, match="shorter"):
        _ = row(beside=[1.0]).ratio


def test_both_sides_go_in_turns_and_the_first_round_does_not_count(side: Any) -> None:
    order: list[str] = []
    numbers: Iterator[int] = iter(range(100))

    def of(name: str) -> float:
        order.append(name)
        return float(next(numbers))

    assert side.in_turns(lambda: of("a"), lambda: of("b"), rounds=2) == ([2.0, 4.0], [3.0, 5.0])
    assert "".join(order) == "ababab"


def test_seconds_are_those_of_the_call(side: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [10.0]
    monkeypatch.setattr(side.time, "perf_counter", lambda: clock[0])
    assert side.seconds(lambda: clock.__setitem__(0, 12.5)) == 2.5


def test_the_table_holds_what_is_kept_in_the_order_of_the_numbers(side: Any, row: Any, tmp_path: Path) -> None:
    for number in ("G1a", "B10", "B2", "B5b", "B5a"):
        side.keep(row(number=number, aim="" if number == "B10" else ">= 3"), "a device" if number == "G1a" else "")
    side.keep(row(number="B2"))  # measured again
    text = (tmp_path / "RESULTS.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith(("| B", "| G"))]
    assert [line.split(" | ")[0] for line in lines] == ["| B2", "| B5a", "| B5b", "| B10", "| G1a"]
    assert lines[0].endswith("| >= 2 | reached |")
    assert lines[1].endswith("| >= 3 | **missed** |")
    assert lines[3].endswith("|  |  |")
    assert "2 s (1 - 4) | 4 s (3 - 8) | 2 (2 - 3)" in lines[0]
    assert text.count("\nMeasured on") == 2
    assert "a device" in text
    assert json.loads((tmp_path / "results" / "B2.json").read_text(encoding="utf-8"))["measured"] == [1.0, 2.0, 4.0]


@pytest.mark.parametrize("name", MINE)
def test_a_benchmark_says_its_command_and_what_it_does_starts_in_main_alone(name: str) -> None:
    tree = ast.parse((HERE / f"{name}.py").read_text(encoding="utf-8"))
    said = ast.get_docstring(tree) or ""
    allowed = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign, ast.Expr, ast.If)
    assert all(isinstance(node, allowed) for node in tree.body)
    runs = [node for node in tree.body if isinstance(node, ast.If)]
    if name == "gpu_models":
        assert not runs
    else:
        assert f"python benchmarks/{name}.py" in said
        assert [ast.unparse(node.test) for node in runs] == ["__name__ == '__main__'"]


def test_the_benchmarks_find_what_they_import() -> None:
    """All in one process: each of them needs torch."""
    done = started("-c", f"import importlib\nfor name in {MINE!r}: importlib.import_module(name)")
    assert done.returncode == 0, done.stderr


def test_every_part_of_the_gpu_benchmark_runs_small_and_keeps_no_figure() -> None:
    before = kept()
    done = started(str(HERE / "gpu.py"), "--device", "cpu", "--small")
    assert done.returncode == 0, done.stderr
    for part in ("bf16 matrix product of", "G1a", "G1b", "G1c", "G2a", "G3", "G4", "G5"):
        assert part in done.stdout
    assert "sweep of 2 cells" in done.stdout
    assert kept() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "add --small"),
        ([], "no CUDA device here; --device cpu --small"),
    ],
)
def test_the_gpu_benchmark_says_what_it_needs(
    arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(HERE))
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    assert gpu.main(arguments) == 1
    assert words in capsys.readouterr().err


def kept() -> dict[str, bytes]:
    """The figures that are kept."""
    return {path.name: path.read_bytes() for path in (HERE / "results").glob("G*.json")}


def started(*command: str) -> subprocess.CompletedProcess[str]:
    """A Python command that finds the benchmarks."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    return subprocess.run(
        [sys.executable, *command], cwd=HERE.parent, env=env, capture_output=True, text=True, timeout=400, check=False
    )
