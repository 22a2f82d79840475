"""Tests `precision` on a CPU: bf16 where it multiplies in it, with weights that are cast once."""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import make_encoder
from timm.models import create_model as create
from timm.models import save_for_hf
from torch.nn.functional import cosine_similarity

from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.precision import arithmetic, cast_weights, decided, decided_for_training, forward
from lgclip.encoder.timm import Timm
from lgclip.runtime import cpu_features
from lgclip.runtime.cpu_features import has_bf16_units

CPU = torch.device("cpu")
LIMIT = "ONEDNN_MAX_CPU_ISA"


def processor(monkeypatch: pytest.MonkeyPatch, folder: Path, *flags: str) -> None:
    """Lets the system tell these flags of the processor."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (folder / "cpuinfo").write_text(f"processor : 0\nflags : fpu {' '.join(flags)}\n", encoding="utf-8")
    monkeypatch.setattr(cpu_features, "_CPU_INFO", folder / "cpuinfo")


@pytest.mark.parametrize(
    ("limit", "flags", "expected"),
    [
        (None, [], False),
        (None, ["avx512f", "avx512_vnni"], False),
        (None, ["amx_tile", "amx_bf16"], True),
        (None, ["avx512_bf16"], True),
        ("DEFAULT", ["avx512_bf16"], True),
        ("all", ["amx_bf16"], True),
        ("AVX512_CORE_BF16", ["amx_bf16"], True),
        ("avx512_core_amx", ["amx_bf16"], True),
        ("AVX512_CORE_VNNI", ["amx_bf16", "avx512_bf16"], False),
        ("AVX2", ["avx512_bf16"], False),
        ("AVX512_CORE_BF16", [], False),
    ],
)
def test_units_are_what_the_processor_says(
    limit: str | None, flags: list[str], expected: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    processor(monkeypatch, tmp_path, *flags)
    if limit is None:
        monkeypatch.delenv(LIMIT)
    else:
        monkeypatch.setenv(LIMIT, limit)
    assert has_bf16_units() is expected
    assert decided("auto") == decided("auto", CPU) == ("bf16" if expected else "fp32")
    assert decided("fp32") == "fp32"
    assert decided("bf16") == "bf16"


def test_trainings_stay_in_fp32(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    processor(monkeypatch, tmp_path, "amx_bf16")
    monkeypatch.delenv(LIMIT)
    assert decided("auto") == "bf16"
    assert decided_for_training("auto") == decided_for_training("auto", CPU) == "fp32"
    assert decided_for_training("bf16", CPU) == "bf16"


def test_silent_system_has_no_units(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LIMIT)
    monkeypatch.setattr(cpu_features, "_CPU_INFO", tmp_path / "none")
    assert not has_bf16_units()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/cpuinfo")
def test_system_and_torch_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(LIMIT)
    assert has_bf16_units() == (torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("encoders")
    folders = {"open_clip": make_encoder(root / "open_clip")}
    for name, arguments in {
        "vit_tiny_patch16_224": {"img_size": 32, "patch_size": 8, "depth": 2},
        "convnext_atto": {"depths": (1, 1, 1, 1)},
        "efficientnet_lite0": {},
        "test_resnet": {},
    }.items():
        torch.manual_seed(0)
        model: Any = create(name, num_classes=0, **arguments).eval()
        save_for_hf(model, str(root / name), safe_serialization=True, model_args=arguments)
        folders[name] = root / name
    return folders


FAMILIES = ["open_clip", "vit_tiny_patch16_224", "convnext_atto", "efficientnet_lite0", "test_resnet"]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_features_are_close_to_fp32(family: str, folders: dict[str, Path]) -> None:
    part = OpenClip if family == "open_clip" else Timm
    towers = {name: part(str(folders[family]), precision=name).load(CPU) for name in ("fp32", "bf16")}
    transform: Any = part(str(folders[family])).transform()
    from PIL import Image

    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (6, 40, 40, 3), generator=generator, dtype=torch.uint8)
    pixels = torch.stack([transform(Image.fromarray(image.numpy())) for image in noise])
    features = {name: tower.images(pixels) for name, tower in towers.items()}
    assert features["bf16"].dtype == torch.float32
    torch.testing.assert_close(features["bf16"].norm(dim=1), torch.ones(6), rtol=0, atol=1e-6)
    assert cosine_similarity(features["fp32"], features["bf16"]).min() >= 0.9995
    assert not torch.equal(features["fp32"], features["bf16"])
    if family == "open_clip":
        sentences = ["a photo of a cat", "a dog"]
        texts = [tower.texts(sentences) for tower in towers.values()]
        assert cosine_similarity(texts[0], texts[1]).min() >= 0.9995


def test_weights_are_cast_once() -> None:
    model = torch.nn.Linear(4, 3)
    tower = cast_weights(model, "bf16", CPU)
    assert tower is model
    assert {parameter.dtype for parameter in tower.parameters()} == {torch.bfloat16}
    assert not tower.training
    assert forward(tower, torch.ones(2, 4), "bf16", CPU).dtype == torch.bfloat16
    # Neither autocast, nor another type of a tokenizer's integers.
    assert not forward(lambda batch: torch.is_autocast_enabled("cpu"), torch.ones(1), "bf16", CPU)
    assert forward(lambda batch: batch.dtype, torch.ones(2, dtype=torch.long), "bf16", CPU) == torch.long


def test_a_gpu_keeps_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def autocast(kind: str, dtype: torch.dtype) -> nullcontext[None]:
        opened.append((kind, dtype))
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    arithmetic("bf16", torch.device("cuda", 0))
    arithmetic("fp32", torch.device("cuda", 0))
    assert opened == [("cuda", torch.bfloat16)]


ROWS = """
import json, torch
from lgclip.encoder.open_clip import OpenClip
from lgclip.diffuser.pipeline import Diffuser
from lgclip.runtime.cpu_features import has_bf16_units

towers = OpenClip("tiny:encoder").load(torch.device("cpu"))
generator = torch.Generator().manual_seed(0)
pixels = torch.randn(16, 3, 64, 64, generator=generator)
together = towers.images(pixels)
exact = OpenClip("tiny:encoder", precision="fp32").load(torch.device("cpu")).images(pixels)
inputs = OpenClip("tiny:encoder").inputs(), Diffuser("tiny:diffuser").inputs()["diffuser"]
parts = [torch.cat([towers.images(part) for part in pixels.split(size)]) for size in (1, 3, 7)]
print(json.dumps({
    "units": has_bf16_units(),
    "precision": [str(part["encoder"]["precision"] if "encoder" in part else part["precision"]) for part in inputs],
    "equal": [bool(torch.equal(part, together)) for part in parts],
    "cosine": float(torch.nn.functional.cosine_similarity(together, exact).min()),
    "sum": together.double().sum().item(),
}))
"""


def rows(threads: int) -> dict[str, Any]:
    """Encodes in a process that may use all of the CPU's instructions."""
    environment = {name: value for name, value in os.environ.items() if name != LIMIT}
    environment["OMP_NUM_THREADS"] = str(threads)
    process = subprocess.run([sys.executable, "-c", ROWS], capture_output=True, text=True, check=True, env=environment)
    return json.loads(process.stdout.splitlines()[-1])


@pytest.mark.slow
def test_rows_do_not_depend_on_their_batch() -> None:
    """Where the CPU multiplies in bf16, `auto` is that, and a feature is the same in any batch, with any threads."""
    first = rows(threads=1)
    if not first["units"]:
        assert first["precision"] == ["fp32", "fp32"]
        pytest.skip("this CPU has no bf16 units")
    assert first["precision"] == ["bf16", "bf16"]
    assert first["equal"] == [True, True, True]
    assert first["cosine"] >= 0.9995
    assert rows(threads=2)["sum"] == first["sum"]
