"""Loggers: W&B offline and without an account, CSV, none."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf
from worlds import NAMES, SENTENCES, FirstRun, World, call, judge, rows

from lgclip.tracking import flat_metrics, track

pytest_plugins = ("run_fixtures",)

BLOCK = 1 << 15


def records(path: Path) -> Iterator[Any]:
    """What an offline run holds: LevelDB's log of protobufs, after a head of 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]  (protobuf makes it)

    data, at, whole = path.read_bytes(), 7, b""
    while at < len(data):
        if BLOCK - at % BLOCK < 7:  # too short for a head: the rest of the block is padding
            at += BLOCK - at % BLOCK
            continue
        size, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            yield record
            whole = b""


def offline_runs(folder: Path) -> dict[str, list[Any]]:
    """The records of every W&B run below a folder, by the run's id."""
    return {path.stem: list(records(path)) for path in sorted(folder.rglob("run-*.wandb"))}


def of_kind(found: list[Any], kind: str) -> list[Any]:
    return [getattr(record, kind) for record in found if record.WhichOneof("record_type") == kind]


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing of an account, and nobody to ask for one."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "no config"))

    def asked(*args: object) -> str:
        raise AssertionError("nobody is asked")

    monkeypatch.setattr("builtins.input", asked)
    monkeypatch.setattr("getpass.getpass", asked)


def test_a_sweep_is_one_finished_offline_run_a_cell(world: World, tmp_path: Path) -> None:
    sweep = ["logger=wandb", f"hydra.sweep.dir={tmp_path}", "prompts_per_class=1,2", "scales=single", "-m"]
    call("evaluate", *world.evaluating(), *sweep)
    assert len(offline_runs(tmp_path)) == 2
    for cell, prompts in enumerate((1, 2)):
        ((_, found),) = offline_runs(tmp_path / str(cell)).items()
        (ended,) = of_kind(found, "exit")
        assert ended.exit_code == 0
        said = {update.key: update.value_json for config in of_kind(found, "run") for update in config.config.update}
        said |= {update.key: update.value_json for config in of_kind(found, "config") for update in config.update}
        assert said["prompts_per_class"] == str(prompts)
        logged = {"/".join(i.nested_key) or i.key: i.value_json for h in of_kind(found, "history") for i in h.item}
        result = json.loads((tmp_path / str(cell) / "result.json").read_text())
        assert float(logged["top1"]) == result["metrics"]["top1"]
        assert float(logged["clip_text/top1"]) == result["baseline"]["top1"]
        tables = {p.name.split("_")[0]: json.loads(p.read_text()) for p in tmp_path.rglob(f"{cell}/**/*.table.json")}
        assert tables.keys() == {"prototypes", "confusion"}
        table = tables["prototypes"]
        assert table["columns"] == ["class", "name", "prompt", "image"]
        assert [row[:3] for row in table["data"]] == [
            [c, name, sentence.replace("{}", name)] for c, name in enumerate(NAMES) for sentence in SENTENCES[:prompts]
        ]


def test_a_run_that_fails_is_finished_as_failed(tmp_path: Path) -> None:
    logger = OmegaConf.load(Path(__file__).parents[1] / "conf" / "logger" / "wandb.yaml")
    assert isinstance(logger, DictConfig)
    with pytest.raises(RuntimeError, match="power cut"), track(logger, tmp_path, {"seed": 0}):
        raise RuntimeError("power cut")
    ((_, found),) = offline_runs(tmp_path).items()
    (ended,) = of_kind(found, "exit")
    assert ended.exit_code == 1
    with track(logger, tmp_path, {"seed": 1}):
        pass
    assert len(offline_runs(tmp_path)) == 2, "the next run is its own"


def test_the_csv_logger_writes_the_figures(world: World, tmp_path: Path) -> None:
    result = judge(world, tmp_path / "run", "logger=csv")
    (logged,) = rows(next((tmp_path / "run").rglob("metrics.csv")))
    assert {name: float(logged[name]) for name in flat_metrics(result)} == flat_metrics(result)
    assert float(logged["top1"]) == result["metrics"]["top1"]


def test_no_logger_leaves_the_runs_own_files_alone(first_run: FirstRun) -> None:
    assert {p.name for p in first_run.folder.iterdir() if p.name not in (".hydra", "evaluate.log")} == {
        "result.json", "per_class.csv", "predictions.csv", "prototypes.png"
    }  # fmt: skip


def test_figures_beside_go_by_their_name(first_run: FirstRun) -> None:
    flat = flat_metrics(first_run.result)
    assert list(flat)[:3] == ["top1", "top5", "mean_per_class"]
    assert flat["fusion/top5"] == first_run.result["beside"]["fusion"]["top5"]
    assert len(flat) == 9
