"""What a student is: its recipe, its network, and what is read back of it."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from student_worlds import Patches, drawn, patch, small, taught
from torchvision import models
from worlds import encoder_folder

from lgclip.encoder.backbone import Plan, untrained, with_head
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.student import StudentEncoder
from lgclip.encoder.timm import Timm
from lgclip.identity import inputs_of
from lgclip.lesson import Lesson
from lgclip.logits import from_unit
from lgclip.methods.student import rate
from lgclip.student_spec import Student

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"mix": 1.2}, r"student\.mix=1\.2: it must be in \[0, 1\]"),
        ({"epochs": 0}, r"student\.epochs=0: it must be a whole number, at least 1"),
        ({"epochs": True}, r"student\.epochs=True: it must be a whole number"),
        ({"lr": 0}, r"student\.lr=0: it must be above 0"),
        ({"ema": 1.0}, r"student\.ema=1\.0: .* or null"),
        ({"crop": (0.5, 1.5)}, r"student\.crop=\[0\.5, 1\.5\]"),
        ({"milestones": (0.5, 0.25)}, r"student\.milestones=.* rising"),
        ({"optimiser": "adam"}, r"student\.optimiser=adam: choose sgd, adamw"),
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
def test_a_value_that_cannot_be_is_refused_with_a_way_out(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Student(**values)


def test_a_key_holds_every_value_but_how_often_a_checkpoint_is_written() -> None:
    values = set(inputs_of(Student())) - {"part"}
    assert set(Student.__dataclass_fields__) - values == {"checkpoint_every"}


def test_the_release_s_rate_is_a_warm_up_and_a_cosine() -> None:
    student = Student(epochs=300, warmup_epochs=5, warmup_lr=1e-5, batch_size=512, lr=0.1)
    assert student.peak_lr == pytest.approx(0.2)
    steps, epoch = 300 * 4, 4
    found = [student.peak_lr * rate(student, step, steps, epoch) for step in range(steps)]
    warm = np.linspace(1e-5, 0.2, 20, endpoint=False)
    rest = [0.1 * (1 + math.cos(math.pi * at / (steps - 20))) for at in range(steps - 20)]
    np.testing.assert_allclose(found, [*warm, *rest], rtol=1e-9)


def test_the_small_set_s_rate_falls_to_a_fifth_at_50_100_and_150_of_200_epochs() -> None:
    student = Student(epochs=200, schedule="steps", milestones=(0.25, 0.5, 0.75), gamma=0.2, scale_lr=False)
    found = [0.1 * rate(student, epoch * 10, 2000, 10) for epoch in (0, 49, 50, 99, 100, 149, 150, 199)]
    np.testing.assert_allclose(found, [0.1, 0.1, 0.02, 0.02, 0.004, 0.004, 0.0008, 0.0008])


@pytest.mark.parametrize("backbone", ["test_resnet", "timm:test_vit", "torchvision:mobilenet_v3_small"])
def test_a_backbone_is_built_anew_from_its_plan(backbone: str) -> None:
    tower = untrained(backbone, 64)
    network = with_head(tower, 5, frozen=False).eval()
    again = with_head(tower._replace(body=Plan(**json.loads(json.dumps(vars(tower.plan)))).body()), 5, frozen=False)
    again.load_state_dict(network.state_dict())
    pixels = torch.rand(2, 3, 64, 64)
    assert network(pixels).shape == (2, 5)
    assert torch.equal(again.eval()(pixels), network(pixels))


def test_a_backbone_with_a_head_is_the_library_s_own_network() -> None:
    pixels = torch.rand(2, 3, 64, 64)
    for backbone, whole, head in (
        ("test_resnet", timm.create_model("test_resnet", num_classes=5), "fc"),
        ("torchvision:resnet18", models.resnet18(num_classes=5), "fc"),
    ):
        network = with_head(untrained(backbone, 64), 5, frozen=False)
        weights = {name: value for name, value in whole.state_dict().items() if not name.startswith(head)}
        inner = network.body.get_submodule("net") if backbone.startswith("torchvision") else network.body
        inner.load_state_dict(weights)
        network.head.load_state_dict(whole.get_submodule(head).state_dict())
        torch.testing.assert_close(network.eval()(pixels), whole.eval()(pixels))


def test_a_backbone_that_gives_no_one_vector_is_refused() -> None:
    with pytest.raises(ValueError, match="has no linear classifier"):
        untrained("torchvision:squeezenet1_1", 64)
    with pytest.raises(ValueError, match=r"cannot be built|takes no such image"):
        with_head(untrained("test_vit", 30), 5, frozen=False)


def test_the_tower_of_an_encoder_gives_the_features_of_that_encoder(tmp_path: Path) -> None:
    torch.manual_seed(0)
    file = tmp_path / "vit.safetensors"
    save_file(timm.create_model("test_vit", num_classes=7).state_dict(), file)
    for encoder in (OpenClip(str(encoder_folder(tmp_path / "clip"))), Timm("test_vit", checkpoint=str(file))):
        tower = encoder.tower()
        pixels = encoder.transform()(patch(0, 0))[None]
        assert pixels.shape[-1] == tower.image_size
        rebuilt = tower.plan.body()
        rebuilt.load_state_dict(tower.body.state_dict())
        for body in (tower.body, rebuilt):
            found = F.normalize(body.eval()(pixels), dim=-1)
            torch.testing.assert_close(found, encoder.load(CPU).images(pixels), rtol=1e-4, atol=1e-5)


def test_weights_of_a_file_are_what_a_student_begins_with(tmp_path: Path) -> None:
    whole = models.resnet18(num_classes=9)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    student = small(backbone="torchvision:resnet18", weights=str(tmp_path / "w.safetensors"))
    body = student.tower(None).body.get_submodule("net")
    assert torch.equal(body.get_parameter("conv1.weight"), whole.conv1.weight)
    other = small(backbone="torchvision:resnet34", weights=str(tmp_path / "w.safetensors"))
    with pytest.raises(ValueError, match="is of another network"):
        other.tower(None)
    assert "sha256:" in str(inputs_of(student)["weights"])


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("learned")
    return taught(Lesson(small(centre=0.8), Patches(), drawn(root / "drawn")), root / "store")


def test_a_student_is_read_back_and_says_what_its_network_says(learned: Path) -> None:
    encoder = StudentEncoder(str(learned))
    assert (encoder.class_names, encoder.has_text) == (("red", "green", "blue"), False)
    assert encoder.about["selected_on"] == "synthetic"
    data = Patches()
    pixels = torch.stack([encoder.transform()(data.image(at)) for at in range(len(data))])
    features = encoder.load(CPU).images(pixels)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(len(data)))
    with torch.inference_mode():
        logits = encoder.network().eval()(pixels)
    torch.testing.assert_close(from_unit(features), logits - logits.mean(dim=1, keepdim=True), rtol=1e-4, atol=1e-4)
    assert (from_unit(features).argmax(dim=1) == torch.tensor(data.labels)).float().mean() > 0.9


def test_the_features_of_a_student_have_a_key_of_its_weights(learned: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    copied.mkdir()
    for file in learned.iterdir():
        (copied / file.name).write_bytes(file.read_bytes())
    assert StudentEncoder(str(copied)).inputs() == StudentEncoder(str(learned)).inputs()
    other = StudentEncoder(str(learned)).network().state_dict()
    save_file({name: value + 1 for name, value in other.items()}, copied / "model.safetensors")
    assert StudentEncoder(str(copied)).inputs() != StudentEncoder(str(learned)).inputs()


def test_a_folder_that_is_no_student_is_refused(learned: Path, tmp_path: Path) -> None:
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
        with pytest.raises(ValueError, match="is damaged or of another student"):
            StudentEncoder(str(tmp_path)).load(CPU)
    (tmp_path / "student.json").write_text('{"class_names": []}')
    with pytest.raises(ValueError, match=r"its student\.json lacks network"):
        StudentEncoder(str(tmp_path))


@pytest.mark.parametrize("frozen", [True, False])
def test_a_probe_leaves_the_tower_of_the_encoder_as_it_is_and_a_fine_tune_does_not(
    frozen: bool, tmp_path: Path
) -> None:
    encoder = OpenClip(str(encoder_folder(tmp_path / "clip")))
    student = small(backbone="encoder", image_size=None, frozen=frozen, optimiser="adamw", lr=0.01, epochs=4, ema=0.5)
    folder = taught(Lesson(student, Patches(), drawn(tmp_path / "drawn"), encoder=encoder), tmp_path / "store")
    found, before = StudentEncoder(str(folder)).network().body.state_dict(), encoder.tower().body.state_dict()
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in before) == frozen
    about = StudentEncoder(str(folder)).about
    assert about["accuracy"] > 0.6
    assert str(tmp_path) not in json.dumps(about["network"]), "a student tells no path of this machine"


def test_a_backbone_of_the_encoder_needs_one() -> None:
    with pytest.raises(ValueError, match="this run has no encoder"):
        small(backbone="encoder", image_size=None).tower(None)
