"""Uploads classifiers to the model hub, and downloads them: `hf://USER/NAME`, or `hf://USER/NAME@REVISION`."""

import tempfile
from pathlib import Path

from lgclip.classifier.files import CARD, RECORD, SHEET, TENSORS, save_classifier
from lgclip.classifier.model import ImageClassifier
from lgclip.runtime.hub import commit_of, hub_errors

PREFIX = "hf://"


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
        ValueError: If the address is none, or the encoder is a folder on this machine, which others do not have.
        HubError: If the hub cannot be reached or refuses.
    """
    repo, revision = split_address(address)
    if revision:
        raise ValueError(f"{address}: a classifier is pushed to the main revision; leave out @{revision}")
    local = _local_paths(classifier)
    if local:
        raise ValueError(
            f"{address}: this classifier needs {', '.join(local)} on this machine, which others do not have; build it "
            "with an encoder of the hub or of the package"
        )

    from huggingface_hub import HfApi

    with tempfile.TemporaryDirectory() as folder, hub_errors(repo):
        save_classifier(classifier, Path(folder) / "classifier")
        api = HfApi()
        api.create_repo(repo, private=not public, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo, folder_path=Path(folder) / "classifier", commit_message="Upload lgclip classifier"
        )
    return str(commit.oid)


def download_classifier(address: str) -> Path:
    """Downloads a classifier to the hub's cache; returns its folder.

    Raises:
        ValueError: If the address is none.
        HubError: If the hub cannot be reached or refuses.
    """
    repo, revision = split_address(address)

    from huggingface_hub import snapshot_download

    with hub_errors(repo):
        # The files of a classifier and nothing else: a repository may hold anything.
        return Path(
            snapshot_download(repo, revision=commit_of(repo, revision), allow_patterns=[RECORD, TENSORS, SHEET, CARD])
        )


def _local_paths(classifier: ImageClassifier) -> list[str]:
    """Returns the settings of the encoder that name a file or folder on this machine."""
    config = classifier.settings.get("encoder") or {}
    paths = []
    for key in ("model", "checkpoint"):
        value = config.get(key)
        if value and not str(value).startswith("tiny:") and Path(str(value)).expanduser().exists():
            paths.append(f"encoder.{key}={value}")
    return paths
