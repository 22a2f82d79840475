"""Tests image decoding in workers: the same features, in batches that do not grow with the views."""

import pickle
from collections import Counter
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from factories import make_encoder, make_image_folder
from lightning import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from lgclip.datasets.base import Dataset
from lgclip.datasets.embedded import Digits, Shapes
from lgclip.datasets.folder import Folder
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.scales import Scales, SquareCrops
from lgclip.encoder.timm import Timm
from lgclip.encoder.views import SharedViews
from lgclip.stages.extract import real_stream
from lgclip.stages.features import FeatureExtractionStage
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.stages.streams import CPU_ROWS, Stream, Streams, _StreamImages
from lgclip.store.features import FeatureStore
from lgclip.types import Role

SCALES = SquareCrops(fractions=(1.0, 0.5, 0.25), weights=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_encoder(tmp_path_factory.mktemp("model") / "encoder"))


def encoded(stream: Stream, encoder: OpenClip, scales: Scales, workers: int) -> tuple[Streams, Stages]:
    """Runs the stage on one stream, as `features.encode` does."""
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[StageBar()]
    )
    data = Streams([stream], 3, SharedViews(encoder, scales), encoder.batch_size, workers)
    stages = Stages(trainer)
    stages.complete("features", FeatureExtractionStage(encoder, data), len(stream.ids), data)
    return data, stages


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")  # this machine may be small
def test_workers_give_the_same_features(model: str, tmp_path: Path) -> None:
    dataset = Folder(str(make_image_folder(tmp_path / "pictures")))
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    features = []
    for workers in (0, 2):
        stream = real_stream(dataset, encoder, SCALES, tmp_path / f"store{workers}")
        encoded(stream, encoder, SCALES, workers)
        features.append(stream.features())
    assert features[0].shape[:2] == (12, 3)
    torch.testing.assert_close(features[1], features[0], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")
@pytest.mark.slow
def test_unreadable_image_in_a_worker_is_skipped(model: str, tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "pictures")
    (root / "green_ring" / "1.png").write_bytes(b"not an image")
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    stream = real_stream(Folder(str(root)), encoder, SCALES, tmp_path / "store")
    _, stages = encoded(stream, encoder, SCALES, 2)
    assert (stages.stage_stats[0].computed, stream.missing(), stream.unread()) == (
        12,
        [],
        {5: "it is no image of a known kind"},
    )


def test_image_is_decoded_once_for_all_views(model: str, tmp_path: Path) -> None:
    decoded: Counter[int] = Counter()
    seen: list[int] = []

    def load(index: int) -> Image.Image:
        decoded[index] += 1
        return Image.new("RGB", (40, 30), (index * 10, 0, 0))

    class Watched(FeatureExtractionStage):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(batch.views.flatten(0, 1).shape[0])
            super().predict_step(batch, batch_idx, dataloader_idx)

    encoder = OpenClip(model, precision="fp32", batch_size=7)
    store = FeatureStore(tmp_path, encoder.inputs(), {"source": "here"})
    names = [f"image-{index}" for index in range(24)]
    stream = Stream("real", names, [0] * 24, SCALES.views, store, load)
    quiet()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    data = Streams([stream], 1, SharedViews(encoder, SCALES), encoder.batch_size)
    Stages(trainer).complete("features", Watched(encoder, data), 24, data)
    assert decoded == dict.fromkeys(range(24), 1)
    assert seen == [6] * 12, "batches of 7 views at most: 2 images with 3 views each"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3, "files of at least 7 images, and the rest"
    assert stream.features().shape[:2] == (24, 3)


def test_many_views_form_one_batch(model: str, tmp_path: Path) -> None:
    encoder = OpenClip(model, precision="fp32", batch_size=2)
    dataset = Folder(str(make_image_folder(tmp_path / "pictures", per_class=1)))
    data, stages = encoded(real_stream(dataset, encoder, SCALES, tmp_path / "store"), encoder, SCALES, 0)
    assert stages.stage_stats[0].computed == 3
    assert data.streams[0].features().shape[:2] == (3, 3)


@pytest.mark.parametrize("views", [1, 3, 10, 40])
def test_device_batches_match_one_device(model: str, tmp_path: Path, views: int) -> None:
    """Checks that each item belongs to one device, also if it has more views than a pass."""
    encoder = OpenClip(model, precision="fp32")
    n = 200
    names = [f"image-{index}" for index in range(n)]
    seen = [f"view-{index}" for index in range(views)]
    store = FeatureStore(tmp_path, encoder.inputs(), {"source": "here"})
    stream = Stream("text", names, [0] * n, seen, store, lambda index: names[index], role=Role.TEXT)
    data = Streams([stream], 1, SharedViews(encoder, SCALES), 7)
    indices_taken = []
    for rank in range(3):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        trainer: Any = SimpleNamespace(global_rank=rank, world_size=3, strategy=strategy)
        data.trainer = trainer
        (loader,) = data.predict_dataloader()
        indices = [int(name.removeprefix("image-")) for name, _ in chain.from_iterable(loader)]
        begins = [index * views % CPU_ROWS for index in range(n)]
        assert [place * views % CPU_ROWS for place in range(len(indices))] == [begins[index] for index in indices]
        indices_taken += indices
    assert sorted(indices_taken) == list(range(n))


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")
def test_workers_do_not_exceed_batches(model: str, tmp_path: Path) -> None:
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    dataset = Folder(str(make_image_folder(tmp_path / "pictures")))
    data = Streams(
        [real_stream(dataset, encoder, SCALES, tmp_path / "store")], 3, SharedViews(encoder, SCALES), 6, workers=64
    )
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    (loader,) = data.predict_dataloader()
    assert isinstance(loader, DataLoader)
    assert loader.num_workers == 6, "12 images, 2 a batch"
    assert loader.multiprocessing_context.get_start_method() in ("forkserver", "spawn")  # pyright: ignore
    assert not loader.persistent_workers
    encoded(data.streams[0], encoder, SCALES, 0)
    (loader,) = data.predict_dataloader()
    assert isinstance(loader, DataLoader)
    assert loader.num_workers == 0, "nothing is left to do"


def test_worker_inputs_are_picklable(model: str, tmp_path: Path) -> None:
    """Checks that data set, encoder and crops can be pickled for a worker."""
    datasets: list[Dataset] = [Shapes(), Digits(), Folder(str(make_image_folder(tmp_path / "pictures")))]
    for dataset in datasets:
        for encoder in (OpenClip(model), Timm("vit_small_patch14_dinov2.lvd142m")):
            stream = Stream(
                "real", dataset.ids, dataset.labels, ("whole",), FeatureStore(tmp_path, {}, {}), dataset.image
            )
            sent: Any = pickle.loads(pickle.dumps(_StreamImages(stream, [1, 2], SharedViews(encoder, SquareCrops()))))
            assert len(sent) == 2
            if isinstance(encoder, OpenClip):
                name, views, _ = sent[0]
                assert name == dataset.ids[1]
                assert torch.equal(views, SharedViews(encoder, SquareCrops())(dataset.image(1), name))
