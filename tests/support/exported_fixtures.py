"""Fixtures of exported classifiers: an encoder, a classifier by it, and a machine without a GPU."""

from pathlib import Path

import pytest
import torch
from exported_classifiers import make_classifier
from factories import make_encoder

from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.open_clip import OpenClip


@pytest.fixture
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU, so that the classifier's own encoder is fp32 on every machine."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder") / "encoder")


@pytest.fixture(scope="module")
def classifier(folder: Path) -> ImageClassifier:
    torch.manual_seed(0)
    return make_classifier(OpenClip(str(folder)))
