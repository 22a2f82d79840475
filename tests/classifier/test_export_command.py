"""`lgclip export` and `ImageClassifier.export` write a saved classifier in the format that its options name."""

import json
import re
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from factories import NAMES, FirstRun
from safetensors import safe_open

import lgclip
from lgclip.classifier.export import ExportSummary
from lgclip.classifier.export_formats import imported
from lgclip.classifier.places import EXPORT_SUFFIXES
from lgclip.cli.classifier import _short_name
from lgclip.cli.main import main
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("run_fixtures",)

FORMATS = {format: suffix for suffix, format in EXPORT_SUFFIXES.items()}


@pytest.fixture(scope="module")
def saved(first_run: FirstRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier_of(first_run.folder).save(tmp_path_factory.mktemp("saved") / "shapes.lgclip")


def metadata_of(path: Path) -> dict[str, Any]:
    return json.loads(onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["lgclip"])


def classes_of(path: Path) -> list[str]:
    """Returns the classes of an exported file, read by its format's library."""
    match path.suffix:
        case ".onnx":
            return metadata_of(path)["classes"]
        case ".pt2":
            extra = {"lgclip.json": ""}
            torch.export.load(path, extra_files=extra)
            text = extra["lgclip.json"]
        case ".xml":
            text = imported("openvino", "test", "openvino").Core().read_model(path).get_rt_info(["lgclip"]).astype(str)
        case _:
            with safe_open(path, "pt") as file:
                text = file.metadata()["lgclip"]
    return json.loads(text)["classes"]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_command_exports_each_format(
    format: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / f"exported{FORMATS[format]}"
    assert main(["export", str(saved), "-o", str(out), "--format", format]) == 0

    printed = capsys.readouterr()
    assert re.fullmatch(
        rf"{out}: 0\.\d MB, 3 classes, 0\.0\d M parameters; scores of 8 random images differ from the classifier's by "
        r"at most \d\.\de-\d\d, 100% of the predictions are equal\n",
        printed.out,
    )
    assert classes_of(out) == list(NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("format", ["safetensors", pytest.param("pt2", marks=pytest.mark.slow)])
def test_file_is_named_after_the_classifier(
    format: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(saved), "--format", format]) == 0
    name = f"shapes{FORMATS[format]}"
    assert capsys.readouterr().out.startswith(f"{name}: ")
    assert classes_of(tmp_path / name) == list(NAMES)  # each test has its folder as working folder


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("a/shapes.lgclip", "shapes"),
        ("a/shapes.zip", "shapes"),
        ("runs/v1.2", "v1.2"),
        ("runs/2026-11-29/", "2026-11-29"),
        ("hf://me/shapes-v1.2@main", "shapes-v1.2"),
    ],
)
def test_names_of_classifiers(place: str, name: str) -> None:
    assert _short_name(place) == name


def test_name_of_the_working_folder(tmp_path: Path) -> None:
    assert _short_name(".") == tmp_path.name


def test_existing_file_is_replaced(saved: Path, tmp_path: Path) -> None:
    out = tmp_path / "shapes.safetensors"
    out.write_bytes(b"before")
    assert main(["export", str(saved), "-o", str(out)]) == 0
    assert classes_of(out) == list(NAMES)
    classifier = lgclip.load(saved)
    classifier.rename(NAMES[0], "moon")
    classifier.save(tmp_path / "renamed.zip")
    assert main(["export", str(tmp_path / "renamed.zip"), "-o", str(out)]) == 0
    assert classes_of(out) == ["moon", *NAMES[1:]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "name the file by -o, or choose --format onnx, pt2, openvino or safetensors"),
        (
            ["-o", "shapes.tflite"],
            "shapes.tflite: name a file that ends with .onnx, .pt2, .xml, .safetensors, or choose",
        ),
        (["-o", "shapes.onnx", "--format", "pt2"], "shapes.onnx: a file of format=pt2 ends in .pt2"),
        (["-o", "folder.onnx"], "folder.onnx: it is a folder; name a file that ends in .onnx"),
        (["--format", "pt2", "--int8"], "int8 with format=pt2: only format=onnx can be quantized"),
        (["--format", "safetensors", "--resize"], "resize with format=safetensors: it holds weights and no graph"),
    ],
    ids=["none", "suffix", "other", "folder", "int8", "resize"],
)
def test_wrong_options_are_one_line(
    options: list[str], message: str, saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    assert main(["export", str(saved), *options]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: {message}")
    assert len(printed.err.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_unknown_format_lists_the_known_ones(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as e:
        main(["export", str(saved), "--format", "tflite"])
    assert e.value.code == 2
    message = capsys.readouterr().err
    assert "invalid choice: 'tflite'" in message
    assert all(format in message for format in FORMATS)


def test_no_classifier_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(tmp_path), "-o", "a.onnx"]) == 1
    assert "no classifier, it has no classifier.json" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_options_reach_the_file(saved: Path, tmp_path: Path) -> None:
    for option in ("int8", "resize"):
        assert main(["export", str(saved), "-o", f"{option}.onnx", f"--{option}"]) == 0
    quantized = metadata_of(tmp_path / "int8.onnx")
    resizing = metadata_of(tmp_path / "resize.onnx")
    assert (quantized["precision"], quantized["resize_in_graph"]) == ("int8", False)
    assert (resizing["precision"], resizing["resize_in_graph"]) == ("fp32", True)


@pytest.mark.parametrize("suffix", [".safetensors", pytest.param(".pt2", marks=pytest.mark.slow)])
def test_suffix_of_the_path_names_the_format(suffix: str, saved: Path, tmp_path: Path) -> None:
    summary = lgclip.load(saved).export(tmp_path / f"a{suffix}")
    assert isinstance(summary, ExportSummary)
    assert summary.format == EXPORT_SUFFIXES[suffix]
    assert summary.files == (tmp_path / f"a{suffix}",)
    assert summary.num_classes == 3
    assert classes_of(summary.files[0]) == list(NAMES)


def test_path_of_the_home_folder(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    summary = lgclip.load(saved).export("~/a.safetensors")
    assert summary.files == (tmp_path / "a.safetensors",)


def test_path_without_a_known_suffix_is_one_error(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.bin: name a file that ends with \.onnx, \.pt2, \.xml, \.safetensors"):
        lgclip.load(saved).export(tmp_path / "a.bin")


def test_changed_classes_are_exported(saved: Path, tmp_path: Path) -> None:
    classifier = lgclip.load(saved)
    classifier.remove(NAMES[1])
    summary = classifier.export(tmp_path / "a.safetensors")
    assert summary.num_classes == 2
    assert classes_of(summary.files[0]) == [NAMES[0], NAMES[2]]
