"""Keeps objects in a folder, such as one on a slow network disk, whose files are only read and written completely."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from lgclip.store.object_store import ObjectError, ObjectInfo, ObjectStore


class FolderStore(ObjectStore):
    """Keeps objects in a folder, such as one on a slow network disk, which is only read and written as a whole file."""

    @property
    def _root(self) -> Path:
        return Path(self._location.path)

    def ls(self, folder: str = "") -> dict[str, ObjectInfo]:
        objects: dict[str, ObjectInfo] = {}
        with self._errors("read it"):
            for base, _, names in os.walk(self._root / folder):
                for name in names:
                    path = Path(base) / name
                    # Objects have no hidden names: this one is being written, or its writing was interrupted.
                    if name.startswith("."):
                        continue
                    status = path.stat()
                    place = path.relative_to(self._root).as_posix()
                    objects[place] = ObjectInfo(status.st_size, f"{status.st_mtime_ns:020d}")
        return objects

    def _get(self, place: str, target: Path) -> None:
        shutil.copyfile(self._root / place, target)

    def _read_part(self, place: str, start: int, size: int) -> bytes:
        with (self._root / place).open("rb") as file:
            file.seek(start)
            return file.read(size)

    def _put(self, place: str, path: Path, *, replace: bool) -> None:
        target = self._root / place
        target.parent.mkdir(parents=True, exist_ok=True)
        # fsspec's file system of local files copies to the name itself, where others would see a part of it.
        temporary = target.with_name(f".{target.name[:40]}.{os.urandom(4).hex()}")
        try:
            shutil.copyfile(path, temporary)
            if replace:
                temporary.replace(target)
            else:
                try:
                    os.link(temporary, target)
                except FileExistsError:
                    pass
                except OSError:  # a disk without links
                    temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    def _delete(self, places: Sequence[str]) -> None:
        for place in places:
            (self._root / place).unlink(missing_ok=True)

    def _check(self) -> None:
        if self._root.exists() and not self._root.is_dir():
            raise ObjectError(f"{self.url}: it is a file where a folder is expected")

    def _translate(self, error: Exception, operation: str) -> str:
        if not isinstance(error, OSError):
            return ""
        return f"cannot {operation}: {error.strerror or error}; what was made is kept on this machine"
