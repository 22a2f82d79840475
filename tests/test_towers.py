"""Parameters and FLOPs of towers: against the published figures, by hand, and where they are kept."""

import json
import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from timm.models import save_for_hf
from worlds import encoder_folder

from lgclip.costs import towers_at
from lgclip.encoder import measure as measuring
from lgclip.encoder.measure import SENTENCE, flops_of, measure
from lgclip.encoder.open_clip import OpenClip, _OpenClipTowers
from lgclip.encoder.timm import Timm
from lgclip.tiny.vocabulary import CONTEXT_LENGTH

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoder_folder(tmp_path_factory.mktemp("encoder") / "encoder")


def block(tokens: int, width: int) -> int:
    """FLOPs of a transformer block, a multiply-add as 2: projections, attention, an MLP of four times the width."""
    projections = tokens * width * (3 * width + width + 4 * width + 4 * width)
    return 2 * (projections + 2 * tokens * tokens * width)


def test_vit_b_32_has_the_published_size_and_cost() -> None:
    """87.85 and 63.43 million parameters, 4.41 and 2.98 G multiply-adds (open_clip, docs/model_profile.csv)."""
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
def test_what_is_counted_is_kept_once_and_read_back(folder: Path, tmp_path: Path, precision: str) -> None:
    encoder, path = OpenClip(str(folder), precision=precision), tmp_path / "key" / "towers.json"
    towers = encoder.load(CPU)
    fused = torch.backends.mha.get_fastpath_enabled()
    before = towers.texts(["a red star"])
    measure(encoder, towers, path, "cpu")
    assert torch.backends.mha.get_fastpath_enabled() == fused
    assert torch.equal(towers.texts(["a red star"]), before)
    sizes = towers.parameters()
    image = block(17, 32) + 2 * (16 * 3 * 8 * 8 * 32 + 32 * 32)
    text = block(CONTEXT_LENGTH, 32) + 2 * 32 * 32
    found = towers_at(path)
    assert found is not None
    for name, flops in {"image": image, "text": text}.items():
        assert 0 < found[name].pop("seconds") < 1
        assert found[name] == {"parameters": sizes[name], "flops": flops, "device": "cpu"}
    other = {"image": {"parameters": 1, "flops": 2, "seconds": 3, "device": "gpu"}, "text": None}
    path.write_text(json.dumps(other))
    measure(encoder, towers, path, "cpu")
    assert towers_at(path) == other, "it is not counted twice"


def test_a_sentence_costs_the_same_however_long_it_is(folder: Path) -> None:
    towers = OpenClip(str(folder)).load(CPU)
    counts = {flops_of(lambda text=text: towers.texts([text])) for text in ("a", SENTENCE, "red star " * 40)}
    assert len(counts) == 1


def test_a_tower_without_text_counts_neither_text_nor_its_classifier(tmp_path: Path) -> None:
    create: Any = timm.create_model
    small = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = create("vit_tiny_patch16_224", num_classes=7, **small)
    save_for_hf(model, str(tmp_path / "model"), safe_serialization=True, model_args=small)
    encoder = Timm(str(tmp_path / "model"))
    measure(encoder, encoder.load(CPU), tmp_path / "towers.json", "cpu")
    bare = sum(p.numel() for p in create("vit_tiny_patch16_224", num_classes=0, **small).parameters())
    flops = 2 * block(17, 48) + 2 * 16 * 3 * 8 * 8 * 48
    found = towers_at(tmp_path / "towers.json")
    assert found is not None
    assert (found["image"]["parameters"], found["image"]["flops"], found["text"]) == (bare, flops, None)


def test_what_cannot_be_counted_is_told_and_stops_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def odd(call: object) -> int:
        raise NotImplementedError("no such operator\nhere")

    monkeypatch.setattr(measuring, "flops_of", odd)
    encoder = OpenClip(str(folder))
    with caplog.at_level(logging.WARNING):
        measure(encoder, encoder.load(CPU), tmp_path / "towers.json", "cpu")
    assert "cannot be counted: no such operator" in caplog.text
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"image": {}}'])
def test_a_damaged_count_is_as_good_as_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "towers.json").write_text(content)
    assert towers_at(tmp_path / "towers.json") is None
    assert towers_at(tmp_path / "not there.json") is None
