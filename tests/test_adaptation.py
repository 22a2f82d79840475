"""What LoRA weights are tuned on: no label, each image with a noise of its own, and a key of all that counts."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fit_adapters import about, adaptation, tuned
from PIL import Image
from pipelines import family_folder
from student_worlds import Patches, drawn, patch
from worlds import diffuser_folder

from lgclip.adaptation import Adaptation
from lgclip.adapting import folder_of
from lgclip.diffuser.folder import ImageFolder
from lgclip.diffuser.pipeline import Diffuser
from lgclip.lora_spec import LoraTuning, TuningBatch
from lgclip.tuning_pool import Steps, TuningPool


class Unlabelled(Patches):
    """Pictures whose labels may not be asked for."""

    context = "a patch"

    def __getattribute__(self, name: str) -> Any:
        if name == "labels" and "asked" in vars(self):
            raise AssertionError("a hidden label was looked at")
        return super().__getattribute__(name)

    def hide(self) -> "Unlabelled":
        self.asked = True
        return self

    def image(self, index: int) -> Image.Image:
        return patch(index % 3, index)

    @property
    def ids(self) -> list[str]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return [f"hidden-{at}" for at in range(6)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return diffuser_folder(tmp_path_factory.mktemp("model") / "diffuser")


def test_no_label_is_looked_at(model: Path, tmp_path: Path) -> None:
    for captions in ("sentence", "none", "class_list"):
        tuning = LoraTuning(steps=1, batch_size=3, captions=captions)
        pool = Unlabelled(2, "train").hide()
        with pytest.raises(AssertionError, match="a hidden label"):
            _ = pool.labels
        tuned(Adaptation(tuning, Diffuser(str(model), size=32), pool), tmp_path)


def test_what_is_said_of_the_images_is_as_asked(model: Path) -> None:
    diffuser, named, plain = Diffuser(str(model), size=32), Unlabelled(2), Patches(2)
    said = [
        Adaptation(LoraTuning(captions=captions), diffuser, pool).sentences()
        for captions, pool in (("sentence", named), ("sentence", plain), ("none", plain), ("class_list", plain))
    ]
    colours = [f"a photo of a {name}." for name in ("red", "green", "blue")]
    assert said == [["a photo of a patch"], ["a photo of an object"], [""], colours]
    what = Adaptation(LoraTuning(captions="class_list", batch_size=300), diffuser, Patches(100))
    batch = Steps(TuningPool(what.tuning, what.images(), 16), 0, 1)[0]
    assert np.bincount(batch.captions).min() > 70, "each name by chance"


def steps_of(what: Adaptation, rank: int = 0, world: int = 1) -> Iterator[TuningBatch]:
    steps = Steps(TuningPool(what.tuning, what.images(), 16), rank, world)
    return (steps[at] for at in range(what.tuning.steps * what.tuning.accumulate))


def test_a_pass_shows_every_image_once_and_devices_and_parts_share_a_step(model: Path) -> None:
    what = adaptation(model, batch_size=5, steps=6)
    whole = list(steps_of(what))
    seeds = [seed for batch in whole for seed in batch.seeds]
    assert len(set(seeds)) == 30, "no image has the same noise twice"
    shown = [round(float(pixels.mean()), 6) for batch in whole for pixels in batch.pixels]
    for turn in range(5):
        assert len(set(shown[6 * turn : 6 * turn + 6])) == 6
    divided = adaptation(model, batch_size=5, steps=6, accumulate=2)
    for step, batch in enumerate(whole):
        shares = [list(steps_of(divided, rank, 2))[2 * step + part] for rank in range(2) for part in range(2)]
        assert sorted(seed for share in shares for seed in share.seeds) == sorted(batch.seeds)
        assert {(share.step, share.total) for share in shares} == {(step, 5)}


def test_a_prior_is_drawn_only_if_it_is_asked_for_and_counts_by_its_weight(model: Path, tmp_path: Path) -> None:
    asked = []

    def draw() -> Any:
        asked.append(1)
        return drawn(tmp_path / "drawn", each=2)

    diffuser = Diffuser(str(model), size=32)
    with_prior = LoraTuning(steps=2, batch_size=4, prior_weight=0.25)
    without = Adaptation.of(LoraTuning(steps=2, batch_size=4), diffuser, partial(Patches, 2, "train"), draw)
    assert (asked, without.prior) == ([], None)
    what = Adaptation.of(with_prior, diffuser, partial(Patches, 2, "train"), draw)
    assert asked == [1]
    assert what.sentences() == ["a photo of an object", "a red patch", "a green patch", "a blue patch"]
    batch = next(steps_of(what))
    assert batch.weights.tolist() == [1.0] * 4 + [0.25] * 4
    assert batch.captions[:4] == [0] * 4
    assert all(batch.captions[4:]), "each by its own prompt"
    assert about(tuned(what, tmp_path / "store"))["trained_on"] == {
        "dataset": "patches", "split": "train", "pool": 6, "prior": 6
    }  # fmt: skip
    with pytest.raises(ValueError, match=r"method\.prior_weight=0\.25 takes drawn images"):
        Adaptation(with_prior, diffuser, Patches())


def test_a_key_depends_on_the_images_the_recipe_and_the_model_and_not_on_how_it_draws(
    model: Path, tmp_path: Path
) -> None:
    def key(tuning: dict[str, Any] | None = None, pool: Any = None, **settings: Any) -> str:
        diffuser = Diffuser(**{"model": str(model), "size": 32, **settings})
        return folder_of(Adaptation(LoraTuning(**tuning or {}), diffuser, pool or Patches()), tmp_path).name

    plain = key()
    assert plain == key({"checkpoint_every": 3}, steps=7, guidance=2.0, negative_prompt="blue", batch_size=2)
    assert plain == key({"rank": 4, "alpha": 4.0, "precision": "fp32"})
    others = [
        key({"rank": 2}), key({"lr": 1e-3}), key({"captions": "none"}), key({"flip": True}), key({"seed": 1}),
        key(pool=Patches(7)), key(pool=Patches(6, "train")), key(size=16), key(model="tiny:diffuser"),
        key(pool=Unlabelled()),
    ]  # fmt: skip
    assert len({plain, *others}) == 11


def test_what_cannot_be_tuned_is_said_before_anything_is_made(model: Path, tmp_path: Path) -> None:
    def refused(diffuser: Any, said: str, **values: Any) -> None:
        def nothing() -> Any:
            raise AssertionError("nothing is opened or drawn")

        with pytest.raises(ValueError, match=said):
            Adaptation.of(LoraTuning(**values), diffuser, nothing, nothing)

    folder = tuned(adaptation(model, steps=1), tmp_path)
    (tmp_path / "empty").mkdir()
    refused(ImageFolder(str(tmp_path)), "ImageFolder is none: choose diffuser=tiny")
    refused(Diffuser(str(model), lora=str(folder)), "tuning begins with the pipeline alone")
    refused(Diffuser(str(family_folder("flux", tmp_path / "flux"))), "FluxPipeline cannot be tuned here")
    refused(Diffuser(str(tmp_path / "empty")), "no pipeline, it has no model_index.json")
    with pytest.raises(ValueError, match="there is no image to tune on"):
        Adaptation(LoraTuning(), Diffuser(str(model)), Patches(0))
    pool = TuningPool(LoraTuning(batch_size=5, accumulate=2), [], 32)
    pool.trainer = SimpleNamespace(world_size=3)  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValueError, match=r"method\.batch_size=5: 3 devices share a step .* must be at least 6"):
        pool.setup("fit")
