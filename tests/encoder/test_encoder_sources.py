"""Tests where an encoder's weights come from: open_clip's list, the hub's cache, a local hub, files."""

import io
import json
import shutil
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import open_clip
import pytest
import torch
from factories import HUB_COMMIT, make_encoder, put_in_hub_cache
from hub_server import use_hub_address
from huggingface_hub import constants
from open_clip import factory
from PIL import Image
from safetensors.torch import load_file, save_file

from lgclip.encoder.base import Towers
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.open_clip_catalogue import Named
from lgclip.runtime.hub import HubError, commit_of
from lgclip.store.keys import content_key

CPU = torch.device("cpu")
SENTENCES = ["a photo of a red star.", "", "a drawing of a blue moon."]


@pytest.fixture(autouse=True)
def without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hides the GPU, so that `auto` is fp32 everywhere."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def towers(folder: Path) -> Towers:
    return OpenClip(str(folder), precision="fp32").load(CPU)


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_pickle_is_read_only_on_request(folder: Path, towers: Towers, tmp_path: Path) -> None:
    pickled = shutil.copytree(folder, tmp_path / "pickled")
    weights = load_file(pickled / "open_clip_model.safetensors")
    (pickled / "open_clip_model.safetensors").unlink()
    torch.save(weights, pickled / "open_clip_pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"open_clip_pytorch_model\.bin is a pickle, which can run code; .*allow_pickle"
    ):
        OpenClip(str(pickled)).load(CPU)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(OpenClip(str(pickled), allow_pickle=True).load(CPU).images(pixels), towers.images(pixels))
    torch.save({"state_dict": weights, "epoch": Bomb(tmp_path / "ran")}, pickled / "open_clip_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"cannot be built from .*open_clip_pytorch_model\.bin: "):
        OpenClip(str(pickled), allow_pickle=True).load(CPU)
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def small_architecture(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Adds an architecture `Small` to open_clip's list, with weights `web` on the hub; yields its snapshot."""
    commit_of.cache_clear()
    config = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    config["text_cfg"]["hf_tokenizer_name"] = "owner/words"
    listed = tmp_path / "architectures"
    listed.mkdir()
    (listed / "Small.json").write_text(json.dumps(config))
    (listed / "Small-quickgelu.json").write_text(json.dumps({**config, "quick_gelu": True}))
    open_clip.add_model_config(listed)
    entry = {"url": "", "hf_hub": "owner/small/", "mean": (0.5,) * 3, "std": (0.25,) * 3, "interpolation": "bilinear"}
    weights = {"web": entry, "quick": {**entry, "quick_gelu": True}}
    for name in ("Small", "Small-quickgelu"):
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, weights)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    snapshot = put_in_hub_cache(tmp_path / "hub", "owner/small")
    shutil.copy(folder / "open_clip_model.safetensors", snapshot)
    words = put_in_hub_cache(tmp_path / "hub", "owner/words")
    for file in folder.glob("*.json"):
        shutil.copy(file, words)
    yield snapshot
    factory._MODEL_CONFIG_PATHS.remove(listed)
    for name in ("Small", "Small-quickgelu"):
        del factory._MODEL_CONFIGS[name]


def test_named_model_uses_the_commit_in_its_key(small_architecture: Path, towers: Towers) -> None:
    encoder = OpenClip("Small", "web")
    inputs: Any = encoder.inputs()
    assert inputs["encoder"]["model"] == {
        "architecture": "Small",
        "weights": f"owner/small@{HUB_COMMIT}",
        "hf_tokenizer_name": f"owner/words@{HUB_COMMIT}",
    }
    assert (inputs["encoder"]["pretrained"], inputs["preprocessing"]["interpolation"]) == ("web", "bilinear")
    pixels = torch.randn(2, 3, 32, 32)
    loaded = encoder.load(CPU)
    assert torch.equal(loaded.images(pixels), towers.images(pixels))
    assert torch.equal(loaded.texts(SENTENCES), towers.texts(SENTENCES))
    # `main` moves on to a commit with other weights: another key, and its weights.
    later = small_architecture.parent / ("f" * 40)
    later.mkdir()
    weights = load_file(small_architecture / "open_clip_model.safetensors")
    save_file({name: -weight for name, weight in weights.items()}, later / "open_clip_model.safetensors")
    (small_architecture.parents[1] / "refs" / "main").write_text("f" * 40)
    commit_of.cache_clear()
    assert content_key(encoder.inputs()) != content_key(inputs)
    assert not torch.allclose(encoder.load(CPU).images(pixels), towers.images(pixels), atol=1e-2)
    pinned = OpenClip("Small", "web", revision=HUB_COMMIT)
    assert content_key(pinned.inputs()) == content_key(inputs)
    assert torch.equal(pinned.load(CPU).images(pixels), towers.images(pixels))


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    """Serves a hub with one commit and the files put into it by `OWNER/NAME/FILE`; the cache is empty."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            repo, _, file = self.path.strip("/").partition(f"/resolve/{HUB_COMMIT}/")
            result = files.get(f"{repo}/{file}")
            info = {"sha": HUB_COMMIT, "id": repo, "siblings": []}
            body = json.dumps(info).encode() if self.path.startswith("/api/models/") else result
            self.send_response(404 if body is None else 200)
            for name, value in {
                "Content-Length": str(len(body or b"")), "X-Repo-Commit": HUB_COMMIT,
                **({"X-Error-Code": "EntryNotFound"} if body is None else {"ETag": f'"{hash(self.path)}"'}),
            }.items():  # fmt: skip
                self.send_header(name, value)
            self.end_headers()
            if body is not None and self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD  # noqa: N815

        def log_message(self, format: str, *args: Any) -> None:
            pass

    commit_of.cache_clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        use_hub_address(f"http://127.0.0.1:{server.server_address[1]}", monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
        yield files
        server.shutdown()


def test_download_prefers_safetensors_at_the_commit(
    small_architecture: Path, served: dict[str, bytes], folder: Path
) -> None:
    safe = (folder / "open_clip_model.safetensors").read_bytes()
    pickled = io.BytesIO()
    torch.save(load_file(folder / "open_clip_model.safetensors"), pickled)
    served["owner/small/open_clip_pytorch_model.bin"] = pickled.getvalue()
    source = Named("Small", "web")
    with pytest.raises(
        ValueError, match=r"'owner/small' holds no open_clip_model\.safetensors at 0123.*allow_pickle=true"
    ):
        source.weights(False)
    assert source.weights(True).name == "open_clip_pytorch_model.bin"
    served["owner/small/open_clip_model.safetensors"] = safe
    for allowed in (False, True):
        assert source.weights(allowed).read_bytes() == safe
    assert source.weights(False).parent.name == HUB_COMMIT


def test_repository_config_is_used(small_architecture: Path, folder: Path, towers: Towers) -> None:
    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["text_cfg"]["hf_tokenizer_name"] = "owner/words"
    config["preprocess_cfg"] = {"mean": [0.1, 0.2, 0.3], "size": [64, 64]}
    (small_architecture / "open_clip_config.json").write_text(json.dumps(config))
    encoder = OpenClip("hf-hub:owner/small")
    inputs: Any = encoder.inputs()
    assert inputs["encoder"]["model"]["repository"] == f"owner/small@{HUB_COMMIT}"
    plain = encoder.transform()(Image.new("RGB", (32, 32)))  # 32: the tower's size, as in open_clip
    torch.testing.assert_close(
        plain[:, 0, 0] * torch.tensor(open_clip.OPENAI_DATASET_STD), torch.tensor([-0.1, -0.2, -0.3])
    )
    assert plain.shape == (3, 32, 32)
    pixels = torch.randn(2, 3, 32, 32)
    loaded = encoder.load(CPU)
    assert torch.equal(loaded.images(pixels), towers.images(pixels))
    assert torch.equal(loaded.texts(SENTENCES), towers.texts(SENTENCES))


def test_missing_model_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for encoder in (OpenClip("ViT-B-16-quickgelu", "openai"), OpenClip("hf-hub:owner/name")):
        with pytest.raises(HubError, match=r"the hub cannot be reached and there is no copy in its cache; .*") as error:
            encoder.inputs()
        assert "\n" not in str(error.value)


def test_checkpoint_of_a_named_architecture_is_loaded(small_architecture: Path, towers: Towers, tmp_path: Path) -> None:
    weights = load_file(small_architecture / "open_clip_model.safetensors")
    safe = tmp_path / "mine.safetensors"
    bundle = tmp_path / "mine.pt"
    save_file(weights, safe)
    torch.save({"state_dict": {f"module.{name}": weight for name, weight in weights.items()}}, bundle)
    pixels = torch.randn(2, 3, 32, 32)
    for encoder in (
        OpenClip("Small", checkpoint=str(safe)),
        OpenClip("Small", checkpoint=str(bundle), allow_pickle=True),
    ):
        assert torch.equal(encoder.load(CPU).images(pixels), towers.images(pixels))
        assert "owner/small" not in json.dumps(encoder.inputs())
    with pytest.raises(ValueError, match=r"checkpoint=.*mine\.pt is a pickle, which can run code"):
        OpenClip("Small", checkpoint=str(bundle))
    tuned = OpenClip("Small", "web", checkpoint=str(safe))
    assert tuned.inputs()["preprocessing"] == OpenClip("Small", "web").inputs()["preprocessing"]
    assert tuned.inputs()["preprocessing"] != OpenClip("Small", checkpoint=str(safe)).inputs()["preprocessing"]


def test_mismatched_checkpoint_is_one_line(small_architecture: Path, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.safetensors"
    bomb = tmp_path / "bomb.pth"
    save_file({"visual.proj": torch.zeros(3, 3)}, wrong)
    torch.save(Bomb(tmp_path / "ran"), bomb)
    for path in (wrong, bomb):
        with pytest.raises(ValueError, match=rf"encoder\.model=Small cannot be built from {path}: ") as error:
            OpenClip("Small", checkpoint=str(path), allow_pickle=True).load(CPU)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ValueError, match="no such file"):
        OpenClip("Small", checkpoint=str(tmp_path / "none.safetensors"))
    (tmp_path / "a.npz").touch()
    with pytest.raises(ValueError, match=r"expected \.safetensors, or \.bin \.pt \.pth with allow_pickle=true"):
        OpenClip("Small", checkpoint=str(tmp_path / "a.npz"))


def test_bundled_weights_exclude_others(folder: Path) -> None:
    extra: dict[str, Any]
    for extra in ({"pretrained": "openai"}, {"checkpoint": "a.safetensors"}):
        with pytest.raises(ValueError, match=r"brings its own weights: .*leave them null"):
            OpenClip(str(folder), **extra)
    with pytest.raises(ValueError, match=r"encoder\.model=ViT-B-32: which weights\?"):
        OpenClip("ViT-B-32")


def test_quick_gelu_changes_features(small_architecture: Path) -> None:
    """Checks why a mismatch is rejected: the wrong activation loads silently and gives other features."""
    pixels = torch.randn(2, 3, 32, 32)
    right = OpenClip("Small", "web")
    quick = OpenClip("Small-quickgelu", "quick")
    assert (right.load(CPU).images(pixels) - quick.load(CPU).images(pixels)).norm() > 1e-3
    with pytest.raises(
        ValueError, match=r"the weights quick were trained with QuickGELU; use encoder\.model=Small-quickgelu"
    ):
        OpenClip("Small", "quick")
    with pytest.raises(ValueError, match=r"the weights web were trained without QuickGELU; use encoder\.model=Small$"):
        OpenClip("Small-quickgelu", "web")
