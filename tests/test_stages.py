"""A stage runs if something is missing, and is accounted for either way."""

import logging
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, Model, always, completion, good_reply, llm, stage
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lgclip.ledger import Line, Part, Tokens, lines_of
from lgclip.stages import StageBar, Stages, quiet

pytest_plugins = ("chat_fixtures",)


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


class Shelves(Shelf):
    """Two shelves, of quick and of slow things, each with a ledger."""

    tokens = Tokens(3, 4)

    def __init__(self, folder: Path, there: set[int], *, elsewhere: str = "") -> None:
        super().__init__(range(6), there)
        self.folder, self.elsewhere = folder, elsewhere

    def parts(self) -> list[Part]:
        return [
            Part(name, "number", f"{name}/1", self.folder / name / "costs.jsonl", 3, self.elsewhere)
            for name in ("quick", "slow")
        ]

    def lacking(self) -> list[int]:
        missing = self.missing()
        return [sum(n < 3 for n in missing), sum(n >= 3 for n in missing)]

    def predict_dataloader(self) -> Any:
        missing = self.missing()
        both: Any = [[n for n in missing if n < 3], [n for n in missing if n >= 3]]
        return [DataLoader(numbers, batch_size=2, collate_fn=list) for numbers in both]

    def predict_step(self, batch: list[int], batch_idx: int, dataloader_idx: int = 0) -> None:
        time.sleep(0.02 + 0.2 * dataloader_idx)
        super().predict_step(batch, batch_idx)


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


def test_what_a_stage_took_is_shared_out_by_how_long_each_part_took(stages: Stages, tmp_path: Path) -> None:
    stages.complete("numbers", Shelves(tmp_path, {0}), 6)
    (account,) = stages.accounts
    assert (account.unit, account.device, account.devices, account.tokens) == ("number", "cpu", 1, Tokens(3, 4))
    assert account.peak_memory is None or account.peak_memory > 2**20
    quick, slow = stages.parts["numbers"]
    assert (quick.made, slow.made) == (2, 3)
    assert quick.seconds + slow.seconds == pytest.approx(account.seconds, abs=2e-6)
    assert 0.02 <= quick.seconds < 0.44 <= slow.seconds, "two slow batches"
    for part in (quick, slow):
        line = Line(part.made, "number", part.seconds, "cpu", 1, Tokens(3, 4))
        assert lines_of(part.ledger) == [line]


def test_nothing_made_adds_no_line_and_some_made_adds_one_to_its_part(stages: Stages, tmp_path: Path) -> None:
    stages.complete("numbers", Shelves(tmp_path, set(range(6))), 6)
    assert not list(tmp_path.iterdir())
    assert [(part.used, part.made) for part in stages.parts["numbers"]] == [(3, 0), (3, 0)]
    assert (stages.accounts[0].tokens, stages.accounts[0].peak_memory) == (None, None)
    stages.complete("numbers", Shelves(tmp_path, {0, 1, 2, 3}, elsewhere="server at there"), 6)
    assert [path.name for path in tmp_path.iterdir()] == ["slow"]
    assert [(line.count, line.device) for line in lines_of(tmp_path / "slow" / "costs.jsonl")] == [
        (2, "server at there")
    ]
    assert stages.accounts[1].device == "server at there"


def test_a_stage_that_fails_adds_no_line(stages: Stages, tmp_path: Path) -> None:
    shelves = Shelves(tmp_path, set())
    shelves.deaf = frozenset({5})
    with pytest.raises(RuntimeError, match="1 of 6 are still missing"):
        stages.complete("numbers", shelves, 6)
    assert not list(tmp_path.iterdir())
    assert not stages.accounts


def test_a_block_is_timed_as_a_stage_is(stages: Stages) -> None:
    with stages.timed("judging", unit="image", total=7):
        time.sleep(0.05)
    (account,) = stages.accounts
    assert (account.stage, account.unit, account.made, account.reused) == ("judging", "image", 7, 0)
    assert 0.05 <= account.seconds < 5
    with pytest.raises(ValueError, match="bad"), stages.timed("judging", unit="image", total=7):
        raise ValueError("bad")
    assert len(stages.accounts) == 1, "what failed has no account"


def test_the_tokens_of_a_server_are_those_that_it_tells(
    stages: Stages, serve: Callable[[Answer], Model], key: None, tmp_path: Path
) -> None:
    def told(name: str, turn: int) -> dict[str, Any]:
        usage = {"prompt_tokens": 100, "completion_tokens": turn, "total_tokens": 100 + turn}
        return {**(good_reply(name, turn) if turn > 1 else completion("")), "usage": usage}

    writing = stage(tmp_path, llm(serve(always(told))))
    stages.complete("prompts", writing, 4)
    (account,) = stages.accounts
    assert account.tokens == Tokens(4 * 2 * 100, 4 * (1 + 2)), "an empty reply was paid for too"
    assert account.device.startswith("server at 127.0.0.1:")
    (part,) = stages.parts["prompts"]
    assert (part.unit, part.used, part.made) == ("sentence", 16, 16)
    assert lines_of(part.ledger)[0].tokens == account.tokens


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": []}])
def test_a_server_that_does_not_tell_leaves_the_tokens_unknown(
    stages: Stages, serve: Callable[[Answer], Model], key: None, tmp_path: Path, usage: Any
) -> None:
    stages.complete("prompts", stage(tmp_path, llm(serve(always(lambda *of: {**good_reply(*of), "usage": usage})))), 4)
    assert stages.accounts[0].made == 4
    assert stages.accounts[0].tokens is None


def test_quiet_leaves_other_warnings_alone() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("of use to the reader", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["of use to the reader"]
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.WARNING)
