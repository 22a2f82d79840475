"""`lgclip doctor`: what is installed, which device there is, and which data sets and models are ready."""

import os
import shutil
import textwrap
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from omegaconf import MissingMandatoryValue
from packaging.requirements import Requirement

from lgclip.allowed import build
from lgclip.datasets.base import Dataset
from lgclip.hub import cached
from lgclip.prompts.base import PromptWriter
from lgclip.store import StoreError, open_root

READY, FETCH, MISSING, ASKS = "ready", "fetch", "missing", "asks"
LEGEND = (
    f"{READY}: works now. {FETCH}: is downloaded when it is first used.\n"
    f"{MISSING}: the line says what to get. {ASKS}: works once you have given the value or service it asks for."
)
WIDTH = 120


class Part(Protocol):
    """An encoder, a writer of prompts or a source of images."""

    def repositories(self) -> list[tuple[str, str | None]]:
        """Repositories of the hub that it loads from, each with its revision."""
        ...


class Finding(NamedTuple):
    """One line of the report.

    Attributes:
        state: `ready`, `fetch`, `missing` or `asks`.
        what: What was looked at, as it is typed on a command line.
        said: A word on it.
    """

    state: str
    what: str
    said: str

    def __str__(self) -> str:
        head = f"  {self.state:<8}{self.what:<28}"
        said = self.said.removeprefix(f"{self.what}: ")
        return textwrap.fill(said, WIDTH, initial_indent=head, subsequent_indent=" " * 38, break_on_hyphens=False)


def report(conf: Path, store: str | None = None) -> Iterator[str]:
    """The report, line by line.

    Args:
        conf: Folder of the configs.
        store: Folder of the store; None stands for the usual one.
    """
    yield LEGEND
    sections: list[tuple[str, Iterable[Finding]]] = [
        ("packages", packages()),
        ("machine", machine()),
        ("store", [the_store(store)]),
        ("data sets", parts(conf, "dataset")),
        ("encoders", parts(conf, "encoder")),
        ("language models", parts(conf, "llm")),
        ("diffusion models", parts(conf, "diffuser")),
        ("accounts", accounts()),
    ]
    for title, findings in sections:
        yield f"\n{title}"
        yield from map(str, findings)


def packages() -> list[Finding]:
    """What the package needs, and the extras that are there or not; a developer's tools are left out."""
    extras = [extra for extra in metadata("lgclip").get_all("Provides-Extra") or [] if extra != "dev"]
    here, wrong = [], []
    for need in map(Requirement, requires("lgclip") or []):
        wanted_by = [extra for extra in extras if need.marker and need.marker.evaluate({"extra": extra})]
        if need.marker and not wanted_by and not need.marker.evaluate({"extra": ""}):
            continue
        way = f"pip install 'lgclip[{wanted_by[0]}]'" if wanted_by else f"pip install '{need.name}{need.specifier}'"
        try:
            have = version(need.name)
        except PackageNotFoundError:
            wrong.append(Finding(MISSING, need.name, way))
            continue
        if need.specifier.contains(have, prereleases=True):
            here.append(f"{need.name} {have}")
        else:
            wrong.append(Finding(MISSING, need.name, f"{have} is too old: {way}"))
    return [Finding(READY, f"{len(here)} packages", ", ".join(sorted(here, key=str.lower))), *wrong]


def machine() -> list[Finding]:
    """Cores, memory and GPUs, and the precision that `auto` stands for."""
    import torch

    found = [Finding(READY, f"{os.cpu_count()} CPU cores", "precision=auto is fp32 on them")]
    for index in range(torch.cuda.device_count()):
        about = torch.cuda.get_device_properties(index)
        memory = f"{about.total_memory / 2**30:.0f} GiB"
        found.append(Finding(READY, f"GPU {index}: {about.name}", f"{memory}, precision=auto is bf16 on it"))
    if len(found) == 1:
        found.append(Finding(MISSING, "GPU", "none: the embedded models need none, large diffusion models do"))
    return found


def the_store(place: str | None) -> Finding:
    """Where prompts, images and features are kept."""
    try:
        root = open_root(place)
    except StoreError as error:
        return Finding(MISSING, "store", str(error))
    sizes = [path.stat().st_size for path in root.rglob("*") if path.is_file()]
    free = shutil.disk_usage(root).free
    return Finding(READY, str(root), f"{len(sizes):,} files, {_size(sum(sizes))}; {_size(free)} free on its disk")


def parts(conf: Path, group: str) -> Iterator[Finding]:
    """Every choice of a config group, and whether it works here.

    Args:
        conf: Folder of the configs.
        group: `dataset`, `encoder`, `llm` or `diffuser`.
    """
    for path in sorted((conf / group).glob("*.yaml")):
        what = f"{group}={path.stem}"
        try:
            with initialize_config_dir(str(conf), version_base="1.3"):
                config: Any = compose("evaluate", [what])
            part = build(config[group], _convert_="all")
        except MissingMandatoryValue as error:
            yield Finding(ASKS, what, f"give {error.full_key}=...")
        except (InstantiationException, ValueError, ImportError) as error:
            cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
            yield Finding(MISSING, what, str(cause).splitlines()[0])
        else:
            yield _dataset(what, part) if group == "dataset" else _model(what, part)


def _dataset(what: str, dataset: Dataset) -> Finding:
    return Finding(READY, what, f"{dataset.split}: {len(dataset.class_names):,} classes, {len(dataset):,} images")


def _model(what: str, part: Part) -> Finding:
    if isinstance(part, PromptWriter) and (asked := part.waits_for()):
        return Finding(ASKS, what, asked)
    absent = [repo for repo, revision in part.repositories() if not cached(repo, revision)]
    if absent:
        return Finding(FETCH, what, f"from the hub: {', '.join(absent)}")
    return Finding(READY, what, "in the hub's cache" if part.repositories() else "nothing to download")


def accounts() -> list[Finding]:
    """Whether the hub and Weights & Biases know the user; no key is shown."""
    from huggingface_hub import get_token

    hub = (
        Finding(READY, "Hugging Face", "a token is set")
        if get_token()
        else Finding(ASKS, "Hugging Face", "no token: gated models need `hf auth login` or HF_TOKEN")
    )
    login = os.environ.get("WANDB_API_KEY") or "wandb" in _text(Path.home() / ".netrc")
    wandb = (
        Finding(READY, "Weights & Biases", "a key is set")
        if login
        else Finding(
            ASKS, "Weights & Biases", "no key: logger=wandb works offline, logger.offline=false needs `wandb login`"
        )
    )
    return [hub, wandb]


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
