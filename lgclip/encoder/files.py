"""Files that an encoder is built from: the hub's at one commit, or a checkpoint on this machine."""

import difflib
import hashlib
import json
from collections.abc import Collection, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lgclip.hub import hub_errors

HUB = "hf-hub:"
"""Prefix of a model that is a repository of the hub and brings its own config."""

SAFE, PICKLES = ".safetensors", (".bin", ".pt", ".pth")
_ALLOW = "encoder.allow_pickle=true reads a pickle as weights only and runs nothing that it holds"


def pickle_refused(what: str) -> ValueError:
    """The error for a pickle that was not asked for."""
    return ValueError(f"{what} is a pickle, which can run code; save it as {SAFE}, or {_ALLOW}")


def hub_file(repo: str, commit: str, names: Sequence[str], allow_pickle: bool = False) -> Path:
    """The first of some files that a repository holds at a commit, downloaded if it is not in the cache.

    Args:
        repo: `owner/name`.
        commit: 40 hexadecimal digits.
        names: Files that will do, best first.
        allow_pickle: Whether a pickle will do too.

    Raises:
        HubError: If the hub cannot be reached or refuses.
        ValueError: If the repository holds none of them.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    wanted = [name for name in names if allow_pickle or not name.endswith(PICKLES)]
    unreached: LocalEntryNotFoundError | None = None
    with hub_errors(repo):
        for name in wanted:
            try:
                return Path(hf_hub_download(repo, name, revision=commit))
            except LocalEntryNotFoundError as error:
                unreached = error
            except EntryNotFoundError:
                pass
        if unreached is not None:
            raise unreached
    pickles = f"; if it has weights as a pickle, {_ALLOW}" if len(wanted) < len(names) else ""
    raise ValueError(f"model {repo!r} holds no {' or '.join(wanted)} at {commit[:12]}{pickles}")


def hub_tokenizer(repo: str, commit: str) -> Path:
    """Folder of the tokenizer of a repository at a commit, downloaded if it is not in the cache.

    Raises:
        HubError: If the hub cannot be reached or refuses.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repo):
        return Path(snapshot_download(repo, revision=commit, allow_patterns=["*.json", "*.txt", "*.model"]))


def checkpoint_file(path: str, allow_pickle: bool) -> Path:
    """A checkpoint on this machine.

    Args:
        path: Where it lies.
        allow_pickle: Whether a pickle will do.

    Raises:
        ValueError: If it is not there, is no checkpoint by its name, or is a pickle and may not be.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise ValueError(f"encoder.checkpoint={path}: no such file")
    if file.suffix == SAFE:
        return file
    if file.suffix not in PICKLES:
        raise ValueError(f"encoder.checkpoint={path}: expected {SAFE}, or {' '.join(PICKLES)} with allow_pickle=true")
    if not allow_pickle:
        raise pickle_refused(f"encoder.checkpoint={path}")
    return file


def checkpoint_content(path: str | None) -> str | None:
    """What stands for a checkpoint in a key: the hash of its content, None for none."""
    if path is None:
        return None
    file = Path(path).expanduser()
    return _content(file, file.stat().st_size, file.stat().st_mtime_ns)


@lru_cache(maxsize=16)
def _content(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as opened:
        return f"sha256:{hashlib.file_digest(opened, 'sha256').hexdigest()[:32]}"


def read_config(file: Path) -> dict[str, Any]:
    """A model's config.

    Raises:
        ValueError: If the file is missing or is no JSON object.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"model {str(file.parent)!r}: there is no {file.name} in it") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return found


def read_learnt(folder: str, name: str, method: str) -> dict[str, Any]:
    """What is told of something learnt, from the file of its folder that is written last.

    Args:
        folder: Where it lies, as the user names it.
        name: Of the file.
        method: Whose training writes such a folder.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    file = Path(folder).expanduser() / name
    if not file.is_file():
        raise ValueError(
            f"ckpt={folder}: there is no {name} in it; give the folder that train.py method={method} prints"
        )
    return read_config(file)


def did_you_mean(value: str, known: Collection[str]) -> str:
    """` (did you mean A, B?)` with the names nearest to `value`, or nothing if none is near."""
    plain = {name.lower().replace("_", "-"): name for name in known}
    asked = value.lower().replace("_", "-")
    near = difflib.get_close_matches(asked, plain, n=4, cutoff=0.6)
    if not near:  # another order of words: `dinov2-vits14` for `vit-small-patch14-dinov2`
        longest = max(asked.split("-"), key=len)
        near = [name for name in plain if len(longest) > 3 and longest in name][:4]
    return f" (did you mean {', '.join(plain[name] for name in near)}?)" if near else ""
