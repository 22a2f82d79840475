"""Tests students: recipe, network, and saved files."""

import json
import math
from dataclasses import fields
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from encoder_families import ENCODERS
from factories import make_encoder
from safetensors.torch import save_file
from student_factories import ColorPatches, color_patch, small_student, synthetic_patches, train_student
from torchvision import models

from lgclip.encoder.backbone import Plan, untrained, with_head
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.methods.logits import from_unit
from lgclip.store.keys import key_inputs
from lgclip.training.student.config import Student
from lgclip.training.student.encoder import StudentEncoder
from lgclip.training.student.module import rate
from lgclip.training.student.task import StudentSetup
from lgclip.training.task import TrainingInputs

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"real_fraction": 1.2}, r"student\.real_fraction=1\.2: it must be in \[0, 1\]"),
        ({"epochs": 0}, r"student\.epochs=0: it must be an integer, at least 1"),
        ({"epochs": True}, r"student\.epochs=True: it must be an integer"),
        ({"lr": 0}, r"student\.lr=0: it must be above 0"),
        ({"ema": 1.0}, r"student\.ema=1\.0: .* or null"),
        ({"crop": (0.5, 1.5)}, r"student\.crop=\[0\.5, 1\.5\]"),
        ({"milestones": (0.5, 0.25)}, r"student\.milestones=.* increasing"),
        ({"optimizer": "adam"}, r"student\.optimizer=adam: choose sgd, adamw"),
        ({"select_on": "test"}, r"student\.select_on=test: choose synthetic, last, real"),
        ({"precision": "int8"}, r"student\.precision=int8: choose auto"),
        ({"validation": 0}, r"student\.validation=0: .*select_on=last"),
        ({"backbone": "resnet51"}, r"student\.backbone=resnet51: timm has no such network \(did you mean .*resnet50"),
        ({"backbone": "torchvision:resnet81"}, r"torchvision has no such network \(did you mean .*resnet18"),
        ({"backbone": "keras:resnet50"}, r"write timm:NAME, torchvision:NAME or encoder"),
        ({"frozen": True}, r"student\.frozen=true needs weights"),
        ({"weights": "gone.safetensors"}, r"student\.weights=gone\.safetensors: no such file"),
        ({"backbone": "torchvision:resnet18", "weights": "pretrained"}, r"those of torchvision are pickles"),
        ({"backbone": "encoder", "image_size": 64}, r"leave student\.weights and student\.image_size null"),
    ],
)
def test_invalid_value_is_rejected(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Student(**values)


def test_key_covers_every_relevant_value() -> None:
    values = set(key_inputs(Student())) - {"part"}
    assert {field.name for field in fields(Student)} - values == {"checkpoint_every"}


def test_learning_rate_matches_the_release() -> None:
    student = Student(epochs=300, warmup_epochs=5, warmup_lr=1e-5, batch_size=512, lr=0.1)
    assert student.peak_lr == pytest.approx(0.2)
    steps = 300 * 4
    epoch = 4
    rates = [student.peak_lr * rate(student, step, steps, epoch) for step in range(steps)]
    warm = np.linspace(1e-5, 0.2, 20, endpoint=False)
    rest = [0.1 * (1 + math.cos(math.pi * index / (steps - 20))) for index in range(steps - 20)]
    np.testing.assert_allclose(rates, [*warm, *rest], rtol=1e-9)


def test_step_schedule_matches_the_small_dataset_recipe() -> None:
    student = Student(epochs=200, schedule="steps", milestones=(0.25, 0.5, 0.75), gamma=0.2, scale_lr=False)
    rates = [0.1 * rate(student, epoch * 10, 2000, 10) for epoch in (0, 49, 50, 99, 100, 149, 150, 199)]
    np.testing.assert_allclose(rates, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


@pytest.mark.parametrize("backbone", ["test_resnet", "timm:test_vit", "torchvision:mobilenet_v3_small"])
def test_backbone_is_rebuilt_from_its_plan(backbone: str) -> None:
    tower = untrained(backbone, 64)
    network = with_head(tower, 5, frozen=False).eval()
    again = with_head(tower._replace(body=Plan(**json.loads(json.dumps(vars(tower.plan)))).body()), 5, frozen=False)
    again.load_state_dict(network.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    assert network(pixels).shape == (2, 5)
    assert torch.equal(again.eval()(pixels), network(pixels))


def test_backbone_matches_the_librarys_network() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    for backbone, complete_network, head in (
        ("test_resnet", timm.create_model("test_resnet", num_classes=5), "fc"),
        ("torchvision:resnet18", models.resnet18(num_classes=5), "fc"),
    ):
        network = with_head(untrained(backbone, 64), 5, frozen=False)
        weights = {name: value for name, value in complete_network.state_dict().items() if not name.startswith(head)}
        inner = network.body.get_submodule("net") if backbone.startswith("torchvision") else network.body
        inner.load_state_dict(weights)
        network.head.load_state_dict(complete_network.get_submodule(head).state_dict())
        torch.testing.assert_close(network.eval()(pixels), complete_network.eval()(pixels))


def test_backbone_without_one_vector_is_rejected() -> None:
    with pytest.raises(ValueError, match="has no linear classifier"):
        untrained("torchvision:squeezenet1_1", 64)
    with pytest.raises(ValueError, match=r"cannot be built|does not accept the image"):
        with_head(untrained("test_vit", 30), 5, frozen=False)


def test_encoder_tower_gives_its_features(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), file)
    for encoder in (OpenClip(str(make_encoder(tmp_path / "clip"))), Timm("test_vit", checkpoint=str(file))):
        tower = encoder.tower()
        pixels = encoder.transform()(color_patch(0, 0))[None]
        assert pixels.shape[-1] == tower.image_size
        rebuilt = tower.plan.body()
        rebuilt.load_state_dict(tower.body.state_dict())
        for body in (tower.body, rebuilt):
            features = F.normalize(body.eval()(pixels), dim=-1)
            torch.testing.assert_close(features, encoder.load(CPU).images(pixels), rtol=1e-4, atol=1e-5)


NO_INPUTS: Any = Mock(spec=TrainingInputs, encoder=None)
"""What a check of the weights takes of a run."""


def test_initial_weights_are_loaded_from_a_file(tmp_path: Path) -> None:
    network = models.resnet18(num_classes=9)
    save_file(network.state_dict(), tmp_path / "w.safetensors")
    student = small_student(backbone="torchvision:resnet18", weights=str(tmp_path / "w.safetensors"))
    body = student.tower(None).body.get_submodule("net")
    assert torch.equal(body.get_parameter("conv1.weight"), network.conv1.weight)
    other_backbone = small_student(backbone="torchvision:resnet34", weights=str(tmp_path / "w.safetensors"))
    student.check(NO_INPUTS)
    with pytest.raises(ValueError, match=r"is of another network: \d+ of the model's \d+ weights are missing"):
        other_backbone.check(NO_INPUTS)
    with pytest.raises(ValueError, match="is of another network"):
        other_backbone.tower(None)
    assert "sha256:" in str(key_inputs(student)["weights"])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learned")
    return train_student(
        StudentSetup(small_student(center_crop=0.8), ColorPatches(), synthetic_patches(root / "drawn")), root / "store"
    )


def test_saved_student_gives_the_same_logits(learned: Path) -> None:
    encoder = StudentEncoder(str(learned))
    assert (encoder.class_names, encoder.has_text) == (("red", "green", "blue"), False)
    assert encoder.about["selected_on"] == "synthetic"
    data = ColorPatches()
    pixels = torch.stack([encoder.transform()(data.image(index)) for index in range(len(data))])
    features = encoder.load(CPU).images(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(data)))
    with torch.inference_mode():
        logits = encoder.network().eval()(pixels)
    torch.testing.assert_close(from_unit(features), logits - logits.mean(dim=1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert (from_unit(features).argmax(dim=1) == torch.tensor(data.labels)).float().mean() > 0.9


def test_student_features_are_keyed_by_weights(learned: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in learned.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert StudentEncoder(str(copied)).inputs() == StudentEncoder(str(learned)).inputs()
    other_state = StudentEncoder(str(learned)).network().state_dict()
    save_file({name: value + 1 for name, value in other_state.items()}, copied / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged: it is not what its student\.json describes"):
        StudentEncoder(str(copied)).network()
    assert StudentEncoder(str(copied)).inputs() != StudentEncoder(str(learned)).inputs()


def test_invalid_student_folder_is_rejected(learned: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no student\.json in it"):
        StudentEncoder(str(tmp_path))
    (tmp_path / "student.json").write_text("{")
    with pytest.raises(ValueError, match="is damaged"):
        StudentEncoder(str(tmp_path))
    (tmp_path / "student.json").write_text((learned / "student.json").read_text())
    with pytest.raises(ValueError, match=r"it has no model\.safetensors"):
        StudentEncoder(str(tmp_path))
    for content in (b"", (learned / "model.safetensors").read_bytes()[:1000]):
        (tmp_path / "model.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="is damaged: it is not what its student"):
            StudentEncoder(str(tmp_path)).load(CPU)
    (tmp_path / "student.json").write_text('{"class_names": []}')
    with pytest.raises(ValueError, match=r"its student\.json lacks network"):
        StudentEncoder(str(tmp_path))


@pytest.mark.parametrize("frozen", [True, False])
def test_linear_probe_freezes_the_tower(frozen: bool, tmp_path: Path) -> None:
    encoder = OpenClip(str(make_encoder(tmp_path / "clip")))
    student = small_student(
        backbone="encoder", image_size=None, frozen=frozen, optimizer="adamw", lr=0.01, epochs=4, ema=0.5
    )
    folder = train_student(
        StudentSetup(student, ColorPatches(), synthetic_patches(tmp_path / "drawn"), encoder=encoder),
        tmp_path / "store",
    )
    tower_state = StudentEncoder(str(folder)).network().body.state_dict()
    before = encoder.tower().body.state_dict()
    assert tower_state.keys() == before.keys()
    assert all(torch.equal(tower_state[name], before[name]) for name in before) == frozen
    about = StudentEncoder(str(folder)).about
    assert about["accuracy"] > 0.6
    assert str(tmp_path) not in json.dumps(about["network"]), "a student tells no path of this machine"


@pytest.mark.parametrize("values", [{"validation": 0.0, "select_on": "last"}, {"validation": 0.2}], ids=["all", "some"])
def test_linear_probe_keeps_the_statistics_of_batch_norms(values: dict[str, Any], tmp_path: Path) -> None:
    """The first epoch counts too, in which nothing has set the mode of the tower yet."""
    encoder = ENCODERS["efficientnet"](tmp_path / "model")
    student = small_student(backbone="encoder", image_size=None, frozen=True, epochs=1, **values)
    folder = train_student(
        StudentSetup(student, ColorPatches(), synthetic_patches(tmp_path / "drawn"), encoder=encoder),
        tmp_path / "store",
    )
    after = StudentEncoder(str(folder)).network().body.state_dict()
    before = encoder.tower().body.state_dict()
    assert any(name.endswith("running_mean") for name in before)
    assert [name for name in before if not torch.equal(after[name], before[name])] == []


def test_encoder_backbone_requires_an_encoder() -> None:
    with pytest.raises(ValueError, match="this run has no encoder"):
        small_student(backbone="encoder", image_size=None).tower(None)
