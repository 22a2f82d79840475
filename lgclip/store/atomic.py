"""Writes files atomically: whatever interrupts the writing, a file is complete or absent."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

from lgclip.store.location import CACHES

WAY_OUT = (
    "make room, allow it, or name another folder (paths.store=DIR or LGCLIP_HOME=DIR for what is stored, "
    "hydra.run.dir=DIR for a run); what is stored stays, and the same command goes on from there"
)
"""Fixes for errors of the system on writing."""

_REFUSALS = {
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE
}  # fmt: skip


class WriteError(OSError, ValueError):
    """Reports that a file could not be written; the old file is unchanged, and the message says how to fix it."""


def refusal(error: BaseException) -> str | None:
    """Returns the system's reason for refusing to write; None for any other error."""
    number: int | None = None
    if isinstance(error, OSError):
        number = error.errno
    # Libraries in Rust, such as safetensors, report the system's error only in the text of their own exceptions.
    if number is None and (match := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(match.group(1))
    # Any other error is a defect of the program or of its input: advice about disks would hide it.
    if number not in _REFUSALS:
        return None
    return os.strerror(number)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Provides a temporary file in the same folder that replaces `path` when the block ends without an error.

    Raises:
        WriteError: If the system refuses it: a full disk, a read-only folder.
    """
    temporary: Path | None = None
    try:
        # In the same folder, because a rename is atomic only within one file system. The leading dot hides the file
        # from every pattern that reads the store; the cut keeps the name below the limit of 255 bytes.
        handle, name = mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        # mkstemp makes files that only their owner can read; a store may be shared by a group.
        temporary.chmod(0o644)
        # Not forced to the disk: a sync of every file would cost more than what a power cut loses.
        temporary.replace(path)
        _note(path)
    except Exception as error:
        if isinstance(error, IsADirectoryError) and path.is_dir():
            raise WriteError(f"{path}: it is a folder where a file is written; move it away") from error
        reason = refusal(error)
        if reason is None or _of_another(error, path):
            raise
        raise WriteError(f"{path}: {reason}; {WAY_OUT}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _note(path: Path) -> None:
    """Has a file of a store with a URL uploaded."""
    # The import is for those alone: it would make this module depend on what uses it.
    if CACHES in path.parts:
        from lgclip.store.remote import note_written

        note_written(path)


def _of_another(error: Exception, path: Path) -> bool:
    """Checks whether an error is about another file, such as one that was read to write this one."""
    # Blocks may be nested: the inner one has already named its file, which is the one that lacks room.
    if isinstance(error, WriteError):
        return True
    if not isinstance(error, OSError) or not isinstance(error.filename, str):
        return False
    return Path(error.filename).parent != path.parent


def write_json(path: Path, content: object) -> None:
    """Writes JSON atomically, and creates its folder if needed.

    Raises:
        WriteError: If the system refuses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
