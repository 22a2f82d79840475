"""Reads regular files only: a named pipe in place of a file would be waited for forever.

Python has no such function: `Path.read_text` opens whatever lies there, and waits until someone writes to a pipe.
"""

import os
import stat
from pathlib import Path

_KINDS = (
    (stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip


class IrregularFileError(OSError):
    """Reports that something else than a file lies at the path of a file; the message names it.

    Args:
        path: The path.
        kind: Kind of the entry.
    """

    def __init__(self, path: Path, kind: str) -> None:
        reason = f"it is {kind} where a file is expected; move it away or name another path"
        super().__init__(f"{path}: {reason}")
        self.strerror = reason


def regular_stat(path: Path) -> os.stat_result:
    """Returns the status of a file; links are followed.

    Raises:
        IrregularFileError: If it is a folder, a pipe, a socket or a device.
        FileNotFoundError: If there is nothing.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for is_kind, kind in _KINDS if is_kind(status.st_mode)), "something else")
        raise IrregularFileError(path, kind)
    return status


def read_text(path: Path, *, encoding: str = "utf-8", errors: str | None = None) -> str:
    """Returns the text of a file.

    Raises:
        IrregularFileError: As in `regular_stat`.
    """
    regular_stat(path)
    return path.read_text(encoding=encoding, errors=errors)


def read_bytes(path: Path) -> bytes:
    """Returns the bytes of a file.

    Raises:
        IrregularFileError: As in `regular_stat`.
    """
    regular_stat(path)
    return path.read_bytes()
