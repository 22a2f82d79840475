"""Tests `lgclip fetch` on a hub that only records what is asked of it."""

from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from factories import HUB_COMMIT, put_in_hub_cache
from huggingface_hub import constants

from lgclip.cli.main import main

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Records the repository and the commit of each download; the commits are those in the hub's cache."""
    recorded: list[tuple[str, str]] = []

    def record(repository: str, *names: str, revision: str, **_: Any) -> str:
        recorded.append((repository, revision))
        return str(tmp_path / "file.safetensors")

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", record)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", record)
    monkeypatch.setattr(DiffusionPipeline, "download", record)
    return recorded


def test_package_models_need_no_download(requests: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch"]) == 0
    assert capsys.readouterr().out == "data set  shapes, test (held-out kinds): 1,200 images\n"
    assert requests == []


def test_models_are_downloaded_at_their_commit(
    requests: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    llm = "Qwen/Qwen3-4B-Instruct-2507"
    diffuser = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    encoder = "timm/vit_small_patch14_dinov2.lvd142m"
    for repository in (llm, diffuser, encoder):
        put_in_hub_cache(tmp_path / "hub", repository)
    assert main(["fetch", "llm=qwen3_4b", "diffuser=sd15", "encoder=dinov2_s14", "diffuser.revision=null"]) == 0
    assert requests == [(repository, HUB_COMMIT) for repository in (llm, diffuser, encoder)]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [f"llm       {llm}", f"diffuser  {diffuser}", f"encoder   {encoder}"]


def test_image_folder_needs_no_language_model(requests: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    assert main(["fetch", "llm=qwen3_4b", "diffuser=folder", f"diffuser.root={tmp_path / 'images'}"]) == 0
    assert requests == []


@pytest.mark.parametrize("text", ["llm", "descriptors"])
def test_sentences_need_the_language_model(requests: list[tuple[str, str]], tmp_path: Path, text: str) -> None:
    llm = "Qwen/Qwen3-4B-Instruct-2507"
    put_in_hub_cache(tmp_path / "hub", llm)
    (tmp_path / "images").mkdir()
    folder = f"diffuser.root={tmp_path / 'images'}"
    assert main(["fetch", "llm=qwen3_4b", "diffuser=folder", folder, f"text={text}"]) == 0
    assert requests == [(llm, HUB_COMMIT)]


@pytest.mark.slow
def test_sweep_fetches_every_model_once(
    requests: list[tuple[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {
        "dinov2_s14": "timm/vit_small_patch14_dinov2.lvd142m",
        "dinov2_b14": "timm/vit_base_patch14_dinov2.lvd142m",
    }
    for repository in names.values():
        put_in_hub_cache(tmp_path / "hub", repository)
    assert main(["fetch", "-m", f"encoder={','.join(names)}", "seed=0,1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:] == [f"encoder   {repository}" for repository in names.values()]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("encoder=nope", "error: no encoder=nope: choose dinov2_b14"),
        ("nope=1", "Could not override 'nope'"),
        ("encoder.batch_size=0", "encoder.batch_size=0: it must be at least 1"),
    ],
)
def test_invalid_override_is_an_error(override: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", override]) == 1
    assert message in capsys.readouterr().err


def test_unreachable_hub_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert main(["fetch", "encoder=dinov2_s14"]) == 1
    assert "the hub cannot be reached" in capsys.readouterr().err
