"""Counts the files of lgclip that a default run enters: `python benchmarks/files_crossed.py`.

A file counts if one of its functions runs after the experiment is built, from the prompts to the report. Imports, the
building of parts, and property reads of dataclasses do not count. The run uses an empty store and one prompt per class.
"""

import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

IMAGES = 30
"""Number of synthetic images of the run, one for each class of `shapes`."""

PACKAGE = Path(__file__).parents[1] / "lgclip"


def main() -> None:
    """Runs evaluate.py in this process and prints the files, the most entered first."""
    entered: Counter[str] = Counter()

    def count(frame: FrameType, event: str, argument: Any) -> None:
        # The frame of a module itself is an import.
        if event == "call" and frame.f_code.co_name != "<module>" and frame.f_code.co_filename.startswith(str(PACKAGE)):
            entered[str(Path(frame.f_code.co_filename).relative_to(PACKAGE))] += 1

    from lgclip.cli.main import evaluate
    from lgclip.experiment import Experiment

    report = Experiment.report

    def profiled(self: Experiment) -> Any:
        self._setup  # noqa: B018  (builds the parts)
        threading.setprofile(count)
        sys.setprofile(count)
        try:
            return report(self)
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    Experiment.report = profiled
    with tempfile.TemporaryDirectory() as folder:
        sys.argv = ["evaluate", "prompts_per_class=1", f"paths.store={folder}/store", f"hydra.run.dir={folder}/run"]
        evaluate()
    for name, calls in entered.most_common():
        print(f"{calls:9,} {name}")
    per_image = sum(calls >= IMAGES for calls in entered.values())
    print(f"{len(entered)} files; {per_image} of them are entered at least once per image")


if __name__ == "__main__":
    main()
