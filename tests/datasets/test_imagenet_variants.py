"""Tests V2, Sketch, R and A, variants of ImageNet with the same classes."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import imagenet_trees as trees
import numpy as np
import pytest

from lgclip.datasets import imagenet, imagenet_variants
from lgclip.datasets.imagenet_classes import wordnet_ids
from lgclip.datasets.imagenet_variants import ImageNetShift, ImageNetV2

WNIDS = wordnet_ids()
SOME = trees.SOME
IMAGENETTE = [0, 217, 482, 491, 497, 566, 569, 571, 574, 701]
TRUTH = [65, 970, 230, 0, 65]
"""Classes of a few validation images; the real first one is of class 65 too."""


def wnids(indices: Sequence[int]) -> list[str]:
    return [WNIDS[index] for index in indices]


def v2_tree(root: Path, split: str, indices: Sequence[int], per_class: int = 10) -> Path:
    inside = imagenet_variants.V2_FOLDERS[split]
    return trees.class_folders(root, [f"{inside}/{index}" for index in indices], per_class, ".jpeg")


@pytest.mark.parametrize("split", imagenet_variants.V2_FOLDERS)
def test_v2_folders_are_ordered_numerically(split: str, tmp_path: Path) -> None:
    root = v2_tree(tmp_path, split, range(1000), per_class=1)
    data = ImageNetV2(str(root), split=split, counts=False)
    assert data.labels == tuple(range(1000))
    assert [int(Path(file).parent.name) for file in data.files] == list(range(1000))
    assert data.class_names[:11][2] == "great white shark", "and not class 10, which is next as text"
    assert data.split == f"{split}; 1,000 of 10,000 images"


def test_v2_has_ten_images_per_class(tmp_path: Path) -> None:
    root = v2_tree(tmp_path, "top-images", [3, 20])
    assert len(ImageNetV2(str(root), split="top-images", classes=[3, 20])) == 20
    with pytest.raises(
        ValueError, match=r"no.* complete, missing: imagenetv2-threshold0.7-format-val.*threshold0.7.tar"
    ):
        ImageNetV2(str(root), split="threshold-0.7")
    next((root / imagenet_variants.V2_FOLDERS["top-images"] / "20").iterdir()).unlink()
    with pytest.raises(ValueError, match=rf"{WNIDS[20]} \(class 20\) has 9"):
        ImageNetV2(str(root), split="top-images", classes=[3, 20])
    with pytest.raises(ValueError, match=r"choose matched-frequency, threshold-0\.7, top-images or all"):
        ImageNetV2(str(root), split="top")


def test_v2_variants_are_pooled(tmp_path: Path) -> None:
    for split in imagenet_variants.V2_FOLDERS:
        v2_tree(tmp_path, split, [3, 20])

    data = ImageNetV2(str(tmp_path), split="all", classes=[3, 20])

    assert len(data) == 60
    assert data.labels == (0,) * 30 + (1,) * 30
    assert len(set(data.files)) == 60
    assert data.split.startswith("all; 2 of 1000 classes")


@pytest.mark.parametrize("above", [True, False])
@pytest.mark.parametrize(("name", "classes"), [("imagenet_r", 200), ("imagenet_a", 200), ("imagenet_sketch", 1000)])
def test_variants_use_their_own_classes(
    name: str, classes: int, above: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shift = imagenet_variants.SHIFTS[name]
    inside = trees.class_folders(tmp_path / shift.inside, wordnet_ids(shift.classes))
    (inside / "README.txt").write_text("what it is")
    root = str(tmp_path if above else inside)
    data = ImageNetShift(name, root, counts=False)
    assert data.labels == tuple(range(classes))
    assert data.class_indices is not None
    assert wnids(data.class_indices) == list(wordnet_ids(shift.classes)) == [Path(f).parent.name for f in data.files]
    all_names = imagenet.class_names("clip")
    assert data.class_names == tuple(all_names[index] for index in data.class_indices)
    assert data.files[0] == f"{wordnet_ids(shift.classes)[0]}/{wordnet_ids(shift.classes)[0]}_0.JPEG"
    assert (data.name, data.split) == (name, f"all; {classes:,} of {shift.images:,} images")
    with pytest.raises(ValueError, match=f"{classes} images found, the split has {shift.images}"):
        ImageNetShift(name, root)
    monkeypatch.setitem(imagenet_variants.SHIFTS, name, shift._replace(images=classes))
    assert ImageNetShift(name, root).split == "all"


def test_variants_share_one_class_list(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trees.class_folders(tmp_path / "imagenet-r", wordnet_ids("imagenet_r"))
    with caplog.at_level(logging.WARNING):
        data = ImageNetShift("imagenet_r", str(tmp_path), classes=[0, 1, 2, 3])
    present = [index for index in range(4) if WNIDS[index] in wordnet_ids("imagenet_r")]
    assert 0 < len(present) < 4
    assert data.class_indices == tuple(present)
    assert data.split == f"all; {len(present)} of 200 classes ({' '.join(map(str, present))})"
    assert "imagenet_r has no images of classes" in caplog.text
    with pytest.raises(ValueError, match=r"imagenet_r has none of these classes"):
        ImageNetShift("imagenet_r", str(tmp_path), classes=[0, 3])


def test_subset_equals_masked_logits() -> None:
    """Checks what the docs say of -R and -A: the best of 200 equals the best of 1000 with 800 masked."""
    present = [WNIDS.index(wnid) for wnid in wordnet_ids("imagenet_r")]
    logits = np.random.default_rng(0).normal(size=(50, 1000))
    masked = np.full_like(logits, -np.inf)
    masked[:, present] = logits[:, present]
    np.testing.assert_array_equal(np.array(present)[logits[:, present].argmax(1)], masked.argmax(1))


def test_missing_variant_explains_the_download(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hendrycks/natural-adv-examples"):
        ImageNetShift("imagenet_a", str(tmp_path / "absent"))
    with pytest.raises(ValueError, match=r"200 of 200 classes have not the images .*imagenet-r/n01443537"):
        ImageNetShift("imagenet_r", str(tmp_path))
    wrong: Any = "imagenet_c"
    with pytest.raises(ValueError, match="choose imagenet_sketch or imagenet_r or imagenet_a"):
        ImageNetShift(wrong, str(tmp_path))
