"""Tests that a pipe, a socket, a device or a folder in place of a file is one error and never waited for."""

import json
import os
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lgclip.datasets.base import BadImageError
from lgclip.datasets.class_map import read_names
from lgclip.datasets.content_ids import content_ids
from lgclip.datasets.image_decoding import read_image
from lgclip.datasets.label_files import json_of, lines
from lgclip.datasets.unreadable import UnreadableImages
from lgclip.encoder.weight_files import read_config
from lgclip.prompts.prompt_file import PromptFile
from lgclip.prompts.template import Templates
from lgclip.reporting.costs import towers_at
from lgclip.runtime.regular_files import IrregularFileError, read_bytes, read_text
from lgclip.runtime.yaml_checks import UnsafeYamlError, check_config_folders
from lgclip.store.atomic import WriteError, write_json
from lgclip.store.captions import CaptionStore
from lgclip.store.checkpoints import SafetensorsIO
from lgclip.store.cost_log import Line, append, append_start, lines_of
from lgclip.store.features import FeatureStore
from lgclip.store.images import ImageStore
from lgclip.store.keys import content_key, digest_of, file_stamp
from lgclip.store.prompts import PromptStore
from lgclip.store.shard_index import read_manifest, scan

INPUTS = {"part": "test"}
LINE = Line(1, "image", 1.0, "cpu", 1)


@pytest.fixture(autouse=True)
def alarm() -> Iterator[None]:
    """Ends a test that waits for a pipe."""

    def end(*_: object) -> None:
        raise AssertionError("the reader waits for a pipe")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make_socket(path: Path) -> None:
    server = socket.socket(socket.AF_UNIX)
    # The name of a socket has a limit of about 100 bytes.
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        server.bind(path.name)
    finally:
        os.chdir(before)
        server.close()


MAKERS: dict[str, Callable[[Path], object]] = {
    "a named pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a socket": make_socket,
    "a device": lambda path: path.symlink_to("/dev/zero"),
}
kinds = pytest.mark.parametrize("kind", MAKERS)


def put(path: Path, kind: str) -> Path:
    """Creates something that is no file, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    MAKERS[kind](path)
    return path


@kinds
@pytest.mark.parametrize(
    "read",
    [
        read_text, read_bytes, file_stamp, digest_of, lines, json_of, read_config, scan, lines_of,
        SafetensorsIO().load_checkpoint,
        append_start,
        lambda path: append(path, LINE),
        lambda path: read_names(path, str(path)),
        lambda path: Templates(file=str(path)),
    ],
)  # fmt: skip
def test_reader_of_a_file_refuses_all_else(kind: str, read: Callable[[Path], object], tmp_path: Path) -> None:
    path = put(tmp_path / "place", kind)
    with pytest.raises(IrregularFileError, match=f"{path}: it is {kind} where a file is expected; move it away"):
        read(path)


def image_store(root: Path) -> ImageStore:
    return ImageStore(root, INPUTS)


STORE_READERS: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "image": (lambda root: image_store(root).path("ab" * 16), lambda root: image_store(root).has("ab" * 16)),
    "marker": (
        lambda root: image_store(root).path("ab" * 16).with_suffix(".fault.json"),
        lambda root: image_store(root).fault("ab" * 16),
    ),
    "shard": (lambda root: root / "images" / image_store(root).key / "shards" / "x.tar", image_store),
    "captions": (
        lambda root: root / "captions" / CaptionStore(root, INPUTS, INPUTS).key / "x.json",
        lambda root: CaptionStore(root, INPUTS, INPUTS).refresh(),
    ),
    "features": (
        lambda root: root / "features" / FeatureStore(root, INPUTS, INPUTS).key / "x.safetensors",
        lambda root: FeatureStore(root, INPUTS, INPUTS).missing(["a"], ["b"]),
    ),
    "prompts": (
        lambda root: root / "prompts" / f"{content_key(INPUTS)}.json",
        lambda root: PromptStore(root).read(INPUTS),
    ),
    "unreadable": (
        lambda root: root / "images" / image_store(root).key / "x.json",
        lambda root: UnreadableImages(root, INPUTS).reasons(),
    ),
}


@kinds
@pytest.mark.parametrize("reader", STORE_READERS)
def test_store_refuses_what_is_no_file(kind: str, reader: str, tmp_path: Path) -> None:
    place, read = STORE_READERS[reader]
    path = put(place(tmp_path), kind)
    with pytest.raises(IrregularFileError, match=f"{path.name}: it is {kind} where a file is expected"):
        read(tmp_path)


@kinds
def test_optional_files_count_as_missing(kind: str, tmp_path: Path) -> None:
    assert towers_at(put(tmp_path / "towers.json", kind)) is None
    put(tmp_path / "manifest.json", kind)
    assert read_manifest(tmp_path) == {}
    store = FeatureStore(tmp_path, INPUTS, INPUTS)
    put(store.towers, kind)
    store.add(["a"], ["full"], torch.eye(2)[:1, None])
    assert store.missing(["a"], ["full"]) == []


@kinds
def test_image_that_is_no_file_is_never_left_out(kind: str, tmp_path: Path) -> None:
    path = put(tmp_path / "a.png", kind)
    with pytest.raises(ValueError, match=f"it is {kind} where a file is expected.*never left out") as raised:
        read_image(path)
    assert not isinstance(raised.value, BadImageError)
    with pytest.raises(ValueError, match=f"a.png cannot be read .it is {kind}"):
        list(content_ids(tmp_path, ["a.png"]))


@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "a folder"])
def test_prompt_and_config_folders_refuse_pipes(kind: str, tmp_path: Path) -> None:
    put(tmp_path / "cat.txt", kind)
    with pytest.raises(IrregularFileError, match=f"cat.txt: it is {kind}"):
        PromptFile(str(tmp_path))
    put(tmp_path / "mine.yaml", kind)
    with pytest.raises(UnsafeYamlError, match=f"mine.yaml: it is {kind}"):
        check_config_folders([f"--config-dir={tmp_path}"], tmp_path / "evaluate.py")


def test_folder_in_place_of_a_written_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file.json").mkdir()
    with pytest.raises(WriteError, match=f"{tmp_path}/file.json: it is a folder where a file is written"):
        write_json(tmp_path / "file.json", {})
    write_json(put(tmp_path / "other.json", "a named pipe"), {"a": 1})
    assert json.loads((tmp_path / "other.json").read_text()) == {"a": 1}
