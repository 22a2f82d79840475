import itertools
import json
import re
import signal
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf
from toy_sweep import ROOT, ToySweep

from hydra_plugins.lgclip_slots.launcher import SlotLauncher
from hydra_plugins.lgclip_slots.processes import assign_gpus, describe_status, last_line, visible_gpus
from hydra_plugins.lgclip_slots.return_value import ReturnValue
from lgclip.runtime.cores import usable_cores
from lgclip.runtime.sweep_job import GRACE


@pytest.fixture
def toy(tmp_path: Path) -> ToySweep:
    return ToySweep.written(tmp_path / "it's a, folder=1")


@pytest.mark.parametrize(
    ("wanted", "gpus", "slots"),
    [
        ("auto", ["0", "1"], ["0", "1"]),
        ("auto", [], [None]),
        (2, [], [None, None]),
        (1, ["4", "5"], ["4"]),
        (3, ["4", "5"], ["4", "5", "4"]),
        ([0, 3], ["0", "1", "2", "3"], ["0", "3"]),
        ([1, 1], ["0", "1"], ["1", "1"]),
        (["GPU-8f1"], ["GPU-8f0", "GPU-8f1"], ["GPU-8f1"]),
    ],
)
def test_slots_are_gpus_or_cpu_shares(wanted: object, gpus: list[str], slots: list[str | None]) -> None:
    assert assign_gpus(wanted, gpus) == slots  # pyright: ignore[reportArgumentType]


def test_missing_gpu_is_named() -> None:
    with pytest.raises(ValueError, match=r"GPU 7, x cannot be used, there are 0, 1"):
        assign_gpus([0, 7, "x"], ["0", "1"])
    with pytest.raises(ValueError, match="there is none: give a number of slots instead"):
        assign_gpus([0], [])


@pytest.mark.parametrize("slots", [0, -1, True, "two", "2", []])
def test_invalid_slots_are_rejected(slots: object) -> None:
    with pytest.raises(ValueError, match=r"hydra\.launcher\.slots=.*: give auto, a number from 1, or GPUs"):
        SlotLauncher(slots)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("device_count", "environment", "gpus"),
    [(2, None, ["0", "1"]), (2, "3, GPU-8f1", ["3", "GPU-8f1"]), (1, "3,-1,4", ["3"]), (0, "0,1", []), (0, "", [])],
)
def test_gpus_follow_cuda_visible_devices(
    toy: ToySweep, monkeypatch: pytest.MonkeyPatch, device_count: int, environment: str | None, gpus: list[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(toy.folder / "other"))
    monkeypatch.setenv("GPUS_THERE", str(device_count))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if environment is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", environment)
    visible_gpus.cache_clear()
    assert visible_gpus() == gpus
    visible_gpus.cache_clear()


@pytest.mark.slow
def test_jobs_use_one_gpu_at_a_time(toy: ToySweep) -> None:
    output = toy.sweep("x=0,1,2,3", "seconds=2", gpus=2)
    jobs = [toy.seen(number) for number in range(4)]
    assert {job["CUDA_VISIBLE_DEVICES"] for job in jobs} == {"0", "1"}
    for gpu in ("0", "1"):
        spans = sorted(job["time"] for job in jobs if job["CUDA_VISIBLE_DEVICES"] == gpu)
        assert all(ended <= begun for (_, ended), (begun, _) in itertools.pairwise(spans))
    assert min(job["time"][1] for job in jobs) > sorted(job["time"][0] for job in jobs)[1], "two at once"
    assert re.findall(r"#(\d) starts on GPU \d: x=(\d)\n", output) == [(str(i), str(i)) for i in range(4)]
    assert len(re.findall(r"#\d finished in \d+\.\d s: ", output)) == 4
    assert "said by" not in output
    assert [(toy.folder / "OUT" / str(i) / "output.log").read_text() for i in range(4)] == [
        f"said by {i}\n" for i in range(4)
    ]


def test_jobs_know_their_sweep_position(toy: ToySweep) -> None:
    toy.sweep("x=5,6", "hydra.launcher.slots=2", HYDRA_FULL_ERROR="1")
    for number, job in enumerate(map(toy.seen, range(2))):
        assert (job["num"], job["job"], job["dir"]) == (number, str(number), str(toy.folder / "OUT"))
        assert json.loads(job["overrides"]) == [f"x={5 + number}"]
        assert job["OMP_NUM_THREADS"] == str(max(1, usable_cores() // 2))
        assert (job["CUDA_VISIBLE_DEVICES"], job["HYDRA_FULL_ERROR"]) == (None, None)


@pytest.mark.slow
def test_jobs_have_the_basic_launchers_config(toy: ToySweep) -> None:
    (toy.folder / "more" / "extra").mkdir(parents=True)
    (toy.folder / "more" / "extra" / "one.yaml").write_text("added: 1\nname: ${hydra:job.num}\n")
    hard = r"""text="a 'b', c=d {x: $1}",'it\'s \\',"é [1,2]" """.strip()
    overrides = ("--config-dir", "more", "-m", "+extra=one", "x=1", hard)
    with toy.start(*overrides, "hydra.sweep.dir=BASIC") as process:
        assert process.wait() == 0
    with toy.start(*overrides, "hydra/launcher=slots", "hydra.sweep.dir=OUT") as process:
        output, _ = process.communicate()
        assert process.returncode == 0, output
    for number in range(3):
        slots_folder, basic_folder = (toy.folder / place / str(number) / ".hydra" for place in ("OUT", "BASIC"))
        for name in ("config.yaml", "overrides.yaml"):
            assert (slots_folder / name).read_text() == (basic_folder / name).read_text()
        assert OmegaConf.load(slots_folder / "hydra.yaml").hydra.job.num == number


@pytest.mark.slow
def test_failed_jobs_do_not_stop_others(toy: ToySweep) -> None:
    output = toy.sweep("does=work,fail,vanish", "x=1,2", "hydra.launcher.slots=2")
    assert toy.seen(0)["num"] == 0
    assert toy.seen(1)["num"] == 1
    assert "4 of 6 jobs failed: #2, #3, #4, #5" in output
    assert re.search(r"#2 failed after .* s \(exit status 1\): .*; .*OUT/2/output\.log", output)
    killed = json.loads((toy.folder / "OUT" / "4" / "failed.json").read_text())
    assert killed["overrides"] == ["does=vanish", "x=1"]
    assert killed["error"].startswith("killed by SIGKILL")
    assert killed.keys() == {"overrides", "error", "run_key", "trace"}
    assert "no such thing as x=2" in (toy.folder / "OUT" / "3" / "output.log").read_text()


def test_failed_jobs_keep_their_error(toy: ToySweep) -> None:
    error_path = toy.folder / "OUT" / "0" / "failed.json"
    error_path.parent.mkdir(parents=True)
    error_path.write_text('"its own"')
    toy.sweep("does=fail", "x=1")
    assert error_path.read_text() == '"its own"'


@pytest.mark.slow
def test_search_continues_past_failed_jobs(toy: ToySweep) -> None:
    overrides = ("hydra/sweeper=optuna", "hydra.sweeper.direction=maximize", "hydra.sweeper.sampler.seed=0")
    output = toy.sweep(*overrides, "hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", "x=interval(-1.2,0.8)")
    tried = [OmegaConf.load(toy.folder / "OUT" / str(number) / ".hydra" / "config.yaml").x for number in range(4)]
    assert min(tried) < 0 < max(tried)
    best = OmegaConf.load(toy.folder / "OUT" / "optimization_results.yaml")
    assert best.best_value == best.best_params.x == max(tried)
    assert output.count("Failed experiment: ") == sum(x < 0 for x in tried)


def test_unavailable_slots_stop_the_sweep_early(toy: ToySweep) -> None:
    output = toy.sweep("x=1,2", "hydra.launcher.slots=[0,5]", gpus=2, status=1)
    assert "GPU 5 cannot be used, there are 0, 1" in output
    assert not (toy.folder / "OUT" / "0").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_stopped_sweep_leaves_no_process(toy: ToySweep, number: signal.Signals) -> None:
    overrides = ("-m", "hydra/launcher=slots", "hydra.launcher.slots=2", "hydra.sweep.dir=OUT", "does=stay", "x=1,2,3")
    with toy.start(*overrides) as process:
        notes = [toy.folder / "OUT" / str(i) / "pids" for i in range(2)]
        until = time.monotonic() + 30
        while not all(note.exists() for note in notes) and time.monotonic() < until:
            time.sleep(0.05)
        pids = []
        for note in notes:
            for pid in note.read_text().split():
                pids.append(int(pid))
        assert len(pids) == 4
        process.send_signal(number)
        output, _ = process.communicate(timeout=GRACE + 5)
    assert process.returncode == 128 + number
    assert "stopped, with jobs #0, #1 unfinished" in output
    assert not (toy.folder / "OUT" / "2").exists()
    assert not [pid for pid in pids if alive(pid)]


def alive(pid: int) -> bool:
    """Returns whether a process is running; a zombie is not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_jobs_return_only_numbers(tmp_path: Path) -> None:
    done = JobReturn(status=JobStatus.COMPLETED)
    done.return_value = 0.25
    ReturnValue(str(tmp_path / "0.json")).on_job_end(OmegaConf.create(), done)
    assert json.loads((tmp_path / "0.json").read_text()) == 0.25
    done.return_value = "text"
    ReturnValue(str(tmp_path / "1.json")).on_job_end(OmegaConf.create(), done)
    failed = JobReturn(status=JobStatus.FAILED)
    failed.return_value = ValueError("no")
    ReturnValue(str(tmp_path / "2.json")).on_job_end(OmegaConf.create(), failed)
    assert [path.name for path in tmp_path.iterdir()] == ["0.json"]


def test_process_exit_is_described(tmp_path: Path) -> None:
    assert (describe_status(3), describe_status(-9), describe_status(-200)) == (
        "exit status 3", "killed by SIGKILL", "killed by signal 200"
    )  # fmt: skip
    (tmp_path / "log").write_text("first\nhalf\rwhole\n \n")
    assert last_line(tmp_path / "log") == "whole"
    (tmp_path / "log").write_text("")
    assert last_line(tmp_path / "log") == ""


def test_plugin_is_found_by_hydra() -> None:
    assert not (ROOT / "hydra_plugins" / "__init__.py").exists(), "it would hide other packages' plugins"
