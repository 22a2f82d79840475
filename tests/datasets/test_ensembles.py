"""CLIP's published template ensembles belong to the data sets that it published them for."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf

from lgclip.datasets.embedded import Digits, Shapes
from lgclip.datasets.ensembles import imagenet_templates, published_ensemble
from lgclip.datasets.names import ClassNames

CONF = Path(__file__).parents[2] / "conf"
COUNTS = {
    "cifar10": 18, "dtd": 8, "eurosat": 3, "fgvc_aircraft": 2, "resisc45": 18, "imagenet": 80, "imagenet_v2": 80,
    "imagenet_sketch": 80, "imagenet_r": 80, "imagenet_a": 80, "imagenette": 80, "cub": 1, "flowers102": 1,
    "food101": 1, "pets": 1,
}  # fmt: skip


def named(name: str, templates: Sequence[str] | None = None, context: str = "") -> ClassNames:
    """Returns class names in place of a data set of some name."""
    names = ClassNames(["cat", "dog"], templates=templates, context=context)
    names.name = name
    return names


def with_default_templates(name: str) -> ClassNames:
    """Returns a data set with the templates of its config file."""
    config = OmegaConf.load(CONF / "dataset" / f"{name}.yaml")
    reader: Any = get_class(config._target_)
    # A published ensemble is looked up by the name that the reader gives.
    assert getattr(reader, "tree", None) is None or reader.tree.dataset == name
    return named(name, config.templates, config.context)


@pytest.mark.parametrize("name", COUNTS)
def test_each_data_set_has_its_published_ensemble(name: str) -> None:
    dataset = with_default_templates(name)
    ensemble = published_ensemble(dataset)
    assert len(set(ensemble)) == len(ensemble) == COUNTS[name]
    assert all(template.count("{}") == 1 for template in ensemble)
    if COUNTS[name] == 1:
        assert ensemble == dataset.templates


def test_ensembles_are_those_of_clips_repository() -> None:
    assert published_ensemble(with_default_templates("eurosat")) == (
        "a centered satellite photo of {}.",
        "a centered satellite photo of a {}.",
        "a centered satellite photo of the {}.",
    )
    cifar10 = published_ensemble(with_default_templates("cifar10"))
    assert cifar10[:2] == ("a photo of a {}.", "a blurry photo of a {}.")
    assert cifar10[-2:] == ("a photo of the small {}.", "a photo of the big {}.")
    dtd = published_ensemble(with_default_templates("dtd"))
    assert dtd[1] == "a photo of a {} pattern."
    assert published_ensemble(with_default_templates("resisc45"))[-1] == "aerial view of the {}."


def test_templates_of_the_user_are_no_published_ensemble() -> None:
    assert published_ensemble(named("dtd", ["a photo of a {}"])) == ("a photo of a {}",)


@pytest.mark.parametrize("dataset", [Shapes(), ClassNames(["a", "b"])], ids=["shapes", "names"])
def test_other_data_sets_keep_their_templates(dataset: Any) -> None:
    assert published_ensemble(dataset) == dataset.templates == ("a photo of a {}.",)


def test_digits_keep_their_template() -> None:
    pytest.importorskip("sklearn")
    assert published_ensemble(Digits()) == ("a photo of a {}.",)


def test_best_seven_templates_are_among_the_eighty() -> None:
    assert set(imagenet_templates(7)) < set(imagenet_templates(80))
