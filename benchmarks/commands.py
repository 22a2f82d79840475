"""Runs two commands that evaluate the same images with the same weights: evaluate.py and `clip_benchmark eval`."""

import json
import math
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
METRICS = {"top1": "acc1", "top5": "acc5", "mean_per_class": "mean_per_class_recall"}
"""Names of clip_benchmark's metrics by those of lgclip."""

TOLERANCE = 1e-6


@dataclass(frozen=True)
class Cost:
    """Holds the time and memory of a command.

    Attributes:
        seconds: Wall-clock time of the process.
        peak: Peak resident memory of the process, or of one of its worker processes, in bytes.
    """

    seconds: float
    peak: int


class Commands:
    """Evaluates zero-shot classification with text on a folder of images: one template, no mixed precision.

    Args:
        work: Output folder.
        model: Folder of the model.
        images: Folder of the images, with one folder per class.
        template: Sentence with `{}` for the class name.
        workers: Number of processes in which evaluate.py decodes images.
    """

    def __init__(self, work: Path, model: Path, images: Path, template: str, workers: int) -> None:
        self._work = work
        self._model = model
        self._images = images
        self._workers = workers
        self._template = template
        work.mkdir(parents=True, exist_ok=True)
        self._number = 0

    def run_lgclip(self, store: str, precision: str = "fp32") -> tuple[Cost, dict[str, float]]:
        """Runs evaluate.py and returns its cost and metrics.

        Args:
            store: Name of the store; a new name is an empty store.
            precision: Value of `precision=`.
        """
        self._number += 1
        run = self._work / f"run-{self._number}"
        cost = _run(
            ROOT, "evaluate.py", "method=clip_text", "dataset=folder", f"dataset.root={self._images}",
            "encoder=open_clip", f"encoder.model={self._model}", f"workers={self._workers}", "logger=none",
            f"paths.store={self._work / store}", f"hydra.run.dir={run}", f"precision={precision}", "rerun=true",
            "text.alternatives=[]",  # the peer evaluates one text side
        )  # fmt: skip
        metrics = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
        return cost, {name: metrics[name] for name in METRICS}

    def run_clip_benchmark(self) -> tuple[Cost, dict[str, float]]:
        """Runs clip_benchmark with its defaults, except mixed precision, and returns its cost and metrics."""
        names = [path.name.replace("_", " ") for path in sorted(self._images.iterdir())]
        dataset = "imagenet_sketch"  # read as an ImageFolder, whatever its contents are
        files = {}
        for kind, content in {"classname": names, "template": [self._template.replace("{}", "{c}")]}.items():
            files[kind] = self._work / f"{kind}s.json"
            files[kind].write_text(json.dumps({dataset: content}), encoding="utf-8")
        output = self._work / "clip_benchmark.json"
        output.unlink(missing_ok=True)
        cost = _run(
            self._work, "-m", "clip_benchmark.cli", "eval", "--dataset", dataset, "--dataset_root", str(self._images),
            "--task", "zeroshot_classification", "--model", f"local-dir:{self._model}", "--pretrained", "none",
            "--custom_classname_file", str(files["classname"]), "--custom_template_file", str(files["template"]),
            "--no_amp", "--output", str(output), "--quiet",
        )  # fmt: skip
        metrics: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))["metrics"]
        return cost, {name: metrics[peer_name] for name, peer_name in METRICS.items()}


def check_metrics(metrics: dict[str, float], reference: dict[str, float], tolerance: float = TOLERANCE) -> str:
    """Checks that metrics are equal, and returns them as text.

    Args:
        metrics: Metrics of lgclip.
        reference: Metrics of the peer, or of another run.
        tolerance: Largest allowed difference.

    Raises:
        SystemExit: If a metric differs.
    """
    for name in METRICS:
        if not math.isclose(metrics[name], reference[name], abs_tol=tolerance):
            raise SystemExit(f"{name} differs: {metrics[name]} and {reference[name]}")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in METRICS)


def _run(folder: Path, *command: str) -> Cost:
    """Runs a Python command and returns its cost.

    Raises:
        SystemExit: If it fails; the message has its output.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{output}\n{' '.join(command)} failed")
    return Cost(seconds, 1024 * usage.ru_maxrss)
