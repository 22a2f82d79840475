"""Tests that a stage runs only if something is missing, and is counted either way."""

import logging
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from chat_server import Answer, ChatServer, completion, generation_stage, good_reply, reply_always, server_llm
from lightning import LightningModule, Trainer
from torch.utils.data import DataLoader

from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.cost_log import Line, StoreUsage, Tokens, lines_of, read_cost_log

pytest_plugins = ("chat_fixtures",)


class CountingStage(LightningModule):
    """Stores numbers; `ignored` ones are never stored."""

    unit = "number"

    def __init__(self, requested: range, existing: set[int], deaf: frozenset[int] = frozenset()) -> None:
        super().__init__()
        self.requested = requested
        self.stored = existing
        self.ignored = deaf
        self.loads = 0

    def missing(self) -> list[int]:
        return [n for n in self.requested if n not in self.stored]

    def on_predict_start(self) -> None:
        self.loads += 1

    def predict_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.missing(), batch_size=2, collate_fn=list)  # pyright: ignore[reportArgumentType]

    def predict_step(self, batch: list[int], batch_idx: int) -> None:
        self.stored.update(set(batch) - self.ignored)


class TwoStoreStage(CountingStage):
    """Writes to two stores, one quick and one slow, each with a cost log."""

    tokens = Tokens(3, 4)

    def __init__(self, folder: Path, existing: set[int], *, server: str = "") -> None:
        super().__init__(range(6), existing)
        self.folder = folder
        self.server = server

    def parts(self) -> list[StoreUsage]:
        return [
            StoreUsage(name, "number", f"{name}/1", self.folder / name / "costs.jsonl", 3, self.server)
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


@pytest.mark.parametrize(("existing", "computed", "loads"), [(set(), 5, 1), ({1, 3}, 3, 1), ({0, 1, 2, 3, 4}, 0, 0)])
def test_stage_computes_only_what_is_missing(stages: Stages, existing: set[int], computed: int, loads: int) -> None:
    shelf = CountingStage(range(5), existing)
    stages.complete("numbers", shelf, 5)
    assert shelf.stored == set(range(5))
    assert shelf.loads == loads
    (stats,) = stages.stage_stats
    assert (stats.stage, stats.computed, stats.reused) == ("numbers", computed, 5 - computed)
    assert stats.seconds >= 0


def test_incomplete_stage_is_an_error(stages: Stages) -> None:
    with pytest.raises(RuntimeError, match="numbers: 1 of 5 are still missing"):
        stages.complete("numbers", CountingStage(range(5), set(), deaf=frozenset({2})), 5)
    assert not stages.stage_stats


def test_progress_line_shows_unit_and_rate(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages.complete("numbers", CountingStage(range(5), {0}), 5)
    stderr = capsys.readouterr().err
    assert re.fullmatch(r"numbers: 4 numbers, \d+\.\d s, [\d.]+ numbers/s\n", stderr)
    stages.complete("numbers", CountingStage(range(5), set(range(5))), 5)
    assert capsys.readouterr().err == "", "nothing is shown of a stage that makes nothing"


def test_stage_time_is_split_by_duration(stages: Stages, tmp_path: Path) -> None:
    stages.complete("numbers", TwoStoreStage(tmp_path, {0}), 6)
    (stats,) = stages.stage_stats
    assert (stats.unit, stats.device, stats.devices, stats.tokens) == ("number", "cpu", 1, Tokens(3, 4))
    assert stats.peak_memory is None or stats.peak_memory > 2**20
    quick, slow = stages.parts["numbers"]
    assert (quick.computed, slow.computed) == (2, 3)
    assert quick.seconds + slow.seconds == pytest.approx(stats.seconds, abs=2e-6)
    assert 0.02 <= quick.seconds < 0.44 <= slow.seconds, "two slow batches"
    for part in (quick, slow):
        line = Line(part.computed, "number", part.seconds, "cpu", 1, Tokens(3, 4))
        assert lines_of(part.cost_log) == [line]


def test_cost_line_is_added_per_used_store(stages: Stages, tmp_path: Path) -> None:
    stages.complete("numbers", TwoStoreStage(tmp_path, set(range(6))), 6)
    assert not list(tmp_path.iterdir())
    assert [(part.used, part.computed) for part in stages.parts["numbers"]] == [(3, 0), (3, 0)]
    assert (stages.stage_stats[0].tokens, stages.stage_stats[0].peak_memory) == (None, None)
    stages.complete("numbers", TwoStoreStage(tmp_path, {0, 1, 2, 3}, server="server at there"), 6)
    assert [path.name for path in tmp_path.iterdir()] == ["slow"]
    assert [(line.count, line.device) for line in lines_of(tmp_path / "slow" / "costs.jsonl")] == [
        (2, "server at there")
    ]
    assert stages.stage_stats[1].device == "server at there"


def test_failed_stage_records_what_it_has_computed(stages: Stages, tmp_path: Path) -> None:
    stage = TwoStoreStage(tmp_path, set())
    stage.ignored = frozenset({5})
    with pytest.raises(RuntimeError, match="1 of 6 are still missing"):
        stages.complete("numbers", stage, 6)
    assert [lines_of(part.cost_log)[0].count for part in stage.parts()] == [3, 2]
    assert [read_cost_log(part.cost_log).unfinished for part in stage.parts()] == [0, 0]
    assert not stages.stage_stats


class StoppingStage(TwoStoreStage):
    """Ends with the second batch."""

    end: Any = SystemExit(143)

    def predict_step(self, batch: list[int], batch_idx: int, dataloader_idx: int = 0) -> None:
        if dataloader_idx == 1:
            raise self.end
        super().predict_step(batch, batch_idx, dataloader_idx)


def test_interrupted_stage_records_what_it_has_computed(stages: Stages, tmp_path: Path) -> None:
    stage = StoppingStage(tmp_path, set())
    with pytest.raises(SystemExit):
        stages.complete("numbers", stage, 6)
    quick, slow = (read_cost_log(part.cost_log) for part in stage.parts())
    assert [(line.count, line.tokens) for line in quick.lines] == [(3, None)]
    assert [(line.count, line.seconds) for line in slow.lines] == [(0, 0)]
    assert quick.lines[0].seconds > 0
    assert quick.unfinished == slow.unfinished == 0


def test_work_of_a_faster_run_is_not_counted_twice(stages: Stages, tmp_path: Path) -> None:
    """Another run fills the store between the count of what is missing and the first batch."""

    class Late(TwoStoreStage):
        def predict_dataloader(self) -> DataLoader[Any]:
            self.stored.update(self.requested)
            return super().predict_dataloader()

    stage = Late(tmp_path, set())
    stages.complete("late", stage, 6)
    assert not list(tmp_path.rglob("costs.jsonl"))
    assert [part.computed for part in stages.parts["late"]] == [0, 0]


def test_model_that_does_not_load_leaves_no_cost_log(stages: Stages, tmp_path: Path) -> None:
    class Unloadable(TwoStoreStage):
        def on_predict_start(self) -> None:
            raise ValueError("no such weights")

    with pytest.raises(ValueError, match="no such weights"):
        stages.complete("numbers", Unloadable(tmp_path, set()), 6)
    assert not list(tmp_path.iterdir())


def test_checks_run_once_before_the_first_work(stages: Stages) -> None:
    calls: list[str] = []
    stages.check_before(lambda: calls.append("store"), lambda: calls.append("encoder"))
    stages.complete("numbers", CountingStage(range(5), set(range(5))), 5)
    assert calls == []
    stages.complete("numbers", CountingStage(range(5), {1}), 5)
    stages.complete("numbers", CountingStage(range(5), {2}), 5)
    assert calls == ["store", "encoder"]


def test_timed_block_equals_a_stage(stages: Stages) -> None:
    with stages.timed("evaluation", unit="image", total=7):
        time.sleep(0.05)
    (stats,) = stages.stage_stats
    assert (stats.stage, stats.unit, stats.computed, stats.reused) == ("evaluation", "image", 7, 0)
    assert 0.05 <= stats.seconds < 5
    with pytest.raises(ValueError, match="bad"), stages.timed("evaluation", unit="image", total=7):
        raise ValueError("bad")
    assert len(stages.stage_stats) == 1, "what failed has no account"


def test_server_tokens_are_recorded(
    stages: Stages, serve: Callable[[Answer], ChatServer], key: None, tmp_path: Path
) -> None:
    def reply(name: str, turn: int) -> dict[str, Any]:
        usage = {"prompt_tokens": 100, "completion_tokens": turn, "total_tokens": 100 + turn}
        return {**(good_reply(name, turn) if turn > 1 else completion("")), "usage": usage}

    writing = generation_stage(tmp_path, server_llm(serve(reply_always(reply))))
    stages.complete("prompts", writing, 4)
    (stats,) = stages.stage_stats
    assert stats.tokens == Tokens(4 * 2 * 100, 4 * (1 + 2)), "an empty reply was paid for too"
    assert stats.device.startswith("server at 127.0.0.1:")
    (part,) = stages.parts["prompts"]
    assert (part.unit, part.used, part.computed) == ("sentence", 16, 16)
    assert lines_of(part.cost_log)[0].tokens == stats.tokens


@pytest.mark.parametrize("usage", [None, {}, {"prompt_tokens": 5}, {"prompt_tokens": "5", "completion_tokens": []}])
def test_missing_server_tokens_are_unknown(
    stages: Stages, serve: Callable[[Answer], ChatServer], key: None, tmp_path: Path, usage: Any
) -> None:
    stages.complete(
        "prompts",
        generation_stage(
            tmp_path, server_llm(serve(reply_always(lambda *args: {**good_reply(*args), "usage": usage})))
        ),
        4,
    )
    assert stages.stage_stats[0].computed == 4
    assert stages.stage_stats[0].tokens is None


def test_quiet_keeps_other_warnings() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        quiet()
        warnings.warn("of use to the reader", UserWarning, stacklevel=1)
    assert [str(w.message) for w in caught] == ["of use to the reader"]
    assert logging.getLogger("lightning.pytorch").isEnabledFor(logging.WARNING)
