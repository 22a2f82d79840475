"""Tests that the examples do what the pages say: extensions against NumPy alone, an exported file without lgclip."""

import csv
import json
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import nbformat
import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

import lgclip
from lgclip.classifier.export import export_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo
from lgclip.datasets.embedded import Shapes
from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.methods.calibration import Choice, FittedChoice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import Mean
from lgclip.methods.selection import First

ROOT = Path(__file__).parents[1]
CLASSES = 6
IMAGES_PER_CLASS = 5


class Run(NamedTuple):
    """Holds a finished run of an example."""

    result: dict[str, Any]
    predictions: list[int]
    labels: list[int]
    confidences: list[float]


class Features(NamedTuple):
    """Holds unit features of the test images (n, d) and of the class images (c, k, d)."""

    real: np.ndarray
    synthetic: np.ndarray


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates noisy test images and clean class images, in one folder per class each."""
    root = tmp_path_factory.mktemp("images")
    for folder, data in (("real", Shapes("test", style="noisy")), ("synthetic", Shapes("train"))):
        for label in range(CLASSES):
            place = root / folder / data.class_names[label]
            place.mkdir(parents=True)
            for repeat in range(IMAGES_PER_CLASS):
                data.image(data.labels.index(label) + repeat).save(place / f"{repeat}.png")
    return root


def encoded(images: Path, encoder: Encoder) -> Features:
    """Returns features of all images, one pass per folder."""
    towers = encoder.load(torch.device("cpu"))
    arrays = []
    for folder in ("real", "synthetic"):
        files = sorted((images / folder).rglob("*.png"))
        pixels = torch.stack([encoder.transform()(Image.open(file).convert("RGB")) for file in files])
        with torch.inference_mode():
            arrays.append(towers.images(pixels).double().numpy())
    real, synthetic = arrays
    return Features(real, synthetic.reshape(CLASSES, IMAGES_PER_CLASS, -1))


@pytest.fixture(scope="session")
def features(images: Path) -> Features:
    """Returns features by the default encoder."""
    return encoded(images, OpenClip("tiny:encoder", pretrained=None))


def command(script: str, example: str, images: Path, folder: Path, *overrides: str) -> str:
    """Runs a script with an example as its page shows it; returns its output."""
    code = ROOT / "examples" / example
    module = next(code.glob("*.py")).stem
    completed = subprocess.run(
        [
            sys.executable, script, "--config-dir", str(code / "conf"), "diffuser=folder",
            f"diffuser.root={images / 'synthetic'}", f"prompts_per_class={IMAGES_PER_CLASS}",
            f"paths.store={folder / 'store'}", f"hydra.run.dir={folder / script}", "logger=none",
            "trainer.accelerator=cpu", *overrides,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(code), "LGCLIP_ALLOW": module},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-3000:]
    return completed.stdout


def evaluate(example: str, images: Path, folder: Path, *overrides: str) -> Run:
    """Evaluates with an example."""
    command("evaluate.py", example, images, folder, *overrides)
    run = folder / "evaluate.py"
    with (run / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return Run(
        result=json.loads((run / "result.json").read_text(encoding="utf-8")),
        predictions=[int(row["prediction"]) for row in rows],
        labels=[int(row["label"]) for row in rows],
        confidences=[float(row["confidence"]) for row in rows],
    )


def folder_of(images: Path) -> list[str]:
    return ["dataset=folder", f"dataset.root={images / 'real'}"]


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def assert_scores(run: Run, scores: np.ndarray) -> None:
    """Compares predictions and confidences with those of scores computed by NumPy."""
    shares = np.exp((scores - scores.max(axis=1, keepdims=True)) / run.result["confidence"]["temperature"])
    assert run.predictions == scores.argmax(axis=1).tolist()
    assert run.confidences == pytest.approx((shares.max(axis=1) / shares.sum(axis=1)).tolist(), abs=2e-4)
    correct = np.mean(np.array(run.predictions) == np.array(run.labels))
    assert run.result["metrics"]["top1"] == pytest.approx(correct)
    assert correct > 1 / CLASSES


@pytest.mark.slow
def test_csv_dataset_example(images: Path, features: Features, tmp_path: Path) -> None:
    files = sorted((images / "real").rglob("*.png"), reverse=True)  # the table has another order than the folders
    table = images / "real" / "birds.csv"
    with table.open("w", newline="", encoding="utf-8") as file:
        rows = [(path.relative_to(images / "real").as_posix(), path.parent.name) for path in files]
        csv.writer(file).writerows([("file", "label"), *rows])
    names = sorted({path.parent.name for path in files})
    run = evaluate("dataset", images, tmp_path, "dataset=csv_images", f"dataset.table={table}")
    assert run.result["dataset"]["name"] == "birds"
    assert run.result["dataset"]["names"] == "csv"
    assert run.labels == [names.index(path.parent.name) for path in files]
    # The folders are read in the order of their names, the table in the reverse order.
    assert_scores(run, features.real[::-1] @ unit(features.synthetic.mean(axis=1)).T)


@pytest.mark.slow
def test_color_histogram_encoder_example(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = evaluate("encoder", images, tmp_path, *folder_of(images), "encoder=color_histogram", "encoder.bins=3")
    monkeypatch.syspath_prepend(ROOT / "examples" / "encoder")
    features = encoded(images, import_module("color_histogram").ColorHistogram(bins=3))
    first = sorted((images / "real").rglob("*.png"))[0]
    pixels = np.asarray(Image.open(first).resize((32, 32))).reshape(-1, 3) / 255
    counts, _ = np.histogramdd(pixels, bins=3, range=[(0, 1)] * 3)
    assert features.real[0] == pytest.approx(np.sqrt(counts.ravel() / 32**2), abs=1e-6)
    assert run.result["baseline"] is None, "there is no text tower"
    assert run.result["encoder"]["bins"] == 3
    assert_scores(run, features.real @ unit(features.synthetic.mean(axis=1)).T)


@pytest.mark.slow
def test_median_scoring_example(images: Path, features: Features, tmp_path: Path) -> None:
    run = evaluate("scoring_rule", images, tmp_path, *folder_of(images), "prototype=median")
    assert_scores(run, features.real @ unit(np.median(features.synthetic, axis=1)).T)


@pytest.mark.slow
def test_ridge_method_example(images: Path, features: Features, tmp_path: Path) -> None:
    ridge = ["method=ridge", "method.trained.penalty=0.5"]
    printed = command("train.py", "method", images, tmp_path, *folder_of(images), *ridge)
    folder = next((tmp_path / "store" / "ridge").iterdir())
    assert printed.strip().endswith(f"{folder}: ridge regression")
    run = evaluate("method", images, tmp_path, *folder_of(images), *ridge)
    assert [path.name for path in (tmp_path / "store" / "ridge").iterdir()] == [folder.name], "trained once"
    x = features.synthetic.reshape(CLASSES * IMAGES_PER_CLASS, -1)
    targets = np.eye(CLASSES).repeat(IMAGES_PER_CLASS, axis=0)
    weights = np.linalg.solve(x.T @ x + 0.5 * np.eye(x.shape[1]), x.T @ targets)
    assert_scores(run, features.real @ weights)
    assert list(run.result["baselines"]) == ["lgclip", "clip_text", "clip_text_waffle"]
    assert run.result["predictor"]["ridge"] == {"learned": "ridge regression"}


@pytest.mark.slow
def test_onnx_only_example(images: Path, features: Features, tmp_path: Path) -> None:
    """Classifies in a process that has neither torch nor lgclip, and gives the classifier's labels."""
    labels = torch.arange(CLASSES).repeat_interleave(IMAGES_PER_CLASS)
    support = SupportSet(torch.from_numpy(features.synthetic).float().flatten(0, 1), labels, CLASSES)
    names = tuple(sorted(path.name for path in (images / "synthetic").iterdir()))
    choice = Choice(Mean(), First(), 0.0)
    classifier = ImageClassifier(
        tuple(map(ClassInfo, names)),
        OpenClip("tiny:encoder", precision="fp32"),
        SquareCrops(),
        choice,
        calibration=None,
        support=support,
        text=None,
        fitted=FittedChoice(choice, None, Temperature(0.05, "default")),
    )
    export_classifier(classifier, tmp_path / "shapes.onnx", format="onnx")
    files = sorted((images / "real").rglob("*.png"))
    # A photograph of another shape, turned by its EXIF orientation.
    turned = Image.new("RGB", (90, 130), "white")
    turned.paste(Image.open(files[0]).convert("RGB").resize((80, 80)), (5, 40))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    files.append(tmp_path / "turned.jpg")
    script = ROOT / "examples" / "onnx_only" / "classify.py"
    code = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "assert not {'torch', 'lgclip', 'timm', 'open_clip'} & sys.modules.keys()\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(script), str(tmp_path / "shapes.onnx"), *map(str, files)],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-3000:]
    rows = [line.split("\t") for line in completed.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(file) for file in files]
    assert [row[1] for row in rows] == classifier.predict(files).tolist()
    assert [float(row[2]) for row in rows] == pytest.approx(classifier.predict_proba(files).max(axis=1), abs=1e-3)
    assert len({row[1] for row in rows}) > 1


NOTEBOOK = ROOT / "examples" / "classifier.ipynb"


def printed(notebook: Any) -> str:
    """Returns what the cells of a notebook have printed."""
    texts: list[str] = []
    for cell in notebook.cells:
        texts += [output.text for output in cell.get("outputs", []) if output.get("name") == "stdout"]
    return "".join(texts)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_notebook_runs(tmp_path: Path) -> None:
    # In a process of its own, since the client leaves sockets open. The kernel listens at a socket of the file system:
    # a port is open to the machine's other users.
    code = (
        "import sys, nbformat\n"
        "from jupyter_client.manager import AsyncKernelManager\n"
        "from nbclient import NotebookClient\n"
        "notebook = nbformat.read(sys.argv[1], as_version=4)\n"
        "kernel = AsyncKernelManager(kernel_name='python3', transport='ipc')\n"
        "NotebookClient(notebook, km=kernel, timeout=600).execute()\n"
        "nbformat.write(notebook, 'executed.ipynb')\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code, str(NOTEBOOK)], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-3000:]
    notebook: Any = nbformat.read(tmp_path / "executed.ipynb", as_version=4)

    text = printed(notebook)
    accuracy = re.search(r"top-1 ([\d.]+)% \(95% interval", text)
    assert accuracy, text
    assert float(accuracy[1]) >= 90
    demo = tmp_path / "classifier_demo"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"classifier_demo", "home"}
    names = ["dotted blue flower", "plain orange star", "plain red circle", "striped green triangle"]
    assert sorted(lgclip.load(demo / "shapes.zip").class_names) == names
    assert len(lgclip.load(demo / "shapes.lgclip").class_names) == 3, "it was saved before the fourth was added"
    session = onnxruntime.InferenceSession(demo / "shapes.onnx")
    assert sorted(json.loads(session.get_modelmeta().custom_metadata_map["lgclip"])["classes"]) == names
    stored: Any = nbformat.read(NOTEBOOK, as_version=4)
    kinds = [[output.output_type for output in cell.get("outputs", [])] for cell in stored.cells]
    shown = [
        [output.output_type for output in cell.get("outputs", []) if output.get("name") != "stderr"]
        for cell in notebook.cells
    ]
    assert kinds == shown, "the stored outputs are those of these cells"


def test_notebook_is_small_and_names_no_place() -> None:
    notebook: Any = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run from top to bottom"
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.get("name", "value") for output in outputs} == {"stdout", "value"}, "no progress and no error"
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    content = NOTEBOOK.read_text(encoding="utf-8")
    assert len(content) < 50_000
    for place in ("/home/", "/root/", "/tmp/", "C:\\", str(Path.home())):
        assert place not in content
