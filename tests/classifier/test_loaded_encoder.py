"""Tests that a classifier loads its encoder once, and that a single image may take a pass of its own."""

import copy
import gc
import pickle
import shutil
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from factories import FirstRun
from torch import Tensor

from lgclip.batches import CPU_ROWS
from lgclip.classifier.loaded_encoder import LoadedEncoder
from lgclip.classifier.loading import load_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.base import Encoder, Towers
from lgclip.reporting.run_classifier import classifier_of

pytest_plugins = ("run_fixtures",)


@pytest.fixture
def classifier(first_run: FirstRun) -> ImageClassifier:
    return classifier_of(first_run.folder)


@pytest.fixture
def images(first_run: FirstRun) -> list[Path]:
    return sorted(Path(first_run.sandbox.synthetic_images).rglob("*.png"))[:3]


@pytest.fixture
def loads(classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch) -> list[Encoder]:
    """Lists the encoders whose weights are loaded."""
    listed: list[Encoder] = []
    kind = type(classifier.encoder)
    load = kind.load

    def listing(encoder: Encoder, device: torch.device) -> Towers:
        listed.append(encoder)
        return load(encoder, device)

    monkeypatch.setattr(kind, "load", listing)
    return listed


def test_weights_are_loaded_once(classifier: ImageClassifier, images: list[Path], loads: list[Encoder]) -> None:
    together = list(classifier.classify(images))
    assert [next(classifier.classify(image)) for image in images] == together
    assert len(loads) == 1


def test_loading_before_the_first_image(classifier: ImageClassifier, images: list[Path], loads: list[Encoder]) -> None:
    assert classifier.load_encoder().device == torch.device("cpu")
    assert len(loads) == 1
    classifier.predict(images)
    assert len(loads) == 1


def test_copies_share_the_weights(classifier: ImageClassifier, images: list[Path], loads: list[Encoder]) -> None:
    other = replace(classifier)
    assert list(other.classify(images)) == list(classifier.classify(images))
    classifier.add_shots({classifier.class_names[0]: images})
    assert len(loads) == 1


def test_another_encoder_is_loaded(classifier: ImageClassifier, loads: list[Encoder]) -> None:
    device = torch.device("cpu")
    loaded = LoadedEncoder()
    first = loaded.load(classifier.encoder, device)
    assert loaded.load(classifier.encoder, device) is first
    other = replace(classifier.encoder, precision="bf16")  # pyright: ignore[reportArgumentType]
    assert loaded.load(other, device) is not first
    assert [encoder.precision for encoder in loads] == [classifier.encoder.precision, "bf16"]


def test_failed_load_is_tried_again(classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    loaded = LoadedEncoder()
    with monkeypatch.context() as patch:
        patch.setattr(type(classifier.encoder), "load", fail)
        with pytest.raises(ValueError, match="no weights"):
            loaded.load(classifier.encoder, device)
    assert loaded.load(classifier.encoder, device) is loaded.load(classifier.encoder, device)


def fail(encoder: Encoder, device: torch.device) -> Towers:
    raise ValueError("no weights")


def test_threads_load_once(classifier: ImageClassifier, images: list[Path], loads: list[Encoder]) -> None:
    expected = classifier.predict(images[0])
    classifier.loaded = LoadedEncoder()
    loads.clear()
    with ThreadPoolExecutor(4) as threads:
        results = list(threads.map(lambda _: classifier.predict(images[0]), range(8)))
    assert all(np.array_equal(result, expected) for result in results)
    assert len(loads) == 1


def pickled(holder: LoadedEncoder) -> LoadedEncoder:
    return pickle.loads(pickle.dumps(holder))


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_copied_and_pickled_holders_are_empty(
    classifier: ImageClassifier, loads: list[Encoder], copied: Callable[[LoadedEncoder], LoadedEncoder]
) -> None:
    device = torch.device("cpu")
    classifier.loaded.load(classifier.encoder, device)
    other = copied(classifier.loaded)
    other.load(classifier.encoder, device)
    assert len(loads) == 2


def test_weights_go_with_the_classifier(classifier: ImageClassifier, images: list[Path]) -> None:
    towers = classifier.load_encoder().towers
    alive = weakref.ref(towers)
    del towers
    classifier.loaded = LoadedEncoder()
    gc.collect()
    assert alive() is None


@pytest.mark.parametrize(("exact", "rows"), [(True, CPU_ROWS), (False, 1)])
def test_single_image_may_have_a_pass_of_its_own(
    classifier: ImageClassifier, images: list[Path], monkeypatch: pytest.MonkeyPatch, exact: bool, rows: int
) -> None:
    expected = next(classifier.classify(images[0]))
    towers = classifier.load_encoder().towers
    encode = towers.images
    passes: list[int] = []

    def counting(pixels: Tensor) -> Tensor:
        passes.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(towers, "images", counting)
    classifier.exact = exact
    prediction = next(classifier.classify(images[0]))

    assert passes == [rows]
    assert prediction.label == expected.label
    assert prediction.score == pytest.approx(expected.score, abs=1e-5)


def test_files_may_go_once_they_are_loaded(classifier: ImageClassifier, images: list[Path], tmp_path: Path) -> None:
    saved = classifier.save(tmp_path / "saved", with_encoder=True)
    packed = load_classifier(saved)
    expected = classifier.predict(images)
    packed.load_encoder()
    shutil.rmtree(saved)
    assert np.array_equal(packed.predict(images), expected)
