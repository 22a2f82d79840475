"""The model hub: which commit a revision stands for, and one plain line when it cannot be had."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

_COMMIT = re.compile(r"[0-9a-f]{40}")
OFFLINE = {
    "model": "without a network the embedded models work: encoder=tiny, diffuser=tiny, llm=tiny",
    "dataset": "without a network give a local copy, dataset.root=DIR, or judge dataset=shapes",
}
"""What works without the hub, by kind of repository."""


class HubError(ValueError):
    """A model or data set of the hub cannot be had; the message says why and what to do."""


@lru_cache(maxsize=256)
def commit_of(repo: str, revision: str | None = None, kind: str = "model") -> str:
    """The commit that a revision of a hub repository stands for now, asked once a process.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        kind: `model` or `dataset`.

    Returns:
        40 hexadecimal digits. Without a network, those of the copy in the hub's cache.

    Raises:
        HubError: If the repository or the revision is not there, needs a licence to be accepted, or
            neither the hub nor a cached copy can be reached.
    """
    if revision and _COMMIT.fullmatch(revision):
        return revision
    with hub_errors(repo, kind):
        from huggingface_hub import HfApi, constants
        from huggingface_hub.errors import HfHubHTTPError
        from huggingface_hub.file_download import repo_folder_name

        try:
            commit = HfApi().repo_info(repo, revision=revision, repo_type=kind, timeout=20).sha
        except Exception as error:  # the hub's client lets its HTTP library's own errors through
            answered = isinstance(error, HfHubHTTPError) and error.response is not None
            answered = answered or not (isinstance(error, OSError) or _is_network(error))
            folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
            cached = folder / "refs" / (revision or "main")
            if answered or not cached.is_file():
                raise
            commit = cached.read_text(encoding="utf-8").strip()
        assert commit is not None
        return commit


def cached(repo: str, revision: str | None = None, kind: str = "model") -> bool:
    """Whether the hub's cache on this machine has files of a repository at a revision; asks no network.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        kind: `model` or `dataset`.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision or "main"
    snapshot = folder / "snapshots" / commit
    return snapshot.is_dir() and any(snapshot.iterdir())


@contextmanager
def hub_errors(repo: str, kind: str = "model") -> Iterator[None]:
    """Turns what the hub's clients raise into one line that names the repository and the way out.

    Inside, no model's own code is run, nor is anybody asked whether to run it.

    Args:
        repo: The model or data set that is loaded inside.
        kind: `model` or `dataset`.

    Raises:
        HubError: In place of a refusal, an absence or a lack of network. Other errors pass.
    """
    from huggingface_hub import errors

    _ask_nobody()
    try:
        yield
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        chain = list(_chain(error))
        statuses = {link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)}
        page = f"https://huggingface.co/{'datasets/' if kind == 'dataset' else ''}{repo}"
        if any(isinstance(link, errors.GatedRepoError) for link in chain) or 403 in statuses:
            said = f"it is gated: accept the licence at {page} and log in with `hf auth login` (or set HF_TOKEN)"
        elif any(isinstance(link, errors.RevisionNotFoundError) for link in chain):
            said = f"no such revision; see {page}"
        elif any(isinstance(link, errors.RepositoryNotFoundError) for link in chain) or 401 in statuses:
            said = f"not on the hub, or private: check the name, or log in with `hf auth login`; see {page}"
        elif any(isinstance(link, errors.HFValidationError) for link in chain):
            said = "neither a folder here nor a name of the hub (owner/name)"
        elif any(_is_network(link) for link in chain):
            said = f"the hub cannot be reached and there is no copy in its cache; {OFFLINE[kind]}"
        elif statuses:
            # What the server says of it is left out, and of the trace: it may repeat the key that it was sent.
            raise HubError(f"{kind} {repo!r}: the hub answers HTTP {min(statuses)}; try again later") from None
        else:
            raise
        raise HubError(f"{kind} {repo!r}: {said}") from (None if statuses else error)


def _ask_nobody() -> None:
    """Has transformers refuse a model's own code where it would ask on the terminal, and run it upon a `y`."""
    if "transformers" in sys.modules:
        from transformers import dynamic_module_utils

        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to answer in; 0 does not ask


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it came from: transformers and diffusers wrap the hub's own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    from huggingface_hub import errors

    client = type(error).__module__.partition(".")[0]  # hub clients differ in the library they ask with
    absent = errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError | TimeoutError
    return isinstance(error, absent) or client in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
