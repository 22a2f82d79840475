"""Tests that a command gives the same bytes for any number of processes, batch size and workers."""

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    IMAGES_PER_CLASS,
    NAMES,
    Sandbox,
    evaluate_run,
    make_image_folder,
    read_csv,
    read_tree,
    run_command,
)
from multiprocess_runs import (
    PASSES,
    ROOT,
    ProcessOrder,
    assert_same_outcome,
    collect_outcome,
    run_orders,
    start_process,
    wait_for_processes,
)

from lgclip.diffuser.pipeline import Diffuser
from lgclip.types import Prompt, TargetClass

pytest_plugins = ("run_fixtures",)
pytestmark = pytest.mark.multiprocess

CPU = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if Path("/proc/cpuinfo").exists() else ""
HEEDS = "GenuineIntel" in CPU and "avx2" in CPU
"""Whether MKL can multiply strictly on this CPU."""
STRICT = HEEDS and os.environ.get("MKL_CBWR") == "AUTO,STRICT"

ALTERNATIVES = "text.alternatives=[llm]"
N = 13
"""Images to evaluate: a prime number, which no number of processes can share evenly."""

RUNS = {
    "1 process with batches of 1": (1, 1, 0),
    "2 processes with batches of 7 and 2 workers": (2, 7, 2),
    "3 processes with batches of 1": (3, 1, 0),
    "2 processes with batches of 4 and measured workers": (2, 4, "auto"),
}
"""Processes, size of both stages' batches, workers of each process; compared with 1, 32, 0."""


@dataclass(frozen=True)
class Runs:
    """Holds runs of one sandbox, each with its own store.

    Attributes:
        folder: Each run's store is `NAME/store` in it, what it found `NAME/run`.
        sandbox: What was evaluated by the runs of `RUNS`.
        few: Two images of two classes, one drawn image per class.
    """

    folder: Path
    sandbox: Sandbox
    few: Sandbox

    def result_of(self, name: str) -> dict[str, Any]:
        return collect_outcome(self.folder / name / "store", self.folder / name / "run")

    def order(self, script: str, name: str, ranks: int, overrides: Sequence[str]) -> ProcessOrder:
        """Describes a run of several processes that differ in their rank only."""
        folder = self.folder / name
        trainer_overrides = [f"trainer.devices={ranks}", "trainer=ddp"]
        stored = f"paths.store={folder / 'store'}"
        return ProcessOrder(
            script, [*overrides, *trainer_overrides, stored, f"hydra.run.dir={folder / 'run'}"], ranks, str(folder)
        )

    def alone(self, name: str) -> None:
        """Runs in this process."""
        folder = self.folder / name
        evaluate_run(self.sandbox, folder / "run", *batches(32, 0), f"paths.store={folder / 'store'}")


def batches(size: int, workers: int | str) -> list[str]:
    return [
        f"diffuser.batch_size={size}",
        f"encoder.batch_size={size}",
        f"workers={workers}",
        "scales=multi",
        ALTERNATIVES,
    ]


@pytest.fixture(scope="module")
def runs(empty_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Evaluates every run of `RUNS` in forked processes."""
    folder = tmp_path_factory.mktemp("exact")
    synthetic_images = make_image_folder(folder / "pictures", per_class=5)
    few = make_image_folder(folder / "few", NAMES[:2], per_class=1)
    for extra in ("blue_moon/0.png", "red_star/3.png"):
        (synthetic_images / extra).unlink()
    session = Runs(
        folder, replace(empty_sandbox, synthetic_images=synthetic_images), replace(empty_sandbox, synthetic_images=few)
    )
    overrides = session.sandbox.evaluate_overrides()
    orders = [
        session.order("evaluate.py", name, n, [*overrides, *batches(*shape)]) for name, (n, *shape) in RUNS.items()
    ]
    orders.append(
        session.order("generate.py", "drawn by 3", 3, [*session.sandbox.generate_overrides(), *batches(7, 0)])
    )
    sparse = [*session.few.evaluate_overrides(), "prompts_per_class=1"]
    orders += [session.order("evaluate.py", f"few by {n}", n, sparse) for n in (1, 4)]
    run_orders(orders, folder / "orders.json")
    with pytest.MonkeyPatch.context() as patch:
        for place, size in PASSES.items():
            patch.setattr(place, size)
        session.alone("alone")
    return session


@pytest.mark.parametrize("name", RUNS)
def test_processes_batches_and_workers_change_nothing(name: str, runs: Runs) -> None:
    result = runs.result_of(name)
    alone = runs.result_of("alone")
    assert len(alone["images"]) == 9
    # Of three prompts of a class one is the template.
    assert sum(map(len, alone["features"].values())) == 3 * len(NAMES) + 4 * (9 + N)
    assert "clip_text_llm" in alone["result"]["baselines"]
    assert len(read_csv(runs.folder / name / "run" / "predictions.csv")) == result["result"]["n"] == N
    assert_same_outcome(result, alone)


def test_three_processes_generate_the_same_images(runs: Runs) -> None:
    generated = read_tree(runs.folder / "drawn by 3" / "store" / "images")
    assert {name: data for name, data in generated.items() if name.endswith(".png")} == runs.result_of("alone")[
        "images"
    ]


def test_surplus_processes_evaluate_each_image_once(runs: Runs) -> None:
    result = runs.result_of("few by 4")
    assert result["result"]["n"] == len(read_csv(runs.folder / "few by 4" / "run" / "predictions.csv")) == 2
    assert_same_outcome(result, runs.result_of("few by 1"))


def test_one_command_starts_all_processes(runs: Runs) -> None:
    order = runs.order("evaluate.py", "by itself", 2, [*runs.sandbox.evaluate_overrides(), *batches(7, 0)])
    (line,) = wait_for_processes([start_process([sys.executable, str(ROOT / order.script), *order.arguments])])
    assert line.count("\nlgclip ") == 1, "one table, not one a process"
    runs.alone("in passes of the usual size")
    assert_same_outcome(runs.result_of("by itself"), runs.result_of("in passes of the usual size"))


@pytest.mark.parametrize(
    "share",
    [
        pytest.param([*range(11)], id="one is left out"),
        pytest.param([*range(12), 0], id="one twice"),
        pytest.param([], id="none"),
    ],
)
def test_wrong_number_of_images_is_an_error(
    share: list[int],
    sandbox: Sandbox,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    all_indices = range(IMAGES_PER_CLASS * len(NAMES))
    monkeypatch.setattr(
        "lgclip.stages.streams.shard_indices", lambda _, n, size: share if n == len(all_indices) else [*range(n)]
    )
    with pytest.raises(SystemExit, match="1"):
        run_command("evaluate", *sandbox.evaluate_overrides(), f"hydra.run.dir={tmp_path / 'run'}")
    assert f"{len(share)} images were evaluated, the data set has {len(all_indices)}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()


def test_tiny_models_are_batch_invariant(tmp_path: Path) -> None:
    """Uses trained weights, so that a different last bit changes some gray level."""
    overrides = ["dataset=digits", "llm=template", "prompts_per_class=1", "diffuser.steps=4", "trainer.accelerator=cpu"]
    generated = []
    for size in (1, 7, 32):
        store = tmp_path / str(size)
        run_command(
            "generate",
            *overrides,
            f"diffuser.batch_size={size}",
            f"paths.store={store}",
            f"hydra.run.dir={store / 'run'}",
        )
        generated.append({name: data for name, data in read_tree(store / "images").items() if name.endswith(".png")})
    assert len(generated[0]) == 10
    assert generated[0] == generated[1] == generated[2]


def test_image_does_not_depend_on_its_batch() -> None:
    brush = Diffuser("tiny:diffuser", steps=2, guidance=3.0, size=64).load(torch.device("cpu"))

    def is_equal(images: np.ndarray, expected: np.ndarray) -> bool:
        apart = np.abs(images.astype(int) - expected.astype(int)).max()
        return bool(apart <= (not STRICT))  # a grey level where a row's last bit depends on its place

    prompts = [Prompt(TargetClass(c, name), f"a photo of a {name}.", 0) for c, name in enumerate((*NAMES, "five"))]
    generated = brush(prompts, 0)
    assert is_equal(brush(prompts[::-1], 0)[::-1], generated)
    assert is_equal(brush([prompts[1]] * 4, 0)[2], generated[1])


ALIKE = """
import lgclip, torch

torch.set_num_threads(1)
row, weights = torch.randn(512), torch.randn(45, 512)
products = [row.expand(n, 512).contiguous() @ weights.T for n in (1, 2, 7, 13, 32, 544)]
print(all(torch.equal(product, products[0][:1].expand_as(product)) for product in products))
"""


@pytest.mark.skipif(not HEEDS, reason="MKL can do so on Intel's CPUs alone")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_matrix_rows_are_batch_invariant(instructions: str) -> None:
    """Checks bitwise equality, which does not hold without the package's MKL setting, at least with AVX2."""
    environment = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    with_instructions = {**environment, "MKL_ENABLE_INSTRUCTIONS": instructions}
    process = subprocess.run(
        [sys.executable, "-c", ALIKE], env=with_instructions, capture_output=True, text=True, check=True
    )
    assert process.stdout.strip() == "True"
