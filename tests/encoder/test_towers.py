"""Tests parameters and FLOPs of towers against published values and by hand, and where they are stored."""

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from factories import make_encoder
from timm.models import save_for_hf

from lgclip.encoder import profiling
from lgclip.encoder.open_clip import OpenClip, _OpenClipTowers
from lgclip.encoder.profiling import SENTENCE, flops_of, measure
from lgclip.encoder.timm import Timm
from lgclip.reporting.costs import towers_at
from lgclip.tiny.vocabulary import CONTEXT_LENGTH

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


def block(tokens: int, width: int) -> int:
    """Returns the FLOPs of a transformer block (multiply-add = 2): projections, attention, an MLP of width 4."""
    projections = tokens * width * (3 * width + width + 4 * width + 4 * width)
    return 2 * (projections + 2 * tokens * tokens * width)


@pytest.mark.slow
def test_vit_b_32_has_published_size_and_cost() -> None:
    """Checks 87.85 and 63.43 M parameters, 4.41 and 2.98 G multiply-adds (open_clip, docs/model_profile.csv)."""
    model: Any = open_clip.create_model("ViT-B-32", pretrained=None).eval()
    towers = _OpenClipTowers(model, open_clip.get_tokenizer("ViT-B-32"), CPU, "fp32")
    assert towers.parameters() == {"image": 87_849_216, "text": 63_428_097 - 1}  # less the temperature
    image = flops_of(lambda: towers.images(torch.zeros(1, 3, 224, 224)))
    text = flops_of(lambda: towers.texts([SENTENCE]))
    assert image == pytest.approx(2 * 4.41e9, rel=0.002)
    assert text == pytest.approx(2 * 2.98e9, rel=0.002)
    assert image == 12 * block(50, 768) + 2 * (49 * 3 * 32 * 32 * 768 + 768 * 512)
    assert text == 12 * block(77, 512) + 2 * 512 * 512


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_counts_are_cached(folder: Path, tmp_path: Path, precision: str) -> None:
    encoder = OpenClip(str(folder), precision=precision)
    path = tmp_path / "key" / "towers.json"
    towers = encoder.load(CPU)
    fused = torch.backends.mha.get_fastpath_enabled()
    before = towers.texts(["a red star"])
    measure(encoder, towers, path, "cpu")
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.equal(towers.texts(["a red star"]), before)
    sizes = towers.parameters()
    image = block(17, 32) + 2 * (16 * 3 * 8 * 8 * 32 + 32 * 32)
    text = block(CONTEXT_LENGTH, 32) + 2 * 32 * 32
    costs = towers_at(path)
    assert costs is not None
    for name, flops in {"image": image, "text": text}.items():
        assert 0 < costs[name].pop("seconds") < 1
        assert costs[name] == {"parameters": sizes[name], "flops": flops, "device": "cpu"}
    changed = {"image": {"parameters": 1, "flops": 2, "seconds": 3, "device": "gpu"}, "text": None}
    path.write_text(json.dumps(changed))
    measure(encoder, towers, path, "cpu")
    assert towers_at(path) == changed, "it is not counted twice"


def test_text_cost_does_not_depend_on_length(folder: Path) -> None:
    towers = OpenClip(str(folder)).load(CPU)
    counts = {flops_of(lambda text=text: towers.texts([text])) for text in ("a", SENTENCE, "red star " * 40)}
    assert len(counts) == 1


def test_tower_without_text_counts_no_text(tmp_path: Path) -> None:
    create: Any = timm.create_model
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = create("vit_tiny_patch16_224", num_classes=7, **small)
    save_for_hf(model, str(tmp_path / "model"), safe_serialization=True, model_args=small)
    encoder = Timm(str(tmp_path / "model"))
    measure(encoder, encoder.load(CPU), tmp_path / "towers.json", "cpu")
    bare = sum(p.numel() for p in create("vit_tiny_patch16_224", num_classes=0, **small).parameters())
    flops = 2 * block(17, 48) + 2 * 16 * 3 * 8 * 8 * 48
    costs = towers_at(tmp_path / "towers.json")
    assert costs is not None
    assert (costs["image"]["parameters"], costs["image"]["flops"], costs["text"]) == (bare, flops, None)


def test_uncountable_tower_is_reported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(call: object) -> int:
        raise NotImplementedError("no such operator\nhere")

    monkeypatch.setattr(profiling, "flops_of", odd)
    encoder = OpenClip(str(folder))
    with caplog.at_level(logging.WARNING):
        measure(encoder, encoder.load(CPU), tmp_path / "towers.json", "cpu")
    assert "cannot be counted: no such operator" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"image": {}}'])
def test_damaged_count_is_recomputed(tmp_path: Path, content: str) -> None:
    (tmp_path / "towers.json").write_text(content)
    assert towers_at(tmp_path / "towers.json") is None
    assert towers_at(tmp_path / "not there.json") is None
