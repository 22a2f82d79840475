"""Uploads classifiers to the model hub, and downloads them: `hf://USER/NAME`, or `hf://USER/NAME@REVISION`."""

import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lgclip.classifier.files import save_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import CARD, MODEL, RECORD, SHEET, TENSORS
from lgclip.encoder.packed import is_packed
from lgclip.encoder.paired import PARTS
from lgclip.runtime.hub import commit_of, download, hub_errors

PREFIX = "hf://"
_KIND = "classifier"
_PATTERNS = [RECORD, TENSORS, SHEET, CARD, f"{MODEL}/*"]
"""The files of a classifier and nothing else: a repository may hold anything."""


def split_address(address: str) -> tuple[str, str | None]:
    """Splits `hf://USER/NAME@REVISION` into the repository and the revision, which is None if there is none.

    Raises:
        ValueError: If it is no such address.
    """
    repo, _, revision = address.removeprefix(PREFIX).partition("@")
    if not address.startswith(PREFIX) or repo.count("/") != 1 or not all(repo.split("/")):
        raise ValueError(
            f"{address}: the address of a classifier on the hub is hf://USER/NAME or hf://USER/NAME@REVISION"
        )
    return repo, revision or None


def push_classifier(classifier: ImageClassifier, address: str, *, public: bool = False) -> str:
    """Uploads a classifier to a repository of the model hub, which is created if needed.

    Args:
        classifier: The classifier.
        address: `hf://USER/NAME`.
        public: Whether a new repository can be seen by everyone.

    Returns:
        The commit.

    Raises:
        ValueError: If the address is none, the encoder is a folder on this machine, which others do not have, or the
            hub's client is not installed.
        HubError: If the hub cannot be reached or refuses.
    """
    repo, revision = split_address(address)
    if revision:
        raise ValueError(f"{address}: a classifier is pushed to the main revision; leave out @{revision}")
    local = _local_paths(classifier.settings.get("encoder") or {})
    if local and not is_packed(classifier.encoder):
        raise ValueError(
            f"{address}: this classifier needs {', '.join(local)} on this machine, which others do not have; save "
            "it by --with-encoder, or build it with an encoder of the hub or of the package"
        )
    _check_client()

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder, hub_errors(repo, _KIND, upload=True):
        # The encoder is none, but language model and diffuser may be folders, or read files, on this machine.
        published = replace(classifier, settings=_without_folders(classifier.settings))
        save_classifier(published, Path(folder) / "classifier")
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=Path(folder) / "classifier", commit_message="Upload lgclip classifier"
        )
    return str(commit.oid)


def download_classifier(address: str) -> Path:
    """Downloads a classifier to the hub's cache; returns its folder.

    Raises:
        ValueError: If the address is none, the repository has no classifier, or the hub's client is not installed.
        HubError: If the hub cannot be reached or refuses.
    """
    repo, revision = split_address(address)
    _check_client()

    with hub_errors(repo, _KIND):
        # Fails where the hub answers that there is none, while its client would take an old copy from the cache.
        commit_of(repo, revision, _KIND)
        # Not by that commit: of a branch or tag the cache then keeps which commit it is, to be used without a network.
        folder = download(repo, revision, _PATTERNS, kind=_KIND)
    if not (folder / RECORD).is_file():
        raise ValueError(
            f"{address}: the repository holds no classifier, it has no {RECORD}; upload one by "
            f"lgclip push CLASSIFIER {PREFIX}{repo}"
        )
    return folder


def _check_client() -> None:
    """Checks that the hub's client is installed.

    Raises:
        ValueError: If it is not.
    """
    if find_spec("huggingface_hub") is None:
        raise ValueError("package huggingface_hub is missing: pip install lgclip, or give a folder or .zip file")


def _without_folders(config: Any) -> Any:
    """Returns plain values in which paths on this machine are reduced to their last part."""
    if isinstance(config, Mapping):
        return {key: _without_folders(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [_without_folders(value) for value in config]
    if isinstance(config, str) and "/" in config:
        path = Path(config).expanduser()
        # Too long for a path, as a sentence with a slash may be, is an error of the system.
        with suppress(OSError):
            if path.is_absolute() or path.exists():
                return path.name
    return config


def _local_paths(config: Mapping[str, Any]) -> list[str]:
    """Returns the settings of an encoder that name a file or folder on this machine."""
    paths: list[str] = []
    for key in ("model", "checkpoint"):
        value = config.get(key)
        if value and not str(value).startswith("tiny:") and Path(str(value)).expanduser().exists():
            paths.append(f"encoder.{key}={value}")
    # An encoder with a tuned prompt holds another one, and a pair holds two.
    for key in ("base", *PARTS):
        part = config.get(key)
        if isinstance(part, Mapping):
            paths += _local_paths(part)
    return paths
