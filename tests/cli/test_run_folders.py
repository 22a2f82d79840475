"""Two runs that start within the same second have two folders."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from factories import Sandbox

from lgclip.cli.run_folders import claim_folder

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]


def test_claims_are_exclusive(tmp_path: Path) -> None:
    requested = tmp_path / "2026-01-01" / "12-00-00"

    with ThreadPoolExecutor(8) as threads:
        folders = set(threads.map(lambda _: claim_folder(requested, {}), range(20)))

    assert folders == {requested, *(requested.with_name(f"12-00-00_{number}") for number in range(2, 21))}


@pytest.mark.parametrize(
    ("environment", "name"),
    [
        ({"WORLD_SIZE": "2", "RANK": "1", "MASTER_PORT": "29500"}, "12-00-00-29500"),
        ({"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "none", "MASTER_PORT": "29501"}, "12-00-00-29501"),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}, "12-00-00-77"),
    ],
)
def test_processes_of_a_job_share_a_folder(environment: dict[str, str], name: str, tmp_path: Path) -> None:
    folders = {claim_folder(tmp_path / "12-00-00", environment) for _ in range(4)}

    assert folders == {tmp_path / name}


@pytest.mark.slow
def test_runs_of_one_second_do_not_overwrite_each_other(sandbox: Sandbox, tmp_path: Path) -> None:
    """With the clock stopped, as two runs of a script that start together see it; their images are stored."""
    code = (
        "import runpy, sys; from datetime import datetime; import hydra.core.utils as utils;"
        "utils.datetime = type('Clock', (), {'now': staticmethod(lambda: datetime(2026, 1, 1))});"
        f"sys.argv[0] = {str(ROOT / 'evaluate.py')!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = [sys.executable, "-c", code, *sandbox.evaluate_overrides(), "rerun=true"]
    runs = [subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL) for _ in range(2)]

    assert [run.wait() for run in runs] == [0, 0]

    assert len(list(tmp_path.glob("outputs/2026-01-01/*/result.json"))) == 2
