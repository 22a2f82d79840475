"""Finds the files of an encoder: on the hub at one commit, or a local checkpoint."""

import difflib
import json
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lgclip.encoder.packaged_weights import packaged_weights
from lgclip.runtime.hub import download, hub_errors
from lgclip.runtime.regular_files import read_text
from lgclip.store.keys import FileStamp, digest_of, file_stamp

HUB = "hf-hub:"
"""Prefix of a model in a hub repository with its own config."""

SAFE = ".safetensors"
PICKLES = (".bin", ".pt", ".pth")
_ALLOW = "encoder.allow_pickle=true reads a pickle as weights only and runs nothing that it holds"


def pickle_refused(source: str) -> ValueError:
    """Returns the error for a pickle that is not allowed."""
    return ValueError(f"{source} is a pickle, which can run code; save it as {SAFE}, or {_ALLOW}")


def hub_file(repo: str, commit: str, names: Sequence[str], allow_pickle: bool = False) -> Path:
    """Returns the first available file of a repository at a commit, downloaded if it is not in the cache.

    Args:
        repo: `owner/name`.
        commit: 40 hexadecimal digits.
        names: Acceptable files, best first.
        allow_pickle: Whether a pickle is acceptable too.

    Raises:
        HubError: If the hub cannot be reached or refuses.
        ValueError: If the repository has none of them.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    allowed = [name for name in names if allow_pickle or not name.endswith(PICKLES)]
    unreached: LocalEntryNotFoundError | None = None
    with hub_errors(repo):
        for name in allowed:
            try:
                return Path(hf_hub_download(repo, name, revision=commit))
            except LocalEntryNotFoundError as error:
                # Not in the cache, and the hub was not reached: the next name may still be in the cache. This error
                # derives from the one below, so it has to come first.
                unreached = error
            except EntryNotFoundError:
                pass
        # "It holds no such file" would be wrong if the hub could not be reached.
        if unreached is not None:
            raise unreached
    message = f"model {repo!r} holds no {' or '.join(allowed)} at {commit[:12]}"
    if len(allowed) < len(names):
        message += f"; if it has weights as a pickle, {_ALLOW}"
    raise ValueError(message)


def hub_tokenizer(repo: str, commit: str) -> Path:
    """Returns the tokenizer's folder of a repository at a commit, downloaded if it is not in the cache.

    Raises:
        HubError: If the hub cannot be reached or refuses.
    """
    with hub_errors(repo):
        # A tokenizer is several files whose names differ; these patterns leave out weights and code.
        return download(repo, commit, ["*.json", "*.txt", "*.model"])


def checkpoint_file(path: str, allow_pickle: bool) -> Path:
    """Returns the path of a local checkpoint.

    Args:
        path: Path from the config.
        allow_pickle: Whether a pickle is acceptable.

    Raises:
        ValueError: If it does not exist, has no checkpoint suffix, or is a pickle and pickles are not allowed.
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
    """Returns a checkpoint's identity in a key: the hash of its content; None for no checkpoint."""
    if path is None:
        return None
    packaged = packaged_weights(path)
    file = Path(path).expanduser() if packaged is None else packaged.path()
    return _content(file, file_stamp(file))


@lru_cache(maxsize=16)
def _content(file: Path, stamp: FileStamp) -> str:
    return f"sha256:{digest_of(file)[:32]}"


def read_config(file: Path) -> dict[str, Any]:
    """Reads a model's config.

    Raises:
        ValueError: If the file is missing or is not a JSON object.
    """
    try:
        config = json.loads(read_text(file))
    except FileNotFoundError as error:
        raise ValueError(f"model {str(file.parent)!r}: there is no {file.name} in it") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} is damaged: it holds no JSON object")
    return config


def read_trained(folder: str, name: str, method: str) -> dict[str, Any]:
    """Reads the metadata of a trained artifact, from the file of its folder that is written last.

    Args:
        folder: The folder, as the user names it.
        name: Name of the file.
        method: Method whose training writes such a folder.

    Raises:
        ValueError: If the file is missing or damaged.
    """
    file = Path(folder).expanduser() / name
    if not file.is_file():
        raise ValueError(
            f"checkpoint={folder}: there is no {name} in it; give the folder that train.py method={method} prints"
        )
    return read_config(file)


def is_intact(folder: Path, record: str, files: Mapping[str, str]) -> bool:
    """Returns whether the files of a trained artifact have the hashes that its record states.

    Args:
        folder: Its folder.
        record: The JSON file that is written last.
        files: File of each entry of the record's `sha256`, by the entry's name; "" where the record has one hash alone.
    """
    try:
        stated = read_config(folder / record)["sha256"]
        if isinstance(stated, str):
            stated = {"": stated}
        return all(digest_of(folder / files[kind]) == digest for kind, digest in stated.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def did_you_mean(value: str, names: Collection[str]) -> str:
    """Returns ` (did you mean A, B?)` with the names most similar to `value`, or nothing if none is similar."""
    plain = {name.lower().replace("_", "-"): name for name in names}
    normalized = value.lower().replace("_", "-")
    near = difflib.get_close_matches(normalized, plain, n=4, cutoff=0.6)
    if not near:  # another order of words: `dinov2-vits14` for `vit-small-patch14-dinov2`
        longest = max(normalized.split("-"), key=len)
        # Shorter words, such as "vit" or "b16", stand in hundreds of names.
        near = [name for name in plain if len(longest) > 3 and longest in name][:4]
    if not near:
        return ""
    return f" (did you mean {', '.join(plain[name] for name in near)}?)"
