"""An export that cannot work is one error that names the way out."""

import shutil
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exported_classifiers import CLASSES, ROOT, SUFFIXES, assert_equal, expected_of, exported, opened
from torch import nn

from lgclip.classifier import export_formats
from lgclip.classifier.export import export_classifier
from lgclip.classifier.export_graph import portable_attention
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.base import Encoder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import SquareCrops
from lgclip.store.atomic import WriteError

pytest_plugins = ("exported_fixtures",)
pytestmark = pytest.mark.usefixtures("without_gpu")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("a.onnx", {"format": "tflite"}, "format=tflite: choose onnx, pt2, openvino, safetensors"),
        ("a.pt", {"format": "pt2"}, r"a\.pt: a file of format=pt2 ends in \.pt2"),
        ("folder.onnx", {"format": "onnx"}, r"folder\.onnx: it is a folder; name a file that ends in \.onnx"),
        ("a.pt2", {"format": "pt2", "int8": True}, "int8 with format=pt2: only format=onnx"),
        ("a.safetensors", {"format": "safetensors", "resize": True}, "holds weights and no graph"),
    ],
)
def test_wrong_options_are_one_error(
    name: str, options: dict[str, Any], message: str, classifier: ImageClassifier, tmp_path: Path
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(ValueError, match=message):
        export_classifier(classifier, tmp_path / name, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_resize_with_crops_is_one_error(classifier: ImageClassifier, tmp_path: Path) -> None:
    for scales in (SquareCrops((1.0, 0.5), (1, 1)), SquareCrops((0.5,), (1,))):
        with pytest.raises(ValueError, match=r"resize: this classifier compares . views"):
            exported(replace(classifier, scales=scales), tmp_path, "pt2", resize=True)


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [("onnx", "onnxscript", "export"), ("onnx", "onnx", "export"), ("openvino", "openvino", "openvino")],
)
def test_missing_package_is_named(
    format: str, package: str, extra: str, classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is missing: pip install 'lgclip\[{extra}\]'"):
        exported(classifier, tmp_path, format)


@pytest.mark.slow
def test_without_a_runtime_the_file_is_not_verified(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with monkeypatch.context() as patch:
        for name in ("onnxruntime", "onnxruntime.quantization"):
            patch.setitem(sys.modules, name, None)
        path, summary = exported(classifier, tmp_path, "onnx")
        with pytest.raises(ValueError, match=r"int8: package onnxruntime.* is missing"):
            exported(classifier, tmp_path, "onnx", int8=True)
    assert "was not verified: onnxruntime is not installed, pip install 'lgclip[export]'" in caplog.text
    assert str(summary).endswith("not verified")
    assert_equal(opened(path, "onnx")[0], expected_of(classifier, 20), classes=1)


@pytest.mark.parametrize("format", ["pt2", "safetensors"])
def test_other_scores_are_an_error(
    format: str, classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checks that a file with other scores replaces nothing."""
    path = tmp_path / f"exported{SUFFIXES[format]}"
    path.write_bytes(b"before")

    def other(module: nn.Module) -> Any:
        return lambda pixels: np.zeros((len(pixels), len(CLASSES)), np.float32)

    monkeypatch.setattr(export_formats, "graph_runner", other)
    message = r"exported\..* was not written: its scores differ .* by .*e.*, allowed are 1e-04"
    with pytest.raises(ValueError, match=message):
        exported(classifier, tmp_path, format)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_refusal_of_the_system_is_one_error(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="Not a directory; name another folder"):
        export_classifier(classifier, tmp_path / "file" / "below" / "a.pt2", format="pt2")

    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export_formats, "save_file", full)
    with pytest.raises(WriteError, match="No space left on device"):
        exported(classifier, tmp_path, "safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_too_many_weights_for_onnx_are_refused_before_the_trace(
    classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_formats, "_ONNX_LIMIT", 1000)
    with pytest.raises(ValueError, match=r"GB in fp32, and a file of ONNX holds less than 2.1 GB; use format=pt2"):
        exported(classifier, tmp_path, "onnx")


def test_tower_without_weights_of_its_own_is_one_error(classifier: ImageClassifier, tmp_path: Path) -> None:
    class Untouched(OpenClip):
        def tower(self) -> Any:
            return Encoder.tower(self)

    encoder = Untouched(classifier.encoder.model)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match="the vision tower cannot be taken from its encoder for an export: Untouched"):
        exported(replace(classifier, encoder=encoder), tmp_path, "pt2")


@pytest.mark.parametrize("enabled", [True, False])
def test_fused_attention_is_restored(enabled: bool) -> None:
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        seen = []
        with suppress(KeyError), portable_attention():
            seen.append(torch.backends.mha.get_fastpath_enabled())
            raise KeyError
        assert seen == [False]
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@pytest.mark.slow
def test_openvino_is_imported_without_its_telemetry(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from lgclip.classifier.export_formats import imported\n"
        "assert imported('openvino', 'test', 'openvino').Core()\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
    )
    home = tmp_path / "home"
    home.mkdir()
    # torchmetrics imports matplotlib, which keeps a list of fonts.
    environment = {"PYTHONPATH": str(ROOT), "HOME": str(home), "PATH": "", "MPLCONFIGDIR": str(tmp_path / "fonts")}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(home.iterdir()), "it writes an id of the user there"


@pytest.mark.slow
def test_pt2_runs_without_lgclip(classifier: ImageClassifier, tmp_path: Path) -> None:
    path, _ = exported(classifier, tmp_path, "pt2")
    expected = expected_of(classifier, 9)
    np.save(tmp_path / "pixels.npy", expected.pixels)
    code = (
        "import sys, numpy, torch\n"
        "module = torch.export.load(sys.argv[1]).module()\n"
        "scores, probs = module(torch.from_numpy(numpy.load('pixels.npy')))\n"
        "numpy.save('scores.npy', scores.numpy())\n"
        "assert not {'lgclip', 'open_clip', 'timm'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), expected.scores, atol=1e-4)
    shutil.rmtree(tmp_path)
