"""Tests that `lgclip doctor` reports the actual state."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from dataset_trees import build_tree
from factories import put_in_hub_cache
from huggingface_hub import constants
from hydra import compose, initialize_config_dir

from lgclip.cli import doctor
from lgclip.cli.doctor import COPY, DOWNLOADABLE, KEY, READY, Finding
from lgclip.cli.main import main
from lgclip.encoder.presets import OPEN_CLIP_REPOSITORIES
from lgclip.runtime.cores import usable_cores
from lgclip.runtime.instantiate import build

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(autouse=True)
def empty_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("OPENAI_API_KEY", "XAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "LGCLIP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def findings_of(group: str) -> dict[str, Finding]:
    return {finding.choice.partition("=")[2]: finding for finding in doctor.parts(CONF, group)}


@pytest.mark.parametrize("group", ["dataset", "encoder", "llm", "diffuser"])
def test_report_covers_every_choice(group: str) -> None:
    findings = findings_of(group)
    assert findings.keys() == {path.stem for path in (CONF / group).glob("*.yaml")}
    assert {finding.state for finding in findings.values()} <= {READY, DOWNLOADABLE, COPY, KEY}


def test_data_set_state_follows_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    findings = findings_of("dataset")
    assert findings["shapes"] == Finding(READY, "dataset=shapes", "part of the package")
    assert findings["folder"] == Finding(COPY, "dataset=folder", "add dataset.root=...")
    assert findings["eurosat"] == Finding(DOWNLOADABLE, "dataset=eurosat", "add dataset.download=true")
    assert findings["imagenet"].state == COPY
    monkeypatch.setenv("LGCLIP_DATA", str(tmp_path / "data"))
    build_tree("eurosat", tmp_path / "data" / "eurosat")
    partial = findings_of("dataset")["eurosat"]
    assert partial.state == DOWNLOADABLE
    assert "50 images found" in partial.detail, "a part of it is not the data set"


def test_model_state_follows_package_and_hub_cache(tmp_path: Path) -> None:
    encoders = findings_of("encoder")
    generators = findings_of("llm")
    assert {part["tiny"].state for part in (encoders, generators, findings_of("diffuser"))} == {READY}
    assert encoders["dinov2_b14"] == Finding(DOWNLOADABLE, "encoder=dinov2_b14", "timm/vit_base_patch14_dinov2.lvd142m")
    assert generators["template"].state == READY
    assert generators["official_standin"].detail == generators["qwen3_4b"].detail, "it derives from that choice"
    snapshot = put_in_hub_cache(tmp_path / "hub", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert findings_of("diffuser")["sd15"].state == DOWNLOADABLE, "an empty copy does not count"
    (snapshot / "model_index.json").write_text("{}")
    assert findings_of("diffuser")["sd15"] == Finding(READY, "diffuser=sd15", "in the hub's cache")


@pytest.mark.slow
def test_encoder_repositories_are_those_of_their_library() -> None:
    findings = findings_of("encoder")
    checked = set()
    for path in (CONF / "encoder").glob("*.yaml"):
        finding = findings[path.stem]
        # Weights of a package are of no repository.
        if finding.state != DOWNLOADABLE or finding.detail.startswith("pip install"):
            continue
        with initialize_config_dir(str(CONF), version_base="1.3"):
            encoder = build(compose("evaluate", [f"encoder={path.stem}"]).encoder, _convert_="all")
        assert finding.detail == ", ".join(name for name, _ in encoder.repositories())
        checked.add(path.stem)
    assert checked >= OPEN_CLIP_REPOSITORIES.keys()


def test_server_needs_its_key_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert findings_of("llm")["official"] == Finding(KEY, "llm=official", "set the environment variable XAI_API_KEY")
    assert findings_of("llm")["vllm"].state == COPY, "a server without a key has to be started"
    monkeypatch.setenv("XAI_API_KEY", "secret-words")
    assert findings_of("llm")["official"] == Finding(READY, "llm=official", "a server at https://api.x.ai/v1")
    assert "secret" not in "".join(map(str, doctor.accounts()))


def test_outdated_package_is_reported_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    installed, problems = doctor.packages()
    assert f"torch {version('torch')}" in installed
    assert "pytest" not in installed
    assert problems == []
    real = version
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "timm" else real(name))
    _, (problem,) = doctor.packages()
    assert problem.startswith("package timm 0.0.1 does not fit: pip install 'timm")
    assert next(doctor.report(CONF)) == f"Not ready: {problem}"


def test_missing_package_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> str:
        if name in ("timm", "peft"):
            raise doctor.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    _, (problem,) = doctor.packages()
    assert problem.startswith("package timm is missing")
    assert "lora" in doctor.missing_extras()


def test_unwritable_store_is_not_ready(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = list(doctor.report(CONF, str(tmp_path / "file" / "store")))
    assert report[0].startswith(f"Not ready: store {tmp_path / 'file' / 'store'}")
    line, problems = doctor.check_store(str(tmp_path / "store"))
    assert line.startswith(f"{tmp_path / 'store'}: 0 files, 0 bytes; ")
    assert problems == []


def test_command_starts_with_the_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--store", str(tmp_path / "store")]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Ready: python evaluate.py\n")
    for section in ("data sets", "encoders", "language models", "diffusion models", "accounts"):
        assert f"\n{section}\n" in output
    assert f"{usable_cores()} CPU core" in output


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux can bind processes")
def test_cores_are_those_of_this_process() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert doctor.machine().startswith("1 CPU core")
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.multiprocess
def test_command_is_quick_and_needs_no_network() -> None:
    """Runs where sockets are refused, and imports no library of models."""
    code = (
        "import socket, sys; socket.socket.connect = lambda *a: (_ for _ in ()).throw(OSError('no network'))\n"
        "from lgclip.cli.main import main; status = main(['doctor'])\n"
        "assert not {'torch', 'transformers', 'diffusers', 'open_clip', 'timm'} & sys.modules.keys()\n"
        "sys.exit(status)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert completed.returncode == 0, completed.stderr
    assert "encoder=tiny" in completed.stdout
