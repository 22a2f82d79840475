"""A classifier is pushed to a local server with the hub's API by its real client, and loaded from it again."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from factories import NAMES, FirstRun, Sandbox
from hub_server import READ_TOKEN, TOKEN, HubServer, serve_hub, use_hub
from huggingface_hub import ModelCard, constants

import lgclip
from lgclip.classifier.hub import push_classifier, split_address
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import CARD, RECORD, SHEET, TENSORS
from lgclip.cli.main import main
from lgclip.runtime.hub import HubError, commit_of
from lgclip.store.checksums import CHECKSUM, with_checksum
from lgclip.store.keys import digest_of

pytest_plugins = ("run_fixtures",)

REPO = "me/shapes"
ADDRESS = f"hf://{REPO}"


@pytest.fixture(scope="module")
def built(empty_sandbox: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Builds a classifier with the package's encoder, which others have too."""
    folder = tmp_path_factory.mktemp("built")
    sandbox = replace(empty_sandbox, store=folder / "store")
    overrides = [part for part in sandbox.generate_overrides() if not part.startswith("dataset")]
    classifier = lgclip.build(NAMES, llm="template", overrides=[*overrides, "precision=fp32"])
    return classifier.save(folder / "shapes.lgclip")


@pytest.fixture
def classifier(built: Path) -> ImageClassifier:
    return lgclip.load(built)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Serves an empty hub, with a new cache and the token of a user who may write."""
    commit_of.cache_clear()
    with serve_hub() as server:
        use_hub(server, monkeypatch)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        yield server
    commit_of.cache_clear()


def images_of(sandbox: Sandbox) -> list[Path]:
    return sorted(sandbox.synthetic_images.rglob("*.png"))


def change_record(server: HubServer, change: dict[str, Any]) -> None:
    """Changes values of the record on the hub, with a correct checksum: what someone else could upload."""
    record = json.loads(server.repositories[REPO].files("main")[RECORD])
    record.pop(CHECKSUM)
    server.repositories[REPO].commit({RECORD: json.dumps(with_checksum({**record, **change})).encode()})


def assert_one_line(error: BaseException) -> None:
    assert "\n" not in str(error)
    assert TOKEN not in str(error)
    assert READ_TOKEN not in str(error)


def test_pushed_files_are_those_of_the_folder(hub: HubServer, classifier: ImageClassifier, built: Path) -> None:
    commit = push_classifier(classifier, ADDRESS)

    repository = hub.repositories[REPO]
    assert repository.refs == {"main": commit}
    assert repository.private
    files = repository.files("main")
    assert files.keys() == {RECORD, TENSORS, SHEET, CARD}
    for name in (TENSORS, SHEET, CARD):
        assert files[name] == (built / name).read_bytes()
    pushed = json.loads(files[RECORD])
    saved = json.loads((built / RECORD).read_text())
    # The folder of the diffuser is of no use to others.
    diffuser = Path(saved["settings"]["diffuser"]["model"])
    assert pushed["settings"]["diffuser"]["model"] == diffuser.name
    assert str(diffuser.parent) not in b"".join(files.values()).decode(errors="replace")
    for record in (pushed, saved):
        record.pop(CHECKSUM)
        record["settings"].pop("diffuser")
    assert pushed == saved


def test_packed_encoder_of_this_machine_travels(hub: HubServer, first_run: FirstRun, tmp_path: Path) -> None:
    place = lgclip.load(first_run.folder).save(tmp_path / "packed", with_encoder=True)
    pictures = first_run.sandbox.synthetic_images
    expected = lgclip.load(place).predict(pictures).tolist()
    push_classifier(lgclip.load(place), ADDRESS)
    hidden = first_run.sandbox.encoder.rename(tmp_path / "hidden")
    try:
        assert lgclip.load(ADDRESS).predict(pictures).tolist() == expected
    finally:
        hidden.rename(first_run.sandbox.encoder)
    record = hub.repositories[REPO].files("main")[RECORD].decode()
    assert str(first_run.sandbox.encoder.parent) not in record


def test_card_is_one_that_the_hub_reads(hub: HubServer, classifier: ImageClassifier) -> None:
    classifier.rename(NAMES[0], "moon --- [x]: *y*")
    push_classifier(classifier, ADDRESS)

    card = ModelCard(hub.repositories[REPO].files("main")[CARD].decode(), ignore_metadata_errors=False)
    assert card.data.to_dict() == {
        "library_name": "lgclip",
        "pipeline_tag": "image-classification",
        "tags": ["lgclip", "zero-shot-image-classification", "synthetic-images"],
    }
    assert card.text.lstrip().startswith("# Image classifier of 3 classes")
    assert "![Synthetic images of the classes](prototypes.png)" in card.text


def test_round_trip_keeps_the_predictions(hub: HubServer, classifier: ImageClassifier, empty_sandbox: Sandbox) -> None:
    push_classifier(classifier, ADDRESS)
    loaded = lgclip.load(ADDRESS)

    images = images_of(empty_sandbox)
    assert loaded.class_names == classifier.class_names
    assert (loaded.predict_proba(images) == classifier.predict_proba(images)).all()
    assert len(set(loaded.predict(images))) > 1
    assert [strip is not None for strip in loaded.strips] == [True] * 3


def test_pinned_revision_stays(hub: HubServer, classifier: ImageClassifier) -> None:
    first = push_classifier(classifier, ADDRESS)
    hub.repositories[REPO].refs["v1"] = first
    assert lgclip.load(ADDRESS).class_names == NAMES
    classifier.rename(NAMES[0], "moon")
    second = push_classifier(classifier, ADDRESS, public=True)

    assert hub.repositories[REPO].private, "an existing repository stays as it is"
    assert lgclip.load(ADDRESS).class_names == ("moon", *NAMES[1:]), "also after an older one was loaded"
    assert lgclip.load(f"{ADDRESS}@v1").class_names == NAMES
    assert lgclip.load(f"{ADDRESS}@{first}").class_names == NAMES
    assert lgclip.load(f"{ADDRESS}@{second}").class_names == ("moon", *NAMES[1:])
    with pytest.raises(HubError, match=r"classifier 'me/shapes': no such revision; see https://huggingface.co/me/shap"):
        lgclip.load(f"{ADDRESS}@v2")


def test_files_of_a_trained_model_travel_too(hub: HubServer, classifier: ImageClassifier, tmp_path: Path) -> None:
    """Checks the folder model/ of a classifier, and that other files of the repository are left there."""
    (tmp_path / "about.json").write_text("{}")
    classifier.files = {"model/student/about.json": tmp_path / "about.json"}
    push_classifier(classifier, ADDRESS)
    hub.repositories[REPO].commit({"pytorch_model.bin": b"a pickle", "notes/large.txt": b"of no use"})

    loaded = lgclip.load(ADDRESS)

    assert list(loaded.files) == ["model/student/about.json"]
    assert loaded.files["model/student/about.json"].read_text() == "{}"
    fetched = [request for request in hub.requests if "/resolve/" in request]
    assert not [request for request in fetched if request.endswith((".bin", ".txt"))]


def test_cached_copy_needs_no_network(
    hub: HubServer, classifier: ImageClassifier, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = push_classifier(classifier, ADDRESS)
    lgclip.load(ADDRESS)
    commit_of.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert lgclip.load(ADDRESS).class_names == NAMES
    assert lgclip.load(f"{ADDRESS}@{commit}").class_names == NAMES
    with pytest.raises(HubError, match=r"'me/other': the hub cannot be reached .* its saved folder or \.zip file") as e:
        lgclip.load("hf://me/other")
    assert_one_line(e.value)
    with pytest.raises(HubError, match=r"'me/shapes': the hub cannot be reached, so that nothing was uploaded") as e:
        push_classifier(classifier, ADDRESS)
    assert_one_line(e.value)


@pytest.mark.parametrize("token", ["", READ_TOKEN, "hf_unknown_0123456789_secret"], ids=["none", "read", "unknown"])
def test_push_without_a_token_that_may_write_is_one_error(
    token: str, hub: HubServer, classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(HubError, match=r"classifier 'me/shapes': the hub refuses it: log in with `hf auth login`") as e:
        push_classifier(classifier, ADDRESS)
    assert_one_line(e.value)
    assert not hub.repositories


def test_private_and_missing_repositories_are_one_error(
    hub: HubServer, classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_classifier(classifier, ADDRESS)
    monkeypatch.setenv("HF_TOKEN", "")
    for address in (ADDRESS, "hf://me/nothing"):
        with pytest.raises(HubError, match=r"classifier 'me/\w+': not on the hub, or private: check the name") as e:
            lgclip.load(address)
        assert_one_line(e.value)


def test_public_repositories_need_no_token(
    hub: HubServer, classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_classifier(classifier, ADDRESS, public=True)
    monkeypatch.setenv("HF_TOKEN", "")
    assert lgclip.load(ADDRESS).class_names == NAMES


def test_other_repositories_are_one_error(hub: HubServer, classifier: ImageClassifier) -> None:
    push_classifier(classifier, "hf://me/other")
    for commit in hub.repositories["me/other"].commits.values():
        del commit[RECORD]
    with pytest.raises(ValueError, match=r"hf://me/other: the repository holds no classifier, .*lgclip push") as e:
        lgclip.load("hf://me/other")
    assert_one_line(e.value)


@pytest.mark.parametrize("name", [TENSORS, RECORD, SHEET])
def test_tampered_files_are_one_error(name: str, hub: HubServer, classifier: ImageClassifier) -> None:
    push_classifier(classifier, ADDRESS)
    content = bytearray(hub.repositories[REPO].files("main")[name])
    place = content.index(b"green") if name == RECORD else -3
    content[place] ^= 4
    hub.repositories[REPO].commit({name: bytes(content)})
    with pytest.raises(ValueError, match=rf"models--me--shapes.*: {name} is damaged: its checksum is wrong") as e:
        lgclip.load(ADDRESS)
    assert_one_line(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"settings": {"encoder": {"_target_": "os.system", "command": "true"}}}, "os.system"),
        ({"settings": {"encoder": {"_target_": "lgclip.encoder.open_clip.OpenClip", "model": "${oc.env:HF_TOKEN}"}}},
         "environment variable HF_TOKEN"),
        ({"files": {"../../../secret": "0" * 64}}, r"'\.\./\.\./\.\./secret' is no file of a classifier"),
        ({"schema": 99}, "is of schema 99"),
    ],
    ids=["code", "environment", "path", "schema"],
)  # fmt: skip
def test_foreign_records_run_nothing(
    change: dict[str, Any], message: str, hub: HubServer, classifier: ImageClassifier
) -> None:
    push_classifier(classifier, ADDRESS)
    change_record(hub, change)
    with pytest.raises(ValueError, match=message) as e:
        lgclip.load(ADDRESS)
    assert_one_line(e.value)


@pytest.mark.parametrize(
    "address", ["hf://", "hf://me", "hf://me/", "hf:///shapes", "hf://me/a/b", "me/shapes", "hf://@v1"], ids=repr
)
def test_wrong_addresses_are_one_error(address: str) -> None:
    with pytest.raises(ValueError, match=r"the address of a classifier on the hub is hf://USER/NAME"):
        split_address(address)


def test_address_with_a_revision() -> None:
    assert split_address("hf://me/shapes") == ("me/shapes", None)
    assert split_address("hf://me/shapes@refs/pr/1") == ("me/shapes", "refs/pr/1")


def test_push_to_a_revision_is_one_error(hub: HubServer, classifier: ImageClassifier) -> None:
    with pytest.raises(ValueError, match=r"pushed to the main revision; leave out @v1"):
        push_classifier(classifier, f"{ADDRESS}@v1")
    assert not hub.requests


def test_encoder_on_this_machine_is_one_error(
    hub: HubServer, classifier: ImageClassifier, empty_sandbox: Sandbox
) -> None:
    settings = {"model": str(empty_sandbox.encoder)}
    for encoder in (settings, {"_target_": "x", "base": settings}):
        local = replace(classifier, settings={**classifier.settings, "encoder": encoder})
        with pytest.raises(ValueError, match=rf"needs encoder.model={empty_sandbox.encoder} on this machine"):
            push_classifier(local, ADDRESS)
    assert not hub.requests


def test_missing_client_is_one_error(classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ValueError, match="package huggingface_hub is missing: pip install lgclip"):
        push_classifier(classifier, ADDRESS)
    with pytest.raises(ValueError, match="package huggingface_hub is missing"):
        lgclip.load(ADDRESS)


def test_server_error_is_one_error(
    hub: HubServer, classifier: ImageClassifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub_server._ROUTES", ())
    with pytest.raises(HubError, match=r"classifier 'me/shapes': the hub answers HTTP 501; try again later") as e:
        push_classifier(classifier, ADDRESS)
    assert_one_line(e.value)


@pytest.mark.slow
@pytest.mark.multiprocess
def test_commands_push_and_classify(
    hub: HubServer, built: Path, empty_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(built), ADDRESS]) == 0
    pushed = capsys.readouterr().out
    (commit,) = hub.repositories[REPO].commits
    assert pushed == f"{ADDRESS}@{commit}: uploaded; lgclip classify {ADDRESS} PHOTOS\n"
    out = tmp_path / "labels.csv"
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(Path(lgclip.__file__).parents[1]),
    }  # fmt: skip
    command = [sys.executable, "-m", "lgclip", "classify", f"{ADDRESS}@{commit}", str(empty_sandbox.synthetic_images)]
    subprocess.run([*command, "-o", str(out)], check=True, env=environment, cwd=tmp_path)
    expected = tmp_path / "expected.csv"
    assert main(["classify", str(built), str(empty_sandbox.synthetic_images), "-o", str(expected)]) == 0
    assert digest_of(out) == digest_of(expected)
    assert len(out.read_text().splitlines()) == 1 + len(images_of(empty_sandbox))


def test_command_without_a_token_is_one_line(
    hub: HubServer, built: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "")
    assert main(["push", str(built), ADDRESS]) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: classifier 'me/shapes': the hub refuses it: log in with `hf auth login`")
    assert len(printed.err.splitlines()) == 1
