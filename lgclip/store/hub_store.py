"""Keeps objects in a repository of the Hugging Face Hub, by the hub's own client."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lgclip.store.location import Location
from lgclip.store.object_store import ObjectError, ObjectInfo, ObjectStore


class HubStore(ObjectStore):
    """Keeps objects in a repository of the Hugging Face Hub, several files a commit."""

    # The hub counts commits, not files, and limits them by the hour.
    push_seconds = 300.0

    def __init__(self, location: Location) -> None:
        super().__init__(location)
        parts = location.path.split("/")
        self._type = "model"
        if parts[0] == "datasets":
            self._type = "dataset"
            del parts[0]
        self._repo = "/".join(parts[:2])
        self._prefix = "/".join(parts[2:])
        self._revision = location.revision or None

    def _full(self, place: str) -> str:
        return "/".join(part for part in (self._prefix, place) if part)

    @property
    def _api(self) -> Any:
        from huggingface_hub import HfApi

        return HfApi()

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        from huggingface_hub.errors import EntryNotFoundError

        top = self._full(folder)
        objects: dict[str, ObjectInfo] = {}
        with self._errors("read it"):
            try:
                entries = list(
                    self._api.list_repo_tree(
                        self._repo, top or None, recursive=True, repo_type=self._type, revision=self._revision
                    )
                )
            except EntryNotFoundError:
                return {}
        for entry in entries:
            size = getattr(entry, "size", None)
            if size is not None:
                place = entry.path.removeprefix(f"{self._prefix}/" if self._prefix else "")
                objects[place] = ObjectInfo(int(size), "", entry.blob_id)
        return objects

    def _files(self) -> Any:
        from huggingface_hub import HfFileSystem

        return HfFileSystem(skip_instance_cache=True, use_listings_cache=False)

    def _address(self, place: str) -> str:
        kind = "datasets/" if self._type == "dataset" else ""
        return f"{kind}{self._repo}/{self._full(place)}"

    def _get(self, place: str, target: Path) -> None:
        # Not by the file system, which asks the hub four times for a file. On the target's disk, where it is moved.
        with TemporaryDirectory(dir=target.parent) as folder:
            path = self._api.hf_hub_download(
                self._repo, self._full(place), repo_type=self._type, revision=self._revision, local_dir=folder
            )
            shutil.move(path, target)

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        return self._files().cat_file(self._address(place), start=start, end=start + size, revision=self._revision)

    def put(self, files: Mapping[str, Path], replaced: frozenset[str] = frozenset()) -> list[str]:
        from huggingface_hub import CommitOperationAdd

        # A commit holds all of them or none, so the order of its files does not matter.
        existing = {place: path for place, path in files.items() if path.exists()}
        if not existing:
            return []
        operations = [CommitOperationAdd(self._full(place), str(path)) for place, path in existing.items()]
        with self._errors("write to it"):
            self._api.create_commit(
                self._repo,
                operations,
                commit_message=f"Add {len(existing)} files of an lgclip store",
                repo_type=self._type,
            )
        return list(existing)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        self.put({place: path})

    def check_writable(self, folder: Path) -> None:
        # No commit for a test: the hub answers whether the token may write.
        with self._errors("write to it"):
            self._api.auth_check(self._repo, repo_type=self._type, write=True)

    def _delete(self, places: Sequence[str]) -> None:
        self._api.delete_files(self._repo, [self._full(place) for place in places], repo_type=self._type)

    def _check(self) -> None:
        self._api.repo_info(self._repo, repo_type=self._type, timeout=20)

    @contextmanager
    def _errors(self, operation: str) -> Iterator[None]:
        from huggingface_hub.errors import EntryNotFoundError

        from lgclip.runtime.hub import HubError, hub_errors

        try:
            with hub_errors(self._repo, "store", upload=operation != "read it"):
                yield
        except EntryNotFoundError as error:
            raise FileNotFoundError(self.url) from error
        except HubError as error:
            raise ObjectError(f"{self.url}: {error}") from None

    def _translate(self, error: Exception, operation: str) -> str:
        return ""
