"""Tests the data of LoRA tuning: no label, a noise per image, and a key of all inputs."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from factories import make_diffuser
from fit_adapters import about, adaptation, tuned
from PIL import Image
from pipelines import family_folder
from student_factories import ColorPatches, color_patch, key_inputs, synthetic_patches

from lgclip.datasets.splits import DatasetSplits
from lgclip.diffuser.image_folder import ImageFolder
from lgclip.diffuser.pipeline import Diffuser
from lgclip.training.lora.config import LoraTuning, TuningBatch
from lgclip.training.lora.data import Steps, TuningPool
from lgclip.training.lora.task import Adaptation
from lgclip.training.lora.train import LoraTraining


class Unlabelled(ColorPatches):
    """Contains images whose labels may not be read."""

    context = "a patch"

    def __getattribute__(self, name: str) -> Any:
        if name == "labels" and "is_label_hidden" in vars(self):
            raise AssertionError("a hidden label was looked at")
        return super().__getattribute__(name)

    def hide(self) -> "Unlabelled":
        self.is_label_hidden = True
        return self

    def image(self, index: int) -> Image.Image:
        return color_patch(index % 3, index)

    @property
    def ids(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return [f"hidden-{index}" for index in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_diffuser(tmp_path_factory.mktemp("model") / "diffuser")


@pytest.mark.slow
def test_labels_are_not_read(model: Path, tmp_path: Path) -> None:
    for captions in ("sentence", "none", "class_list"):
        tuning = LoraTuning(steps=1, batch_size=3, captions=captions)
        pool = Unlabelled(2, "train").hide()
        with pytest.raises(AssertionError, match="a hidden label"):
            _ = pool.labels
        tuned(Adaptation(tuning, Diffuser(str(model), size=32), pool), tmp_path)


def test_captions_follow_the_config(model: Path) -> None:
    diffuser = Diffuser(str(model), size=32)
    named = Unlabelled(2)
    plain = ColorPatches(2)
    described = [
        Adaptation(LoraTuning(captions=captions), diffuser, pool).sentences()
        for captions, pool in (("sentence", named), ("sentence", plain), ("none", plain), ("class_list", plain))
    ]
    colors = [f"a photo of a {name}." for name in ("red", "green", "blue")]
    assert described == [["a photo of a patch"], ["a photo of an object"], [""], colors]
    task = Adaptation(LoraTuning(captions="class_list", batch_size=300), diffuser, ColorPatches(100))
    batch = Steps(TuningPool(task.tuning, task.images(), 16), 0, 1)[0]
    assert np.bincount(batch.captions).min() > 70, "each name by chance"


def steps_of(task: Adaptation, rank: int = 0, world: int = 1) -> Iterator[TuningBatch]:
    steps = Steps(TuningPool(task.tuning, task.images(), 16), rank, world)
    return (steps[index] for index in range(task.tuning.steps * task.tuning.accumulate))


def test_pass_covers_every_image_once(model: Path) -> None:
    task = adaptation(model, batch_size=5, steps=6)
    full = list(steps_of(task))
    seeds = [seed for batch in full for seed in batch.seeds]
    assert len(set(seeds)) == 30, "no image has the same noise twice"
    seen = [round(float(pixels.mean()), 6) for batch in full for pixels in batch.pixels]
    for turn in range(5):
        assert len(set(seen[6 * turn : 6 * turn + 6])) == 6
    divided = adaptation(model, batch_size=5, steps=6, accumulate=2)
    for step, batch in enumerate(full):
        shares = [list(steps_of(divided, rank, 2))[2 * step + part] for rank, part in product(range(2), range(2))]
        assert sorted(seed for share in shares for seed in share.seeds) == sorted(batch.seeds)
        assert {(share.step, share.total) for share in shares} == {(step, 5)}


def test_prior_images_are_optional_and_weighted(model: Path, tmp_path: Path) -> None:
    requests = []

    def draw() -> Any:
        requests.append(1)
        return synthetic_patches(tmp_path / "drawn", per_class=2)

    diffuser = Diffuser(str(model), size=32)
    splits = DatasetSplits(lambda **_: ColorPatches())
    splits.training = ColorPatches(2, "train")
    with_prior = LoraTuning(steps=2, batch_size=4, prior_weight=0.25)
    inputs = replace(key_inputs(splits, diffuser=diffuser), synthetic_images=draw)
    without = Adaptation.of(LoraTuning(steps=2, batch_size=4), inputs)
    assert (requests, without.prior) == ([], None)
    task = Adaptation.of(with_prior, inputs)
    assert requests == [1]
    assert task.sentences() == ["a photo of an object", "a red patch", "a green patch", "a blue patch"]
    batch = next(steps_of(task))
    assert batch.weights.tolist() == [1.0] * 4 + [0.25] * 4
    assert batch.captions[:4] == [0] * 4
    assert all(batch.captions[4:]), "each by its own prompt"
    assert about(tuned(task, tmp_path / "store"))["trained_on"] == {
        "dataset": "patches", "split": "train", "pool": 6, "prior": 6
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"method\.prior_weight=0\.25 takes generated images"):
        Adaptation(with_prior, diffuser, ColorPatches())


def test_key_covers_images_recipe_and_model(model: Path, tmp_path: Path) -> None:
    def key(tuning: dict[str, Any] | None = None, pool: Any = None, **settings: Any) -> str:
        diffuser = Diffuser(**{"model": str(model), "size": 32, **settings})
        return (
            LoraTraining(Adaptation(LoraTuning(**tuning or {}), diffuser, pool or ColorPatches())).folder(tmp_path).name
        )

    plain = key()
    assert plain == key(
        {"checkpoint_every": 3}, steps=7, guidance=2.0, negative_prompt="blue", batch_size=2, image_format="jpeg-95"
    )
    assert plain == key({"rank": 4, "alpha": 4.0, "precision": "fp32"})
    variants = [
        key({"rank": 2}), key({"lr": 1e-3}), key({"captions": "none"}), key({"flip": True}), key({"seed": 1}),
        key(pool=ColorPatches(7)), key(pool=ColorPatches(6, "train")), key(size=16), key(model="tiny:diffuser"),
        key(pool=Unlabelled()),
    ]  # fmt: skip
    assert len({plain, *variants}) == 11


@pytest.mark.slow
def test_invalid_tuning_is_rejected_early(model: Path, tmp_path: Path) -> None:
    def refused(diffuser: Any, message: str, **values: Any) -> None:
        splits = DatasetSplits(lambda **_: ColorPatches())  # has no training split
        with pytest.raises(ValueError, match=message):
            Adaptation.of(LoraTuning(**values), key_inputs(splits, diffuser=diffuser))

    folder = tuned(adaptation(model, steps=1), tmp_path)
    (tmp_path / "empty").mkdir()
    refused(ImageFolder(str(tmp_path)), "ImageFolder is none: choose diffuser=tiny")
    refused(Diffuser(str(model), lora=str(folder)), "tuning begins without LoRA weights")
    refused(Diffuser(str(family_folder("flux", tmp_path / "flux"))), "FluxPipeline cannot be tuned here")
    refused(Diffuser(str(tmp_path / "empty")), "no pipeline, it has no model_index.json")
    with pytest.raises(ValueError, match="there is no image to tune on"):
        Adaptation(LoraTuning(), Diffuser(str(model)), ColorPatches(0))
    pool = TuningPool(LoraTuning(batch_size=5, accumulate=2), [], 32)
    pool.trainer = SimpleNamespace(world_size=3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"method\.batch_size=5: 3 devices share a step .* must be at least 6"):
        pool.setup("fit")
