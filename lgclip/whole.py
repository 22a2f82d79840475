"""Files that are whole or absent, whatever interrupts their writing."""

import errno
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkstemp

WAY_OUT = (
    "make room, allow it, or name another folder (paths.store=DIR or LGCLIP_HOME=DIR for what is stored, "
    "hydra.run.dir=DIR for a run); what is stored stays, and the same command goes on from there"
)
"""What to do where the system refuses to write."""

_REFUSALS = {
    errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE
}  # fmt: skip


class WriteError(OSError, ValueError):
    """A file could not be written; it is as it was before, and the message says what to do."""


def refusal(error: BaseException) -> str | None:
    """What the system said when it refused to write; None for any other error."""
    number = error.errno if isinstance(error, OSError) else None
    # Libraries in Rust, such as safetensors, tell the system's error in words alone.
    if number is None and (said := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(said.group(1))
    return os.strerror(number) if number in _REFUSALS else None


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """A temporary file in the same folder that becomes `path` when the block ends well.

    Raises:
        WriteError: If the system refuses it: a full disk, a folder that must not be written.
    """
    temporary: Path | None = None
    try:
        handle, name = mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
        temporary = Path(name)
        os.close(handle)
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    except Exception as error:
        reason = refusal(error)
        if reason is None or _of_another(error, path):
            raise
        raise WriteError(f"{path}: {reason}; {WAY_OUT}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _of_another(error: Exception, path: Path) -> bool:
    """Whether an error is about another file, such as one that was read to write this one."""
    named = error.filename if isinstance(error, OSError) else None
    return isinstance(error, WriteError) or (isinstance(named, str) and Path(named).parent != path.parent)


def write_json(path: Path, content: object) -> None:
    """Writes JSON, its folder too if it is not there.

    Raises:
        WriteError: If the system refuses it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
