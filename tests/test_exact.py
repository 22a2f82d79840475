"""The same command gives the same bytes on any number of processes, with any batches and any workers."""

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
from crowd import PASSES, ROOT, Order, assert_same, crowd, finished, outcome, started
from worlds import IMAGES_PER_CLASS, NAMES, World, call, judge, picture_folder, rows, tree

from lgclip.batch import Prompt
from lgclip.diffuser.pipeline import Diffuser

pytest_plugins = ("run_fixtures",)

CPU = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace") if Path("/proc/cpuinfo").exists() else ""
HEEDS = "GenuineIntel" in CPU and "avx2" in CPU
"""Whether MKL can multiply strictly on this CPU."""
STRICT = HEEDS and os.environ.get("MKL_CBWR") == "AUTO,STRICT"

N = 13
"""Images to judge: a prime number, which no number of processes can share evenly."""

RUNS = {
    "1 process with batches of 1": (1, 1, 0),
    "2 processes with batches of 7 and 2 workers": (2, 7, 2),
    "3 processes with batches of 1": (3, 1, 0),
    "4 processes with batches of 32": (4, 32, 0),
}
"""Processes, size of both stages' batches, workers of each process; compared with 1, 32, 0."""


@dataclass(frozen=True)
class Runs:
    """Runs of one world, each with a store of its own.

    Attributes:
        folder: Each run's store is `NAME/store` in it, what it found `NAME/run`.
        world: What was judged by the runs of `RUNS`.
        few: Two images of two classes, one drawn image a class.
    """

    folder: Path
    world: World
    few: World

    def found(self, name: str) -> dict[str, Any]:
        return outcome(self.folder / name / "store", self.folder / name / "run")

    def order(self, script: str, name: str, ranks: int, given: Sequence[str]) -> Order:
        """A run of several processes that nothing but their ranks tells apart."""
        folder, own = self.folder / name, [f"trainer.devices={ranks}", "trainer=ddp"]
        stored = f"paths.store={folder / 'store'}"
        return Order(script, [*given, *own, stored, f"hydra.run.dir={folder / 'run'}"], ranks, str(folder))

    def alone(self, name: str) -> None:
        """A run of this process."""
        folder = self.folder / name
        judge(self.world, folder / "run", *batches(32, 0), f"paths.store={folder / 'store'}")


def batches(size: int, workers: int) -> list[str]:
    return [f"diffuser.batch_size={size}", f"encoder.batch_size={size}", f"workers={workers}", "scales=multi"]


@pytest.fixture(scope="module")
def runs(empty_world: World, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Everything is made and judged by each run of `RUNS`, in processes that were forked from one."""
    folder = tmp_path_factory.mktemp("exact")
    pictures, few = picture_folder(folder / "pictures", each=5), picture_folder(folder / "few", NAMES[:2], each=1)
    for extra in ("blue_moon/0.png", "red_star/3.png"):
        (pictures / extra).unlink()
    one = Runs(folder, replace(empty_world, pictures=pictures), replace(empty_world, pictures=few))
    given = one.world.evaluating()
    orders = [one.order("evaluate.py", name, n, [*given, *batches(*how)]) for name, (n, *how) in RUNS.items()]
    orders.append(one.order("generate.py", "drawn by 3", 3, [*one.world.generating(), *batches(7, 0)]))
    sparse = [*one.few.evaluating(), "prompts_per_class=1"]
    orders += [one.order("evaluate.py", f"few by {n}", n, sparse) for n in (1, 4)]
    crowd(orders, folder / "orders.json")
    with pytest.MonkeyPatch.context() as patch:
        for place, size in PASSES.items():
            patch.setattr(place, size)
        one.alone("alone")
    return one


@pytest.mark.parametrize("name", RUNS)
def test_neither_processes_nor_batches_nor_workers_change_a_byte(name: str, runs: Runs) -> None:
    found, alone = runs.found(name), runs.found("alone")
    assert len(alone["images"]) == 9
    assert sum(map(len, alone["features"].values())) == len(NAMES) + 4 * (9 + N)
    assert len(rows(runs.folder / name / "run" / "predictions.csv")) == found["result"]["n"] == N
    assert_same(found, alone)


def test_images_drawn_by_three_processes_are_those_drawn_by_one(runs: Runs) -> None:
    drawn = tree(runs.folder / "drawn by 3" / "store" / "images")
    assert {name: data for name, data in drawn.items() if name.endswith(".png")} == runs.found("alone")["images"]


def test_more_processes_than_images_judge_each_once(runs: Runs) -> None:
    found = runs.found("few by 4")
    assert found["result"]["n"] == len(rows(runs.folder / "few by 4" / "run" / "predictions.csv")) == 2
    assert_same(found, runs.found("few by 1"))


def test_one_command_starts_the_other_processes_itself(runs: Runs) -> None:
    order = runs.order("evaluate.py", "by itself", 2, [*runs.world.evaluating(), *batches(7, 0)])
    (said,) = finished([started([sys.executable, str(ROOT / order.script), *order.arguments])])
    assert said.count("lgclip ") == 1, "one table, not one a process"
    runs.alone("in passes of the usual size")
    assert_same(runs.found("by itself"), runs.found("in passes of the usual size"))


@pytest.mark.parametrize(
    "share",
    [
        pytest.param([*range(11)], id="one is left out"),
        pytest.param([*range(12), 0], id="one twice"),
        pytest.param([], id="none"),
    ],
)
def test_a_run_that_judges_another_number_of_images_than_there_are_is_an_error(
    share: list[int], world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = range(IMAGES_PER_CLASS * len(NAMES))
    monkeypatch.setattr("lgclip.data.own_share", lambda _, n, size: share if n == len(whole) else [*range(n)])
    with pytest.raises(SystemExit, match="1"):
        call("evaluate", *world.evaluating(), f"hydra.run.dir={tmp_path / 'run'}")
    assert f"{len(share)} images were judged, the data set has {len(whole)}" in capsys.readouterr().err
    assert not (tmp_path / "run" / "result.json").exists()


def test_the_packages_own_models_draw_the_same_bytes_in_any_batch(tmp_path: Path) -> None:
    """Their weights are trained, so that a last bit that differs shows in a grey level here and there."""
    given = ["dataset=digits", "llm=template", "prompts_per_class=1", "diffuser.steps=4", "trainer.accelerator=cpu"]
    drawn = []
    for size in (1, 7, 32):
        store = tmp_path / str(size)
        call(
            "generate", *given, f"diffuser.batch_size={size}", f"paths.store={store}", f"hydra.run.dir={store / 'run'}"
        )
        drawn.append({name: data for name, data in tree(store / "images").items() if name.endswith(".png")})
    assert len(drawn[0]) == 10
    assert drawn[0] == drawn[1] == drawn[2]


def test_a_drawn_image_depends_neither_on_its_place_in_a_batch_nor_on_what_stands_beside_it() -> None:
    brush = Diffuser("tiny:diffuser", steps=2, guidance=3.0, size=64).load(torch.device("cpu"))

    def same(images: np.ndarray, others: np.ndarray) -> bool:
        apart = np.abs(images.astype(int) - others.astype(int)).max()
        return bool(apart <= (not STRICT))  # a grey level where a row's last bit depends on its place

    prompts = [Prompt(c, f"a photo of a {name}.", 0) for c, name in enumerate((*NAMES, "five"))]
    drawn = brush(prompts, 0)
    assert same(brush(prompts[::-1], 0)[::-1], drawn)
    assert same(brush([prompts[1]] * 4, 0)[2], drawn[1])


ALIKE = """
import lgclip, torch

torch.set_num_threads(1)
row, weights = torch.randn(512), torch.randn(45, 512)
products = [row.expand(n, 512).contiguous() @ weights.T for n in (1, 2, 7, 13, 32, 544)]
print(all(torch.equal(product, products[0][:1].expand_as(product)) for product in products))
"""


@pytest.mark.skipif(not HEEDS, reason="MKL can do so on Intel's CPUs alone")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512"])
def test_a_row_of_a_product_is_the_same_in_any_company(instructions: str) -> None:
    """Without what the package tells MKL it is not, at least with AVX2."""
    told = {name: value for name, value in os.environ.items() if name != "MKL_CBWR"}
    given = {**told, "MKL_ENABLE_INSTRUCTIONS": instructions}
    said = subprocess.run([sys.executable, "-c", ALIKE], env=given, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True"
