"""Tests vision towers of timm: small random ones, and timm's own test models where a name is needed."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from factories import (
    HUB_COMMIT,
    Sandbox,
    evaluate_run,
    make_diffuser,
    make_encoder,
    make_image_folder,
    put_in_hub_cache,
    read_csv,
)
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from timm.models import save_for_hf

from lgclip.encoder.timm import Timm
from lgclip.runtime.hub import HubError, commit_of
from lgclip.store.keys import content_key, key_inputs

CPU = torch.device("cpu")
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
NAMED = "test_vit.r160_in1k"
create: Any = timm.create_model


def vit(classes: int = 0, **kwargs: Any) -> Any:
    torch.manual_seed(0)
    return create("vit_tiny_patch16_224", num_classes=classes, **(SMALL | kwargs)).eval()


def saved(model: Any, folder: Path, **args: Any) -> Path:
    """Saves a model in timm's hub layout."""
    save_for_hf(model, str(folder), safe_serialization=True, model_args=args)
    return folder


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU, so that `auto` is fp32 everywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(vit(), tmp_path_factory.mktemp("model") / "vit", **SMALL)


def picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))


def unit(features: torch.Tensor) -> torch.Tensor:
    return F.normalize(features.detach(), dim=-1)


def test_features_match_timm(folder: Path) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    features = Timm(str(folder)).load(CPU).images(pixels)
    torch.testing.assert_close(features, unit(vit()(pixels)))
    assert not features.requires_grad
    assert Timm.has_text is False


def test_classifier_is_removed(tmp_path: Path) -> None:
    pixels = torch.randn(2, 3, 32, 32)
    with_head = saved(vit(classes=7), tmp_path / "seven", **SMALL)
    expected = vit(classes=7).forward_features(pixels)[:, 0]
    torch.testing.assert_close(Timm(str(with_head)).load(CPU).images(pixels), unit(expected))


@pytest.mark.parametrize("architecture", ["test_resnet", "test_convnext", "test_efficientnet", "test_vit3"])
def test_architectures_give_pooled_features(architecture: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create(architecture, num_classes=5).eval()
    pixels = torch.randn(2, 3, 160, 160)
    features = Timm(str(saved(model, tmp_path / "model"))).load(CPU).images(pixels)
    torch.testing.assert_close(features, unit(model.forward_head(model.forward_features(pixels), pre_logits=True)))
    assert features.ndim == 2


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [("token", lambda x: x[:, 0]), ("avg", lambda x: x[:, 1:].mean(1)), ("max", lambda x: x[:, 1:].amax(1))],
)
def test_pooling_keeps_the_norm(pooling: str, expected: Any, folder: Path) -> None:
    """Checks pooling against `create_model(global_pool=...)`, which moves the last norm and would not load it."""
    pixels = torch.randn(2, 3, 32, 32)
    encoder = Timm(str(folder), pooling=pooling)
    torch.testing.assert_close(encoder.load(CPU).images(pixels), unit(expected(vit().forward_features(pixels))))
    assert content_key(encoder.inputs()) != content_key(Timm(str(folder)).inputs())


@pytest.mark.parametrize("pooling", ["map", "nonsense"])
def test_unsupported_pooling_is_one_line(pooling: str, folder: Path) -> None:
    with pytest.raises(ValueError, match=rf"cannot be built from model\.safetensors, pooling={pooling} .*: ") as error:
        Timm(str(folder), pooling=pooling).load(CPU)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"encoder\.pooling='': name one"):
        Timm(str(folder), pooling="")


@pytest.mark.parametrize("size", [(64, 64), (50, 31), (20, 90), (640, 480)])
@pytest.mark.parametrize("changes", [{}, {"crop_pct": 1.0}, {"interpolation": "bilinear", "mean": [0.1, 0.2, 0.3]}])
def test_preprocessing_matches_timm_or_squash(
    size: tuple[int, int], changes: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["pretrained_cfg"] |= changes
    (copy / "config.json").write_text(json.dumps(config))
    model = create(f"local-dir:{copy}")
    settings = resolve_model_data_config(model, {"input_size": (3, 32, 32)})  # the architecture's before timm 1.0.31
    expected: Any = create_transform(**settings, is_training=False)
    image = picture(*size)
    assert torch.equal(Timm(str(copy)).transform()(image), expected(image))
    resampling = getattr(Image.Resampling, settings["interpolation"].upper())
    gray = np.asarray(image.resize((32, 32), resampling), np.float32) / 255
    squashed = (gray - np.float32(settings["mean"])) / np.float32(settings["std"])
    np.testing.assert_allclose(Timm(str(copy)).transform(squash=True)(image).permute(1, 2, 0), squashed, atol=1e-6)


def test_image_size_resamples_position_embeddings(folder: Path) -> None:
    """Checks resampling against timm's own with the grid set to the image size."""
    encoder = Timm(str(folder), image_size=64)
    pixels = torch.stack([encoder.transform()(picture(90, 70))])
    assert pixels.shape == (1, 3, 64, 64)
    dynamic = vit(dynamic_img_size=True)
    dynamic.load_state_dict(load_file(folder / "model.safetensors"))
    torch.testing.assert_close(encoder.load(CPU).images(pixels), unit(dynamic(pixels)))
    assert content_key(encoder.inputs()) != content_key(Timm(str(folder)).inputs())


def test_flexible_size_changes_preprocessing_only(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = create("test_resnet").eval()
    encoder = Timm(str(saved(model, tmp_path / "model")), image_size=96)
    pixels = torch.stack([encoder.transform()(picture(90, 70))])
    assert pixels.shape == (1, 3, 96, 96)
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(encoder.load(CPU).images(pixels), unit(expected))


def test_older_config_layout_is_read(folder: Path, tmp_path: Path) -> None:
    old = saved(create("test_vit", num_classes=3), tmp_path / "old")
    config = json.loads((old / "config.json").read_text())
    flat = {**config["pretrained_cfg"], "architecture": config["architecture"], "num_features": 64, "labels": ["a"]}
    (old / "config.json").write_text(json.dumps(flat))
    assert Timm(str(old)).load(CPU).images(torch.randn(1, 3, 160, 160)).shape == (1, 64)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_features_are_close_and_unit(precision: str, folder: Path) -> None:
    pixels = torch.randn(4, 3, 32, 32)
    exact = Timm(str(folder)).load(CPU).images(pixels)
    features = Timm(str(folder), precision=precision).load(CPU).images(pixels)
    assert features.dtype == torch.float32
    torch.testing.assert_close(features.norm(dim=1), torch.ones(4), atol=1e-6, rtol=0)
    assert (features * exact).sum(dim=1).min() > 0.999
    assert not torch.equal(features, exact)


def test_missing_weights_are_rejected(folder: Path, tmp_path: Path) -> None:
    """Checks incomplete weights, which timm itself accepts where the classifier differs."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(copy / "model.safetensors")
    del weights["blocks.1.mlp.fc1.weight"]
    save_file(weights, copy / "model.safetensors")
    with pytest.raises(ValueError, match=r"cannot be built from model\.safetensors") as error:
        Timm(str(copy)).load(CPU)
    assert "\n" not in str(error.value)
    (copy / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no weights in it; expected model\.safetensors"):
        Timm(str(copy)).load(CPU)
    torch.save(weights, copy / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle, which can run code"):
        Timm(str(copy)).load(CPU)
    (copy / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json names no architecture of timm"):
        Timm(str(copy)).transform()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Creates the hub's cache with random weights of a model from timm's list; returns its snapshot."""
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = put_in_hub_cache(tmp_path / "hub", f"timm/{NAMED}")
    torch.manual_seed(1)
    return saved(create("test_vit"), snapshot)


def test_named_model_uses_the_commit_in_its_key(hub: Path) -> None:
    inputs: Any = Timm(NAMED).inputs()
    assert inputs["encoder"]["model"] == {"architecture": NAMED, "weights": f"timm/{NAMED}@{HUB_COMMIT}"}
    pixels = torch.randn(2, 3, 160, 160)
    model = create("test_vit").eval()
    model.load_state_dict(load_file(hub / "model.safetensors"))
    expected = unit(model.forward_head(model.forward_features(pixels), pre_logits=True))
    for encoder in (Timm(NAMED), Timm(f"hf-hub:timm/{NAMED}"), Timm(str(hub))):
        torch.testing.assert_close(encoder.load(CPU).images(pixels), expected)
    later = shutil.copytree(hub, hub.parent / ("f" * 40))
    weights = load_file(hub / "model.safetensors")
    (later / "model.safetensors").unlink()
    save_file({name: -weight for name, weight in weights.items()}, later / "model.safetensors")
    (hub.parents[1] / "refs" / "main").write_text("f" * 40)
    commit_of.cache_clear()
    assert content_key(Timm(NAMED).inputs()) != content_key(inputs)
    assert not torch.allclose(Timm(NAMED).load(CPU).images(pixels), expected, atol=1e-2)
    assert content_key(Timm(NAMED, revision=HUB_COMMIT).inputs()) == content_key(inputs)


def test_missing_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubError, match=r"the hub cannot be reached and there is no copy in its cache"):
        Timm("vit_small_patch14_dinov2.lvd142m").inputs()


def test_checkpoint_may_have_other_classes(tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = create("test_vit", num_classes=11).eval()
    safe = tmp_path / "tuned.safetensors"
    bundle = tmp_path / "tuned.pth"
    save_file(model.state_dict(), safe)
    torch.save({"state_dict": model.state_dict()}, bundle)
    pixels = torch.randn(2, 3, 160, 160)
    expected = unit(model.forward_head(model.forward_features(pixels), pre_logits=True))
    encoder = Timm(NAMED, checkpoint=str(safe))
    torch.testing.assert_close(encoder.load(CPU).images(pixels), expected)
    assert "timm/" not in json.dumps(encoder.inputs()), "the hub's weights have no part in it"
    with pytest.raises(ValueError, match=r"tuned\.pth is a pickle, which can run code"):
        Timm(NAMED, checkpoint=str(bundle))
    pickled = Timm(NAMED, checkpoint=str(bundle), allow_pickle=True)
    torch.testing.assert_close(pickled.load(CPU).images(pixels), expected)
    with pytest.raises(ValueError, match="brings its own weights"):
        Timm(str(saved(model, tmp_path / "folder")), checkpoint=str(safe))


def test_key_includes_every_declared_field(hub: Path, tmp_path: Path) -> None:
    safe = tmp_path / "a.safetensors"
    save_file({"x": torch.zeros(1)}, safe)
    (tmp_path / "b.safetensors").write_bytes(safe.read_bytes() + b" ")
    part = Timm("test_vit", checkpoint=str(safe))
    changes: dict[str, Any] = {
        "model": "test_vit2", "pooling": "avg", "image_size": 64, "revision": HUB_COMMIT, "allow_pickle": True,
        "checkpoint": str(tmp_path / "b.safetensors"), "precision": "bf16", "resize": "fast", "batch_size": 1,
    }  # fmt: skip
    assert set(changes) == {field.name for field in dataclasses.fields(part)}
    for field in dataclasses.fields(part):
        changed = dataclasses.replace(part, **{field.name: changes[field.name]})
        assert (content_key(changed.inputs()) == content_key(part.inputs())) == (
            not field.metadata.get("input", True)
        ), field.name
        assert (field.name in key_inputs(part)) == field.metadata.get("input", True)


def test_text_is_rejected(folder: Path) -> None:
    with pytest.raises(ValueError, match="no text tower"):
        Timm(str(folder)).load(CPU).texts(["a"])
    with pytest.raises(ValueError, match=r"encoder\.batch_size=0"):
        Timm(str(folder), batch_size=0)


def test_run_without_text_tower_reports_no_baseline(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sandbox = Sandbox(
        make_image_folder(tmp_path / "pictures"), make_encoder(tmp_path / "encoder"),
        make_diffuser(tmp_path / "diffuser"), tmp_path / "store",
    )  # fmt: skip
    result = evaluate_run(
        sandbox, tmp_path / "run", "encoder=timm", f"encoder.model={folder}", "encoder.precision=fp32", "text=waffle"
    )
    assert result["baseline"] is None
    assert result["text"] is None
    assert "clip_text" not in result["baselines"]
    assert "text" not in result["store"]
    assert result["encoder"]["precision"] == "fp32"
    assert result["encoder"]["part"] == "Timm"
    output = capsys.readouterr().out
    assert "clip_text: none, this encoder has no text tower" in output
    assert "no effect on method=lgclip: text.alternatives=[] text=waffle" in output
    assert len(read_csv(tmp_path / "run" / "predictions.csv")) == result["n"]
