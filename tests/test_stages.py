"""A stage runs if something is missing, and is accounted for either way."""

import logging
import warnings
from typing import Any

import pytest
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lgclip.stages import StageBar, Stages, quiet


class Shelf(LightningModule):
    """A stage that puts numbers on a shelf; `deaf` ones are never put."""

    unit = "number"

    def __init__(self, wanted: range, there: set[int], deaf: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.wanted, self.there, self.deaf, self.loads = wanted, there, deaf, 0

    def missing(self) -> list[int]:
        return [n for n in self.wanted if n not in self.there]

    def on_predict_start(self) -> None:
        self.loads += 1

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.missing(), batch_size=2, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        self.there.update(set(batch) - self.deaf)


@pytest.fixture
def stages() -> Stages:
    quiet()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    return Stages(trainer)


@pytest.mark.parametrize(("there", "made", "loads"), [(set(), 5, 1), ({1, 3}, 3, 1), ({0, 1, 2, 3, 4}, 0, 0)])
def test_a_stage_makes_what_is_missing_and_loads_nothing_for_nothing(
    stages: Stages, there: set[int], made: int, loads: int
) -> None:
    shelf = Shelf(range(5), there)
    stages.complete("numbers", shelf, 5)
    assert shelf.there == set(range(5))
    assert shelf.loads == loads
    (account,) = stages.accounts
    assert (account.stage, account.made, account.reused) == ("numbers", made, 5 - made)
    assert account.seconds >= 0


def test_a_stage_that_leaves_something_out_is_an_error(stages: Stages) -> None:
    with pytest.raises(RuntimeError, match="numbers: 1 of 5 are still missing"):
        stages.complete("numbers", Shelf(range(5), set(), deaf=frozenset({2})), 5)
    assert not stages.accounts


def test_the_bar_says_what_how_many_and_how_fast(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages.complete("numbers", Shelf(range(5), {0}), 5)
    said = capsys.readouterr().err
    assert "numbers: 100%" in said
    assert "4/4" in said
    assert " number" in said
    stages.complete("numbers", Shelf(range(5), set(range(5))), 5)
    assert capsys.readouterr().err == "", "nothing is shown of a stage that makes nothing"


def test_quiet_leaves_other_warnings_alone() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("of use to the reader", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["of use to the reader"]
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.WARNING)
