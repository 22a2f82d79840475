"""Provides a Hydra script that sweeps in tenths of a second with a fake torch that sets the number of GPUs."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]

APP = """
import json, os, signal, subprocess, sys, time
from pathlib import Path
import hydra
from hydra.core.hydra_config import HydraConfig

@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def app(cfg):
    folder, since = Path(HydraConfig.get().runtime.output_dir), time.monotonic()
    if cfg.does == "fail" or cfg.x < 0:
        raise ValueError("no such thing as x=" + str(cfg.x))
    if cfg.does == "vanish":
        os.kill(os.getpid(), signal.SIGKILL)
    if cfg.does == "stay":
        deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE)
        child.stdout.readline()
        (folder / "part").write_text(f"{os.getpid()} {child.pid}")
        (folder / "part").rename(folder / "pids")
        time.sleep(60)
    print("said by", cfg.x)
    time.sleep(cfg.seconds)
    kept = {name: os.environ.get(name) for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HYDRA_FULL_ERROR")}
    sweep = {name[13:].lower(): value for name, value in os.environ.items() if name.startswith("LGCLIP_SWEEP_")}
    seen = {"time": [since, time.monotonic()], "num": HydraConfig.get().job.num, **kept, **sweep}
    (folder / "seen.json").write_text(json.dumps(seen))
    return cfg.x

if __name__ == "__main__":
    app()
"""
CONFIG = """
x: 0
text: plain
does: work
seconds: 0
hydra:
  job_logging: {root: {level: WARNING}}
"""
TORCH = """
import os
class cuda:
    device_count = staticmethod(lambda: int(os.environ["GPUS_THERE"]))
"""


@dataclass(frozen=True)
class ToySweep:
    """Holds the script in a folder.

    Attributes:
        folder: Where the script, its configs and the other torch lie.
    """

    folder: Path

    @classmethod
    def written(cls, folder: Path) -> "ToySweep":
        """Writes the script and its dependencies."""
        shutil.copytree(ROOT / "conf" / "hydra", folder / "conf" / "hydra")
        (folder / "conf" / "app.yaml").write_text(CONFIG)
        (folder / "app.py").write_text(APP)
        (folder / "other" / "torch").mkdir(parents=True)
        (folder / "other" / "torch" / "__init__.py").write_text(TORCH)
        return cls(folder)

    def start(self, *arguments: str, gpus: int = 0, **environment: str) -> subprocess.Popen[str]:
        """Starts the script in its folder on a machine with so many GPUs."""
        path = os.pathsep.join([str(self.folder / "other"), str(ROOT)])
        inherited = {name: value for name, value in os.environ.items() if name not in ("OMP_NUM_THREADS", "PYTHONPATH")}
        return subprocess.Popen(
            [sys.executable, "app.py", *arguments],
            cwd=self.folder,
            env={**inherited, "PYTHONPATH": path, "GPUS_THERE": str(gpus), **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def sweep(self, *arguments: str, gpus: int = 0, status: int = 0, **environment: str) -> str:
        """Runs a sweep on slots into `OUT` and returns its output."""
        command = ("-m", "hydra/launcher=slots", "hydra.sweep.dir=OUT", *arguments)
        with self.start(*command, gpus=gpus, **environment) as process:
            output, _ = process.communicate(timeout=300)
        assert process.returncode == status, output
        return output

    def seen(self, number: int) -> dict[str, Any]:
        """Returns what a job recorded about its environment."""
        return json.loads((self.folder / "OUT" / str(number) / "seen.json").read_text())
