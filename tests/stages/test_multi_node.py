"""Tests runs larger than a machine: two nodes on this machine, torchrun, and cluster configs."""

import sys
from itertools import chain
from pathlib import Path

import pytest
from factories import FirstRun, Sandbox
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from multiprocess_runs import ROOT, assert_same_outcome, collect_outcome, free_port, start_process, wait_for_processes
from omegaconf import DictConfig

from lgclip.runtime.sweep_job import on_several_devices

pytest_plugins = ("run_fixtures",)

EVALUATE = str(ROOT / "evaluate.py")
CONF = ROOT / "conf"


def composed(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", list(overrides), return_hydra_config=True)


def node_overrides(sandbox: Sandbox, folder: Path) -> list[str]:
    """Returns the overrides of every process of a run: the same store and folder."""
    return [*sandbox.evaluate_overrides(), f"hydra.run.dir={folder}", "trainer=multi_node", "trainer.devices=1"]


@pytest.mark.multiprocess
def test_two_nodes_match_one_process(first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, EVALUATE, *node_overrides(fresh_sandbox, tmp_path / "run")]
    outputs = wait_for_processes([start_process(command, {**where, "NODE_RANK": str(node)}) for node in (0, 1)])
    assert [text.count("\nlgclip ") for text in outputs] == [1, 0], "the first node alone tells the result"
    assert_same_outcome(
        collect_outcome(fresh_sandbox.store, tmp_path / "run"),
        collect_outcome(first_run.sandbox.store, first_run.folder),
    )


@pytest.mark.multiprocess
def test_torchrun_matches_one_process(first_run: FirstRun, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=2", "--rdzv-backend=static",
        f"--master-port={free_port()}", "--master-addr=127.0.0.1",
        EVALUATE, *node_overrides(fresh_sandbox, tmp_path / "run"), "trainer.num_nodes=1", "trainer.devices=2",
    ]  # fmt: skip
    wait_for_processes([start_process(command)])
    assert_same_outcome(
        collect_outcome(fresh_sandbox.store, tmp_path / "run"),
        collect_outcome(first_run.sandbox.store, first_run.folder),
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("overrides", "processes", "many"),
    [
        (["trainer=auto"], 1, False),
        (["trainer=ddp", "trainer.devices=1"], 1, False),
        (["trainer=ddp", "trainer.devices=3"], 3, True),
        (["trainer=multi_node", "trainer.devices=4"], 8, True),
        (["trainer=multi_node", "trainer.num_nodes=8", "trainer.devices=8"], 64, True),
    ],
)
def test_trainer_has_the_configured_processes(overrides: list[str], processes: int, many: bool) -> None:
    config = composed(*overrides, "trainer.accelerator=cpu")
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False)
    assert trainer.world_size == processes
    assert on_several_devices(config) is many


@pytest.mark.parametrize("rank", [0, 5, 63])
def test_slurm_ranks_are_detected(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks eight nodes of eight tasks as `srun` starts them: rank 5 on the first, 63 the last."""
    variables = {
        "SLURM_JOB_ID": "4242", "SLURM_JOB_NAME": "lgclip", "SLURM_NTASKS": "64", "SLURM_NTASKS_PER_NODE": "8",
        "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank % 8), "SLURM_NODEID": str(rank // 8),
        "SLURM_NODELIST": "gpu[01-08]",
    }  # fmt: skip
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # Lightning sets these two; so they are put back afterwards
    monkeypatch.setenv("MASTER_ADDR", "")
    monkeypatch.delenv("MASTER_ADDR")
    config = composed("trainer=multi_node", "trainer.num_nodes=8", "trainer.devices=8", "trainer.accelerator=cpu")
    trainer = instantiate(config.trainer, logger=False, enable_checkpointing=False)
    assert (trainer.global_rank, trainer.local_rank, trainer.node_rank) == (rank, rank % 8, rank // 8)
    assert trainer.world_size == 64
    environment = trainer.strategy.cluster_environment
    assert (environment.main_address, environment.creates_processes_externally) == ("gpu01", True)


@pytest.mark.parametrize(("n", "world"), [(150_000, 64), (1_050_000, 64), (13, 4), (2, 4), (0, 3)])
def test_shards_are_even_and_complete(n: int, world: int) -> None:
    shares = [range(rank, n, world) for rank in range(world)]
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1
    assert sorted(index for index in chain.from_iterable(shares)) == list(range(n))
