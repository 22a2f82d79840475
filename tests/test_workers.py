"""Images decoded in worker processes: the same features, in batches that do not grow with the views."""

import pickle
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning import Trainer
from PIL import Image
from worlds import encoder_folder, picture_folder

from lgclip.data import CPU_ROWS, Stream, Streams, _Pictures
from lgclip.datasets.base import Dataset
from lgclip.datasets.folder import Folder
from lgclip.datasets.small import Digits, Shapes
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.encoding import Encoding, SharedViews
from lgclip.feature_store import FeatureStore
from lgclip.features import real_stream
from lgclip.scales import Scales, SquareCrops
from lgclip.stages import StageBar, Stages, quiet

SCALES = SquareCrops(fractions=(1.0, 0.5, 0.25), weights=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoder_folder(tmp_path_factory.mktemp("model") / "encoder"))


def encoded(stream: Stream, encoder: OpenClip, scales: Scales, workers: int) -> tuple[Streams, Stages]:
    """Runs the stage as `features.encode` does, on one stream."""
    quiet()
    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False, callbacks=[StageBar()]
    )
    data = Streams([stream], 3, SharedViews(encoder, scales), encoder.batch_size, workers)
    stages = Stages(trainer)
    stages.complete("features", Encoding(encoder, data), len(stream.ids), data)
    return data, stages


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")  # this machine may be small
def test_worker_processes_give_the_features_that_one_process_gives(model: str, tmp_path: Path) -> None:
    dataset = Folder(str(picture_folder(tmp_path / "pictures")))
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    found = []
    for workers in (0, 2):
        stream = real_stream(dataset, encoder, SCALES, tmp_path / f"store{workers}")
        encoded(stream, encoder, SCALES, workers)
        found.append(stream.features())
    assert found[0].shape[:2] == (12, 3)
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=0)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")
def test_an_unreadable_image_in_a_worker_is_kept_with_its_reason_and_the_others_are_encoded(
    model: str, tmp_path: Path
) -> None:
    root = picture_folder(tmp_path / "pictures")
    (root / "green_ring" / "1.png").write_bytes(b"not an image")
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    stream = real_stream(Folder(str(root)), encoder, SCALES, tmp_path / "store")
    _, stages = encoded(stream, encoder, SCALES, 2)
    assert (stages.accounts[0].made, stream.missing(), stream.unread()) == (
        12,
        [],
        {5: "it is no image of a known kind"},
    )


def test_an_image_is_decoded_once_for_all_its_views_and_stored_in_whole_files(model: str, tmp_path: Path) -> None:
    decoded: Counter[int] = Counter()
    seen: list[int] = []

    def load(at: int) -> Image.Image:
        decoded[at] += 1
        return Image.new("RGB", (40, 30), (at * 10, 0, 0))

    class Watched(Encoding):
        def predict_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
            seen.append(batch.views.flatten(0, 1).shape[0])
            super().predict_step(batch, batch_idx, dataloader_idx)

    encoder = OpenClip(model, precision="fp32", batch_size=7)
    store = FeatureStore(tmp_path, encoder.inputs(), {"source": "here"})
    names = [f"image-{at}" for at in range(24)]
    stream = Stream("real", names, [0] * 24, SCALES.views, store, load)
    quiet()
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    data = Streams([stream], 1, SharedViews(encoder, SCALES), encoder.batch_size)
    Stages(trainer).complete("features", Watched(encoder, data), 24, data)
    assert decoded == dict.fromkeys(range(24), 1)
    assert seen == [6] * 12, "batches of 7 views at most: 2 images with 3 views each"
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3, "files of at least 7 images, and the rest"
    assert stream.features().shape[:2] == (24, 3)


def test_more_views_than_fit_into_a_batch_still_make_one_image_a_batch(model: str, tmp_path: Path) -> None:
    encoder = OpenClip(model, precision="fp32", batch_size=2)
    dataset = Folder(str(picture_folder(tmp_path / "pictures", each=1)))
    data, stages = encoded(real_stream(dataset, encoder, SCALES, tmp_path / "store"), encoder, SCALES, 0)
    assert stages.accounts[0].made == 3
    assert data.streams[0].features().shape[:2] == (3, 3)


@pytest.mark.parametrize("views", [1, 3, 10, 40])
def test_every_device_starts_a_pass_where_one_device_would(model: str, tmp_path: Path, views: int) -> None:
    """And each thing is one device's, also where it has more views than a pass."""
    encoder, n = OpenClip(model, precision="fp32"), 200
    names, seen = [f"image-{at}" for at in range(n)], [f"view-{at}" for at in range(views)]
    store = FeatureStore(tmp_path, encoder.inputs(), {"source": "here"})
    stream = Stream("text", names, [0] * n, seen, store, lambda at: names[at])
    data, taken = Streams([stream], 1, SharedViews(encoder, SCALES), 7), []
    for rank in range(3):
        strategy = SimpleNamespace(root_device=torch.device("cpu"))
        one: Any = SimpleNamespace(global_rank=rank, world_size=3, strategy=strategy)
        data.trainer = one
        (loader,) = data.predict_dataloader()
        own = [int(name.removeprefix("image-")) for batch in loader for name, _ in batch]
        begins = [at * views % CPU_ROWS for at in range(n)]
        assert [place * views % CPU_ROWS for place in range(len(own))] == [begins[at] for at in own]
        taken += own
    assert sorted(taken) == list(range(n))


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*:UserWarning")
def test_no_more_workers_start_than_there_are_batches(model: str, tmp_path: Path) -> None:
    encoder = OpenClip(model, precision="fp32", batch_size=6)
    dataset = Folder(str(picture_folder(tmp_path / "pictures")))
    data = Streams(
        [real_stream(dataset, encoder, SCALES, tmp_path / "store")], 3, SharedViews(encoder, SCALES), 6, workers=64
    )
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()])
    (loader,) = data.predict_dataloader()
    assert loader.num_workers == 6, "12 images, 2 a batch"
    assert loader.multiprocessing_context.get_start_method() in ("forkserver", "spawn")  # pyright: ignore
    assert not loader.persistent_workers
    encoded(data.streams[0], encoder, SCALES, 0)
    (loader,) = data.predict_dataloader()
    assert loader.num_workers == 0, "nothing is left to do"


def test_what_a_worker_needs_can_be_sent_to_it(model: str, tmp_path: Path) -> None:
    """Data set, encoder and crops go through a pickle of their own when a worker starts."""
    datasets: list[Dataset] = [Shapes(), Digits(), Folder(str(picture_folder(tmp_path / "pictures")))]
    for dataset in datasets:
        for encoder in (OpenClip(model), Timm("vit_small_patch14_dinov2.lvd142m")):
            stream = Stream(
                "real", dataset.ids, dataset.labels, ("whole",), FeatureStore(tmp_path, {}, {}), dataset.image
            )
            sent: Any = pickle.loads(pickle.dumps(_Pictures(stream, [1, 2], SharedViews(encoder, SquareCrops()))))
            assert len(sent) == 2
            if isinstance(encoder, OpenClip):
                name, views = sent[0]
                assert name == dataset.ids[1]
                assert torch.equal(views, SharedViews(encoder, SquareCrops())(dataset.image(1), name))
