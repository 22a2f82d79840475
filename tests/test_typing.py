"""The public names are typed for programs of users: pyright accepts right calls and reports wrong ones."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RIGHT = """
import lgclip
import numpy as np

classifier = lgclip.build({"red circle": "a red disc", "green star": ""}, overrides=["prompts_per_class=2"])
for prediction in classifier.classify(["photos", np.zeros((4, 4, 3), np.uint8)], top=2):
    label: str | None = prediction.label
classifier.add("a name")
classifier.save("x.zip", with_encoder=True)
loaded: lgclip.ImageClassifier = lgclip.load("x.zip")
accuracy: float = lgclip.evaluate(loaded, "labelled").metrics.top1
size: int = loaded.export("x.onnx").size
"""
WRONG = """
import lgclip

lgclip.build(5)
lgclip.load("x").classify("photos", topp=2)
lgclip.load("x").label
"""


@pytest.mark.slow
@pytest.mark.multiprocess
def test_pyright_checks_programs_of_users(tmp_path: Path) -> None:
    assert (ROOT / "lgclip" / "py.typed").is_file()
    (tmp_path / "right.py").write_text(RIGHT)
    (tmp_path / "wrong.py").write_text(WRONG)
    completed = subprocess.run(
        [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, str(tmp_path)],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    errors = [
        (Path(diagnostic["file"]).name, diagnostic["range"]["start"]["line"] + 1)
        for diagnostic in json.loads(completed.stdout)["generalDiagnostics"]
        if diagnostic["severity"] == "error"
    ]
    assert errors == [("wrong.py", 4), ("wrong.py", 5), ("wrong.py", 6)]
