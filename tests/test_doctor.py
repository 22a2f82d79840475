"""What the doctor says is what is so."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from fixture_trees import tree
from huggingface_hub import constants
from worlds import put_in_hub_cache

from lgclip import doctor
from lgclip.cli import main
from lgclip.doctor import ASKS, FETCH, MISSING, READY, Finding

CONF = Path(__file__).parents[1] / "conf"


@pytest.fixture(autouse=True)
def nothing_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("OPENAI_API_KEY", "XAI_API_KEY", "WANDB_API_KEY", "HF_TOKEN", "LGCLIP_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def found(group: str) -> dict[str, Finding]:
    return {finding.what.partition("=")[2]: finding for finding in doctor.parts(CONF, group)}


def test_every_choice_of_every_group_is_looked_at() -> None:
    for group in ("dataset", "encoder", "llm", "diffuser"):
        assert found(group).keys() == {path.stem for path in (CONF / group).glob("*.yaml")}


def test_a_data_set_is_ready_when_its_files_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = found("dataset")
    assert (before["shapes"].state, before["shapes"].said) == (READY, "test (held-out kinds): 30 classes, 1,200 images")
    assert before["folder"] == Finding(ASKS, "dataset=folder", "give dataset.root=...")
    assert before["eurosat"].state == MISSING
    assert "dataset.download=true" in before["eurosat"].said
    monkeypatch.setenv("LGCLIP_DATA", str(tmp_path / "data"))
    tree("eurosat", tmp_path / "data" / "eurosat")
    partial = found("dataset")["eurosat"]
    assert partial.state == MISSING
    assert "50 images found" in partial.said, "a part of it is not the data set"


def test_a_model_is_ready_in_the_package_or_in_the_hubs_cache(tmp_path: Path) -> None:
    encoders, diffusers, writers = found("encoder"), found("diffuser"), found("llm")
    assert {part["tiny"].state for part in (encoders, diffusers, writers)} == {READY}
    assert encoders["dinov2_b14"].state == FETCH
    assert "timm/vit_base_patch14_dinov2.lvd142m" in encoders["dinov2_b14"].said
    assert writers["template"].state == READY
    snapshot = put_in_hub_cache(tmp_path / "hub", "stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert found("diffuser")["sd15"].state == FETCH, "an empty copy is none"
    (snapshot / "model_index.json").write_text("{}")
    assert found("diffuser")["sd15"] == Finding(READY, "diffuser=sd15", "in the hub's cache")


def test_a_server_asks_for_its_key_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = found("llm")["official"]
    assert asked.state == ASKS
    assert "XAI_API_KEY" in asked.said
    monkeypatch.setenv("XAI_API_KEY", "secret-words")
    asked = found("llm")["official"]
    assert asked.said == "a server at https://api.x.ai/v1"
    assert "secret" not in "".join(map(str, doctor.accounts()))


def test_packages_are_named_with_their_version_and_an_old_one_with_the_way_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (good,) = doctor.packages()
    assert good.state == READY
    assert f"torch {version('torch')}" in good.said
    assert "pytest" not in good.said
    real = version
    monkeypatch.setattr(doctor, "version", lambda name: "0.0.1" if name == "timm" else real(name))
    good, old = doctor.packages()
    assert old.state == MISSING
    assert old.said.startswith("0.0.1 is too old: pip install 'timm")


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(name: str) -> str:
        if name == "peft":
            raise doctor.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", without)
    assert Finding(MISSING, "peft", "pip install 'lgclip[lora]'") in doctor.packages()


def test_a_store_that_cannot_be_written_is_missing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert doctor.the_store(str(tmp_path / "file" / "store")).state == MISSING
    good = doctor.the_store(str(tmp_path / "store"))
    assert (good.state, good.what) == (READY, str(tmp_path / "store"))
    assert good.said.startswith("0 files, 0 bytes; ")


def test_the_command_prints_every_section(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--store", str(tmp_path / "store")]) == 0
    said = capsys.readouterr().out
    for section in ("packages", "machine", "store", "data sets", "encoders", "language models", "diffusion models"):
        assert f"\n{section}\n" in said
    assert "CPU cores" in said
    assert max(map(len, said.splitlines())) <= 120 + 40, "a long path is not broken"


def test_the_doctor_needs_no_network() -> None:
    """It runs where sockets are refused, and where the hub is not offline by its own setting."""
    code = (
        "import socket; socket.socket.connect = lambda *a: (_ for _ in ()).throw(OSError('no network'))\n"
        "from lgclip.cli import main; import sys; sys.exit(main(['doctor']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "encoder=tiny" in done.stdout
