"""The two commands that evaluate the same images with the same weights: evaluate.py, and `clip_benchmark eval`."""

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
FIGURES = {"top1": "acc1", "top5": "acc5", "mean_per_class": "mean_per_class_recall"}
"""What our result calls a figure, and what theirs does."""

EQUAL = 1e-6


@dataclass(frozen=True)
class Spent:
    """What a command took.

    Attributes:
        seconds: From its start to its end.
        peak: Most resident memory of it, or of one of its worker processes, in bytes.
    """

    seconds: float
    peak: int


class Commands:
    """Text zero-shot on a folder of images, one template, no mixed precision.

    Args:
        work: Where to write.
        model: The model's folder.
        synthetic_images: The images, one folder per class.
        template: A sentence with `{}` for the class name.
        workers: Processes that decode, for ours.
    """

    def __init__(self, work: Path, model: Path, synthetic_images: Path, template: str, workers: int) -> None:
        self._work, self._model, self._pictures, self._workers = work, model, synthetic_images, workers
        self._template = template
        work.mkdir(parents=True, exist_ok=True)
        self._number = 0

    def ours(self, store: str, precision: str = "fp32") -> tuple[Spent, dict[str, float]]:
        """What evaluate.py spends and finds.

        Args:
            store: Name of its store; one that is new holds nothing.
            precision: As in `precision=` of a run.
        """
        self._number += 1
        run = self._work / f"run-{self._number}"
        spent = _run(
            ROOT, "evaluate.py", "method=clip_text", "dataset=folder", f"dataset.root={self._pictures}",
            "encoder=open_clip", f"encoder.model={self._model}", f"workers={self._workers}", "logger=none",
            f"paths.store={self._work / store}", f"hydra.run.dir={run}", f"precision={precision}", "rerun=true",
            "text.alternatives=[]",  # the peer evaluates one text side
        )  # fmt: skip
        metrics = json.loads((run / "result.json").read_text(encoding="utf-8"))["metrics"]
        return spent, {name: metrics[name] for name in FIGURES}

    def theirs(self) -> tuple[Spent, dict[str, float]]:
        """What clip_benchmark spends and finds, with its defaults but for mixed precision."""
        names = [path.name.replace("_", " ") for path in sorted(self._pictures.iterdir())]
        data = "imagenet_sketch"  # one of those that it reads as an ImageFolder of whatever lies there
        files = {}
        for what, content in {"classname": names, "template": [self._template.replace("{}", "{c}")]}.items():
            files[what] = self._work / f"{what}s.json"
            files[what].write_text(json.dumps({data: content}), encoding="utf-8")
        found = self._work / "theirs.json"
        found.unlink(missing_ok=True)
        spent = _run(
            self._work, "-m", "clip_benchmark.cli", "eval", "--dataset", data, "--dataset_root", str(self._pictures),
            "--task", "zeroshot_classification", "--model", f"local-dir:{self._model}", "--pretrained", "none",
            "--custom_classname_file", str(files["classname"]), "--custom_template_file", str(files["template"]),
            "--no_amp", "--output", str(found), "--quiet",
        )  # fmt: skip
        metrics: dict[str, Any] = json.loads(found.read_text(encoding="utf-8"))["metrics"]
        return spent, {ours: metrics[theirs] for ours, theirs in FIGURES.items()}


def check(ours: dict[str, float], theirs: dict[str, float], tolerance: float = EQUAL) -> str:
    """What was compared, in words.

    Args:
        ours: Our figures.
        theirs: Those of the peer.
        tolerance: How far apart two figures may be.

    Raises:
        SystemExit: If a figure differs.
    """
    for name in FIGURES:
        if not math.isclose(ours[name], theirs[name], abs_tol=tolerance):
            raise SystemExit(f"{name}: ours says {ours[name]}, theirs {theirs[name]}")
    return ", ".join(f"{name} {ours[name]:.4f}" for name in FIGURES)


def _run(folder: Path, *command: str) -> Spent:
    """Runs a command of Python to its end.

    Raises:
        SystemExit: If it fails; its own words come first.
    """
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, *command], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        said = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{said}\n{' '.join(command)} failed")
    return Spent(seconds, 1024 * usage.ru_maxrss)
