"""Resolves revisions on the model hub to commits, and turns the hub's errors into one readable line."""

import logging
import os
import re
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path

log = logging.getLogger(__name__)

_COMMIT = re.compile(r"[0-9a-f]{40}")
OFFLINE = {
    "model": "without a network the embedded models work: encoder=tiny, diffuser=tiny, llm=tiny",
    "dataset": "without a network give a local copy, dataset.root=DIR, or use dataset=shapes",
    "classifier": "without a network use its saved folder or .zip file",
    "store": "without a network name a folder, paths.store=DIR",
}
"""Alternatives that work without the hub, by kind of repository."""

_MODEL_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"]
_OTHER_FORMATS = ["onnx/*", "openvino/*", "original/*"]


_ANSWERS: dict[tuple[str, str | None, str], str] = {}


class HubError(ValueError):
    """Reports that a model or data set of the hub is unavailable; the message says why and how to fix it."""


@lru_cache(maxsize=256)
def commit_of(repo: str, revision: str | None = None, kind: str = "model") -> str:
    """Returns the commit that a revision of a hub repository points to now; asks the hub once per process.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        kind: `model`, `dataset`, or `classifier`, whose repository is that of a model.

    Returns:
        40 hexadecimal digits. Without a network, those of the copy in the hub's cache.

    Raises:
        HubError: If the repository or the revision does not exist, requires a license to be accepted, or
            neither the hub nor a cached copy can be reached.
    """
    # A commit stands for itself, so that a pinned run needs no network.
    if revision and _COMMIT.fullmatch(revision):
        return revision
    with hub_errors(repo, kind):
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            commit = HfApi().repo_info(repo, revision=revision, repo_type=_repo_type(kind), timeout=20).sha
        except Exception as error:  # the hub's client lets its HTTP library's own errors through
            # The cache stands in only where the hub could not be asked. If it answers that the repository is gone or
            # the revision does not exist, an old copy would hide that.
            answered = isinstance(error, HfHubHTTPError) and error.response is not None
            answered = answered or not (isinstance(error, OSError) or _is_network(error))
            cached = _cache_folder(repo, kind) / "refs" / (revision or "main")
            if answered or not cached.is_file():
                raise
            commit = cached.read_text(encoding="utf-8").strip()
        else:
            assert commit is not None
            _remember(repo, revision, kind, commit)
        _ANSWERS[repo, revision, kind] = commit
        return commit


def resolved_commits() -> dict[tuple[str, str | None, str], str]:
    """Returns the results of `commit_of` in this process for branches and tags, by its arguments."""
    return dict(_ANSWERS)


def _remember(repo: str, revision: str | None, kind: str, commit: str) -> None:
    """Records the commit of a branch or tag in the hub's cache, where it is looked up without a network.

    The hub's client does so too, but only for files that it fetches by the branch; here they are fetched by the commit.
    """
    ref = _cache_folder(repo, kind) / "refs" / (revision or "main")
    try:
        if ref.is_file() and ref.read_text(encoding="utf-8").strip() == commit:
            return
        ref.parent.mkdir(parents=True, exist_ok=True)
        # Complete or not at all, whoever else writes it.
        temporary = ref.with_name(f"{ref.name}.{os.getpid()}")
        temporary.write_text(commit, encoding="utf-8")
        temporary.replace(ref)
    except OSError as error:  # a cache that cannot be written to may still be read
        log.debug("%s: its commit is not recorded: %s", repo, error)


def cached(repo: str, revision: str | None = None, kind: str = "model") -> bool:
    """Checks whether the hub's local cache has files of a repository at a revision; uses no network.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        kind: `model` or `dataset`.
    """
    folder = _cached_snapshot(repo, revision, kind)
    return folder.is_dir() and any(folder.iterdir())


def _cached_snapshot(repo: str, revision: str | None, kind: str = "model") -> Path:
    """Returns the folder of a repository at a revision in the hub's cache, whether it is there or not."""
    folder = _cache_folder(repo, kind)
    commit = revision or "main"
    # The cache has a file for each branch and tag, with the commit in it; a commit has none and is itself the folder.
    ref = folder / "refs" / commit
    if ref.is_file():
        commit = ref.read_text(encoding="utf-8").strip()
    return folder / "snapshots" / commit


def _cache_folder(repo: str, kind: str) -> Path:
    """Returns the folder of a repository in the hub's cache, whether it is there or not."""
    from huggingface_hub import constants

    # As `huggingface_hub.file_download.repo_folder_name`, whose module takes half a second to import.
    return Path(constants.HF_HUB_CACHE) / "--".join([f"{_repo_type(kind)}s", *repo.split("/")])


def _repo_type(kind: str) -> str:
    """Returns the hub's name for a kind of repository."""
    return "model" if kind == "classifier" else kind


def snapshot(repo: str, revision: str | None = None) -> Path:
    """Downloads the configs, tokenizers and safetensors weights of a model's repository to the hub's cache.

    Pickles and weights for other frameworks are left out.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.

    Returns:
        The folder of the copy.

    Raises:
        HubError: If the hub cannot be reached or refuses.
    """
    with hub_errors(repo):
        return download(repo, commit_of(repo, revision), _MODEL_FILES, _OTHER_FORMATS)


def download(
    repo: str, revision: str | None, allowed: Sequence[str], ignored: Sequence[str] = (), kind: str = "model"
) -> Path:
    """Downloads files of a repository to the hub's cache; without a network, those that are there have to do.

    It raises what the hub's client raises, to be called within `hub_errors`.

    Args:
        repo: `owner/name`.
        revision: Branch, tag or commit; None is `main`.
        allowed: Patterns of the files.
        ignored: Patterns of files that are left out.
        kind: `model`, `dataset` or `classifier`.

    Returns:
        The folder of the copy.
    """
    from huggingface_hub import snapshot_download

    fetch = partial(
        snapshot_download,
        repo,
        repo_type=_repo_type(kind),
        revision=revision,
        allow_patterns=list(allowed),
        ignore_patterns=list(ignored),
    )
    try:
        return Path(fetch())
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        if not _is_network(error):
            raise
        # The client of 1.32 asks the hub which files a commit has, also where an older one has downloaded them.
        return Path(fetch(local_files_only=True))


def size_of(repo: str, revision: str | None = None) -> int | None:
    """Returns the bytes of a repository's safetensors weights; None if neither the cache nor the hub has the number."""
    from huggingface_hub import HfApi

    if cached(repo, revision):
        return sum(path.stat().st_size for path in _cached_snapshot(repo, revision).rglob("*.safetensors")) or None
    try:
        files = HfApi().model_info(repo, revision=revision, files_metadata=True, timeout=20).siblings or []
    except Exception:  # the hub's client lets its HTTP library's own errors through
        return None
    names = {file.rfilename: file.size or 0 for file in files if file.rfilename.endswith(".safetensors")}
    # A pipeline has its weights in the folders of its parts; files at its top are the same weights in one piece.
    if any("/" in name for name in names):
        names = {name: size for name, size in names.items() if "/" in name}
    # Variants, such as fp16, are loaded only on request.
    return sum(size for name, size in names.items() if name.count(".") == 1) or None


@contextmanager
def hub_errors(repo: str, kind: str = "model", *, upload: bool = False) -> Iterator[None]:
    """Turns errors of the hub's clients into one line that names the repository and the fix.

    Within the block no remote code of a model runs, and the user is not prompted to allow it.

    Args:
        repo: Model, data set or classifier that the block loads.
        kind: `model`, `dataset`, `classifier` or `store`.
        upload: Whether the block uploads it instead, which needs a token and knows no cache.

    Raises:
        HubError: In place of a refusal, a missing repository or a network failure. Other errors pass through.
    """
    from huggingface_hub import errors

    _ask_nobody()
    try:
        yield
    except Exception as error:  # the hub's client lets its HTTP library's own errors through
        chain = list(_chain(error))
        statuses = {link.response.status_code for link in chain if isinstance(link, errors.HfHubHTTPError)}
        reason = _upload_reason(chain, statuses) if upload else _download_reason(repo, kind, chain, statuses)
        if reason:
            raise HubError(f"{kind} {repo!r}: {reason}") from (None if statuses else error)
        if statuses:
            # What the server says of it is left out, and of the trace: it may repeat the key that it was sent.
            raise HubError(f"{kind} {repo!r}: the hub answers HTTP {min(statuses)}; try again later") from None
        raise


def _download_reason(repo: str, kind: str, chain: Sequence[BaseException], statuses: Collection[int]) -> str:
    """Returns why a download failed and how to fix it; empty if neither is known."""
    from huggingface_hub import errors

    page = f"https://huggingface.co/{repo}"
    if kind == "dataset":
        page = f"https://huggingface.co/datasets/{repo}"
    # The order matters: GatedRepoError derives from RepositoryNotFoundError, and both are HTTP errors. The statuses
    # are for what the client has no class for.
    if any(isinstance(link, errors.GatedRepoError) for link in chain) or 403 in statuses:
        return f"it is gated: accept the license at {page} and log in with `hf auth login` (or set HF_TOKEN)"
    if any(isinstance(link, errors.RevisionNotFoundError) for link in chain):
        return f"no such revision; see {page}"
    if any(isinstance(link, errors.RepositoryNotFoundError) for link in chain) or 401 in statuses:
        return f"not on the hub, or private: check the name, or log in with `hf auth login`; see {page}"
    if any(isinstance(link, errors.HFValidationError) for link in chain):
        return "neither a folder here nor a name of the hub (owner/name)"
    if any(_is_network(link) for link in chain):
        return f"the hub cannot be reached and there is no copy in its cache; {OFFLINE[kind]}"
    return ""


def _upload_reason(chain: Sequence[BaseException], statuses: Collection[int]) -> str:
    """Returns why an upload failed and how to fix it; empty if neither is known."""
    from huggingface_hub import errors

    if 401 in statuses or 403 in statuses:
        return "the hub refuses it: log in with `hf auth login` (or set HF_TOKEN), by a token that may write there"
    if any(isinstance(link, errors.HFValidationError) for link in chain):
        return "no name of the hub (owner/name)"
    if not statuses and any(_is_network(link) for link in chain):
        return "the hub cannot be reached, so that nothing was uploaded"
    return ""


def _ask_nobody() -> None:
    """Makes transformers reject remote code where it would otherwise prompt on the terminal and run it upon `y`."""
    if "transformers" in sys.modules:
        from transformers import dynamic_module_utils

        dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to answer in; 0 does not ask


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes: transformers and diffusers wrap the hub's own errors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _is_network(error: BaseException) -> bool:
    from huggingface_hub import errors

    client = type(error).__module__.partition(".")[0]  # hub clients differ in the library they ask with
    absent = errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled | ConnectionError | TimeoutError
    return isinstance(error, absent) or client in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3")
