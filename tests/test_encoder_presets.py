"""Every preset against what the installed open_clip and timm know: names, tags, preprocessing, size and cost."""

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

from lgclip.encoder.catalogue import architecture, pretrained
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"


def composed(name: str) -> Any:
    """The choice as a run has it; a model that only the user can name stays open."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", [f"encoder={name}"]).encoder


CONFIGS: dict[str, Any] = {path.stem: composed(path.stem) for path in (CONF / "encoder").glob("*.yaml")}
PRESETS = sorted(name for name, config in CONFIGS.items() if name not in ("open_clip", "timm", "tiny"))


def encoder(name: str) -> Any:
    return instantiate(CONFIGS[name], _convert_="all")


def test_the_usual_presets_are_there() -> None:
    wanted = (
        "rn50 rn101 vit_b32 vit_b16 vit_l14 vit_l14_336 vit_h14 siglip2_b16 siglip2_so400m mobileclip "
        "dinov2_s14 dinov2_b14 dinov2_l14 dinov3_s16 dinov3_b16"
    )
    assert set(wanted.split()) <= set(PRESETS)
    assert {type(encoder(name)) for name in PRESETS} == {OpenClip, Timm}


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_in_the_installed_package_s_own_list(name: str) -> None:
    found = encoder(name)
    if isinstance(found, OpenClip):
        assert (found.model, found.pretrained) in open_clip.list_pretrained()
        quick = open_clip.get_pretrained_cfg(found.model, found.pretrained or "").get("quick_gelu", False)
        assert quick == open_clip.get_model_config(found.model).get("quick_gelu", False)  # pyright: ignore
    else:
        assert found.model in timm.list_pretrained()
    assert found.precision == "auto"
    assert not found.allow_pickle


@pytest.mark.parametrize("name", [name for name in PRESETS if "timm" not in CONFIGS[name]._target_])
@pytest.mark.parametrize("size", [(301, 200), (97, 400)])
def test_the_preprocessing_is_open_clip_s_for_these_weights(
    name: str, size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """open_clip builds the model without storage and its own transform; only the download is left out."""
    monkeypatch.setattr("open_clip.factory.download_pretrained", lambda *args, **kwargs: "")
    found = encoder(name)
    with torch.device("meta"):
        _, _, expected = open_clip.create_model_and_transforms(found.model, found.pretrained, device="meta")
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8))
    assert torch.equal(found.transform()(image), expected(image))  # pyright: ignore


@pytest.mark.parametrize("name", [name for name in PRESETS if "timm" in CONFIGS[name]._target_])
def test_the_preprocessing_is_timm_s_for_these_weights(name: str) -> None:
    found = encoder(name)
    with torch.device("meta"):
        args = {} if found.image_size is None else {"img_size": found.image_size}
        model = timm.create_model(found.model, **args)
    config = resolve_model_data_config(model, args)
    expected: Any = create_transform(**config, is_training=False)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (301, 200, 3), np.uint8))
    assert torch.equal(found.transform()(image), expected(image))


def test_every_pair_of_open_clip_s_list_fits_or_is_refused_with_the_name_that_does() -> None:
    """Over the whole list: a mismatch of QuickGELU is never loaded."""
    refused = 0
    for model, tag in open_clip.list_pretrained():
        config: Any = open_clip.get_model_config(model)
        found = open_clip.get_pretrained_cfg(model, tag)
        assert found["hf_hub"], "a tag that is only a URL would need its own way"
        if bool(config.get("quick_gelu")) == bool(found.get("quick_gelu")):
            assert OpenClip(model, tag).model == model
            continue
        with pytest.raises(ValueError, match="QuickGELU") as error:
            OpenClip(model, tag)
        refused += 1
        other = str(error.value).rpartition("encoder.model=")[2]
        if other.startswith("hf-hub:"):
            assert other.split()[0] == f"hf-hub:{found['hf_hub'].strip('/')}"
        else:
            assert OpenClip(other, tag).model == other != model
    assert refused > 20


@pytest.mark.parametrize(
    ("model", "tag", "said"),
    [
        ("ViT-B-32", "openai", r"trained with QuickGELU; use encoder\.model=ViT-B-32-quickgelu"),
        ("ViT-H-14", "dfn5b", r"trained with QuickGELU; use encoder\.model=ViT-H-14-quickgelu"),
        ("ViT-B-32-quickgelu", "laion2b_s34b_b79k", r"trained without QuickGELU; use encoder\.model=ViT-B-32$"),
        ("ViT-B-16-quickgelu", "laion400m_e32", r"trained without QuickGELU; use encoder\.model=ViT-B-16$"),
    ],
)
def test_a_mismatch_of_quick_gelu_names_the_right_architecture(model: str, tag: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        OpenClip(model, tag)


@pytest.mark.parametrize(
    ("make", "said"),
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
def test_a_name_that_is_not_there_is_answered_with_those_near_it(make: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_a_tag_may_be_written_with_hyphens_as_in_open_clip() -> None:
    assert pretrained("ViT-B-16", "laion2b-s34b-b88k") == pretrained("ViT-B-16", "laion2b_s34b_b88k")


def test_only_a_named_tokenizer_is_ever_needed() -> None:
    """Without a name open_clip takes CLIP's words, but for SigLIP; all SigLIPs name theirs, as here is relied upon."""
    for model in open_clip.list_models():
        if "siglip" in model.lower():
            assert architecture(model)["text_cfg"].get("hf_tokenizer_name"), model


def flops(run: Any) -> float:
    """Billions of floating-point operations of a call, a multiplication and an addition being two."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 1e9


def millions(module: Any) -> float:
    return sum(weight.numel() for weight in module.parameters()) / 1e6


@pytest.mark.parametrize("name", PRESETS)
def test_the_docs_give_each_preset_s_input_size_and_cost(name: str) -> None:
    """Computed on models without storage; CLIP's figures are the published ones of open_clip's own profile."""
    page = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
    found = encoder(name)
    image = Image.new("RGB", (500, 400))
    pixels = torch.empty(1, *found.transform()(image).shape, device="meta")
    with torch.device("meta"), torch.no_grad():
        if isinstance(found, OpenClip):
            model: Any = open_clip.create_model(found.model, load_weights=False, device="meta")
            model = model.eval().requires_grad_(False)
            words = torch.zeros(1, architecture(found.model)["text_cfg"]["context_length"], dtype=torch.long)
            seen = millions(model.visual)
            parts = [seen, millions(model) - seen]
            work = [flops(lambda: model.encode_image(pixels)), flops(lambda: model.encode_text(words))]
            width = model.encode_image(pixels).shape[1]
        else:
            size = {} if found.image_size is None else {"img_size": found.image_size}
            tower: Any = timm.create_model(found.model, num_classes=0, **size).eval().requires_grad_(False)
            parts, work = [millions(tower)], [flops(lambda: tower(pixels))]
            width = tower(pixels).shape[1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert [float(x) for x in cells[2].split("+")] == pytest.approx(parts, rel=0.01)
    assert [float(x) for x in cells[3].split("+")] == pytest.approx(work, rel=0.01)
    assert cells[4:7] == [str(pixels.shape[-1]), str(width), "yes" if found.has_text else "no"]
    assert found.model in cells[1]
    assert CONFIGS[name].get("pretrained", "") in cells[1]


def test_the_docs_list_no_preset_that_is_not_there() -> None:
    page = (ROOT / "docs" / "encoders.md").read_text(encoding="utf-8")
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert sorted(listed[1:]) == PRESETS, "the first is the head of the table"
